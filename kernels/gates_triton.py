"""Triton kernels of `tripq.kernels.gates`, which defines their results.

A program evaluates a block of rows: the scalars at once, then every run of features of one order,
one component of all its features at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tripq.kernels.features import NORM_EPS, segments
from tripq.kernels.gates import Gates
from tripq.kernels.launch import accumulation_dtype

# Bytes of one tile: rows times features.
_TILE = 4096


class Run(NamedTuple):
    """Features of one order in a row, and where they begin.

    Attributes
    ----------
    mul, dim, columns : int
        Number of features, their components, and the power of two from `mul` on.
    gates, features : int
        Places of the first gate and of the first component in a row of the argument.
    out, norms : int
        Places of the first component and of the first norm in a row of the result.
    """

    mul: int
    dim: int
    columns: int
    gates: int
    features: int
    out: int
    norms: int


class Layout(NamedTuple):
    """Constants of the kernels; see `tripq.kernels.gates.Gates`.

    Attributes
    ----------
    scalars, columns : int
        Number of scalars, and the power of two from it on.
    runs : tuple of Run
        The features of order l > 0.
    dim_in, dim_out : int
        Lengths of rows.
    norms : bool
        Whether norms are appended.
    swish, sigmoid, eps : float
        Factors, and the constant of the norms.
    """

    scalars: int
    columns: int
    runs: tuple[Run, ...]
    dim_in: int
    dim_out: int
    norms: bool
    swish: float
    sigmoid: float
    eps: float = NORM_EPS

    @classmethod
    def of(cls, gates: Gates) -> Layout:
        """The constants for some gates."""
        runs = []
        gate, feature = gates.scalars, gates.scalars + gates.gated
        for mul, dim in zip(gates.muls, gates.dims, strict=True):
            out = feature - gates.gated
            norm = gate + gates.components
            columns = triton.next_power_of_2(mul)
            runs.append(Run(mul, dim, columns, gate, feature, out, norm))
            gate, feature = gate + mul, feature + mul * dim
        return cls(
            gates.scalars,
            triton.next_power_of_2(max(gates.scalars, 1)),
            tuple(runs),
            gates.dim_in,
            gates.dim_out,
            gates.norms,
            gates.swish,
            gates.sigmoid,
        )

    def rows(self, dtype: torch.dtype) -> int:
        """Rows of one program, for features of a type."""
        widest = max(self.columns, *(run.columns for run in self.runs), 1)
        return max(1, _TILE // (widest * accumulation_dtype(dtype).itemsize))


class Affine(NamedTuple):
    """Factor and constant of each component, or None."""

    scale: Tensor | None
    shift: Tensor | None


class Gradients(NamedTuple):
    """Where the gradients go: for the features, and for scale and shift by each program."""

    x: Tensor
    scale: Tensor | None
    shift: Tensor | None


@triton.jit
def _sigmoid(x):
    # exp of a negative number only: it cannot overflow.
    small = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1, small) / (1 + small)


@triton.jit
def _columns(row, n_rows, N, COLUMNS: tl.constexpr):
    """Columns, which of them are among the first N, and which numbers (ROWS, COLUMNS) exist."""
    u = tl.arange(0, COLUMNS)
    known = u < N
    return u, known, (row < n_rows)[:, None] & known[None, :]


@triton.jit
def _load(rows, place, inside, ACC: tl.constexpr):
    """A column of some rows, (ROWS, columns)."""
    return tl.load(rows + place[None, :], mask=inside, other=0.0).to(ACC)


@triton.jit
def _normalised(x, affine, place, known, ACC: tl.constexpr):
    """Scale x + shift."""
    h = x
    if affine.scale is not None:
        scale = tl.load(affine.scale + place, mask=known, other=0.0).to(ACC)
        shift = tl.load(affine.shift + place, mask=known, other=0.0).to(ACC)
        h = x * scale[None, :] + shift[None, :]
    return h


@triton.jit
def _store_gradient(
    out, affine, x, grad, row, place, known, inside, program, DIM: tl.constexpr, ACC: tl.constexpr
):
    """Gradients for x, and sums over the rows for scale and shift, from that for h."""
    if affine.scale is not None:
        # Rows beyond the end must not count: their h is the shift, not 0.
        counted = tl.where(inside, grad, 0)
        tl.store(out.scale + program * DIM + place, tl.sum(counted * x, 0), mask=known)
        tl.store(out.shift + program * DIM + place, tl.sum(counted, 0), mask=known)
        grad = grad * tl.load(affine.scale + place, mask=known, other=0.0).to(ACC)[None, :]
    tl.store(out.x + row[:, None] * DIM + place[None, :], grad, mask=inside)


@triton.jit
def _gate_run(
    x_rows, affine, out_rows, row, n_rows, R: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr
):
    """The features of one run, and their norms."""
    # Triton 3.7 takes what is nested in a constant for a constant only by name.
    DIM: tl.constexpr = R.dim
    COLUMNS: tl.constexpr = R.columns
    u, known, inside = _columns(row, n_rows, R.mul, COLUMNS)
    gates = _load(x_rows, R.gates + u, inside, ACC)
    factor = C.sigmoid * _sigmoid(_normalised(gates, affine, R.gates + u, known, ACC))
    squared = tl.zeros_like(factor)
    for m in tl.static_range(DIM):
        place = R.features + u * R.dim + m
        h = _normalised(_load(x_rows, place, inside, ACC), affine, place, known, ACC)
        y = factor * h
        squared += y * y
        tl.store(out_rows + (R.out + u * R.dim + m)[None, :], y, mask=inside)
    if C.norms:
        norm = squared / (tl.sqrt(squared + C.eps * C.eps) + C.eps)
        tl.store(out_rows + (R.norms + u)[None, :], norm, mask=inside)


@triton.jit
def gate_kernel(
    x,  # (N, dim_in)
    affine,  # Affine
    out,  # (N, dim_out)
    n_rows,
    C: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The gate of a block of rows."""
    ACC: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # (ROWS,)
    x_rows = x + row[:, None] * C.dim_in
    out_rows = out + row[:, None] * C.dim_out
    if C.scalars > 0:
        u, known, inside = _columns(row, n_rows, C.scalars, C.columns)
        h = _normalised(_load(x_rows, u, inside, ACC), affine, u, known, ACC)
        tl.store(out_rows + u[None, :], C.swish * h * _sigmoid(h), mask=inside)
    for j in tl.static_range(len(C.runs)):
        _gate_run(x_rows, affine, out_rows, row, n_rows, C.runs[j], C, ACC)


@triton.jit
def _run_backward(
    grad_rows,
    x_rows,
    affine,
    out,
    row,
    n_rows,
    program,
    R: tl.constexpr,
    C: tl.constexpr,
    ACC: tl.constexpr,
):
    """The gradients for the features of one run and for their gates."""
    # Triton 3.7 takes what is nested in a constant for a constant only by name.
    DIM: tl.constexpr = R.dim
    COLUMNS: tl.constexpr = R.columns
    u, known, inside = _columns(row, n_rows, R.mul, COLUMNS)
    gates = _load(x_rows, R.gates + u, inside, ACC)
    s = _sigmoid(_normalised(gates, affine, R.gates + u, known, ACC))
    factor = C.sigmoid * s
    # |h|^2, and the product of h with the gradient of y.
    squared, dot = tl.zeros_like(s), tl.zeros_like(s)
    for m in tl.static_range(DIM):
        place = R.features + u * R.dim + m
        h = _normalised(_load(x_rows, place, inside, ACC), affine, place, known, ACC)
        squared += h * h
        dot += h * _load(grad_rows, R.out + u * R.dim + m, inside, ACC)
    # The gradient of the norm is y times this.
    from_norm = tl.zeros_like(s)
    if C.norms:
        size = tl.sqrt(factor * factor * squared + C.eps * C.eps)
        from_norm = _load(grad_rows, R.norms + u, inside, ACC) / size
    change = (dot + from_norm * factor * squared) * factor * (1 - s)
    place = R.gates + u
    _store_gradient(out, affine, gates, change, row, place, known, inside, program, C.dim_in, ACC)
    for m in tl.static_range(DIM):
        place = R.features + u * R.dim + m
        x = _load(x_rows, place, inside, ACC)
        h = _normalised(x, affine, place, known, ACC)
        g = _load(grad_rows, R.out + u * R.dim + m, inside, ACC)
        change = factor * (g + from_norm * factor * h)
        _store_gradient(out, affine, x, change, row, place, known, inside, program, C.dim_in, ACC)


@triton.jit
def gate_backward_kernel(
    grad,  # (N, dim_out)
    x,  # (N, dim_in)
    affine,  # Affine
    out,  # Gradients
    n_rows,
    C: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The gradients of a block of rows."""
    ACC: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0).to(tl.int64)
    row = program * ROWS + tl.arange(0, ROWS)  # (ROWS,)
    x_rows = x + row[:, None] * C.dim_in
    grad_rows = grad + row[:, None] * C.dim_out
    if C.scalars > 0:
        u, known, inside = _columns(row, n_rows, C.scalars, C.columns)
        scalars = _load(x_rows, u, inside, ACC)
        h = _normalised(scalars, affine, u, known, ACC)
        s = _sigmoid(h)
        slope = C.swish * s * (1 + h * (1 - s))
        change = _load(grad_rows, u, inside, ACC) * slope
        _store_gradient(out, affine, scalars, change, row, u, known, inside, program, C.dim_in, ACC)
    for j in tl.static_range(len(C.runs)):
        _run_backward(grad_rows, x_rows, affine, out, row, n_rows, program, C.runs[j], C, ACC)


def gate(
    x: Tensor, gates: Gates, scale: Tensor | None, shift: Tensor | None, sizes: Sequence[int]
) -> Tensor:
    """Launch the forward kernel for each scan; (N, dim_in) -> (N, dim_out)."""
    out = torch.empty((len(x), gates.dim_out), dtype=x.dtype, device=x.device)
    parts = zip(segments(x.contiguous(), sizes), segments(out, sizes), strict=True)
    for scan, (part, of_part) in enumerate(parts):
        _launch(gate_kernel, (part, _affine(scale, shift, scan), of_part), gates)
    return out


def gate_backward(
    grad: Tensor,
    x: Tensor,
    gates: Gates,
    scale: Tensor | None,
    shift: Tensor | None,
    sizes: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Launch the backward kernel for each scan; for x, and for scale and shift (2, S, dim_in)."""
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grad, x = grad.contiguous(), x.contiguous()
    rows, dtype = Layout.of(gates).rows(x.dtype), accumulation_dtype(x.dtype)
    sums = []
    tensors = (segments(t, sizes) for t in (grad, x, grad_x))
    for scan, (grad_part, part, grad_x_part) in enumerate(zip(*tensors, strict=True)):
        # Each program has its sums; added in a fixed order, they are the same in every run.
        programs = triton.cdiv(len(part), rows) if scale is not None else 0
        of_programs = torch.empty((2, programs, gates.dim_in), dtype=dtype, device=x.device)
        places = (None, None) if scale is None else (of_programs[0], of_programs[1])
        affine = _affine(scale, shift, scan)
        gradients = Gradients(grad_x_part, *places)
        _launch(gate_backward_kernel, (grad_part, part, affine, gradients), gates)
        sums.append(of_programs.sum(dim=1))
    return grad_x, torch.stack(sums, dim=1).to(x.dtype)


def _affine(scale: Tensor | None, shift: Tensor | None, scan: int) -> Affine:
    return Affine(*(None if v is None else v.contiguous()[scan] for v in (scale, shift)))


def _launch(
    kernel: triton.JITFunction, tensors: tuple[Tensor | Affine | Gradients, ...], gates: Gates
) -> None:
    first = tensors[0]
    assert isinstance(first, Tensor)
    if not len(first):
        return
    layout = Layout.of(gates)
    rows = layout.rows(first.dtype)
    with torch.cuda.device_of(first):
        kernel[(triton.cdiv(len(first), rows),)](
            *tensors, len(first), C=layout, ROWS=rows, enable_fp_fusion=True
        )
