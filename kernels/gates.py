r"""The gate: activation of scalars, products of other features with scalars, and their norms.

A row of features holds s scalars, then one scalar g_f for each feature f of order l > 0, its gate,
and then these features x_f.  With a factor and a constant for each component, h = scale x + shift,
as the normalisation of each scan gives them, the result is

.. math::
    c_s\, h_s\, \sigma(h_s), \qquad y_f = c_g\, \sigma(h_{g_f})\, h_f, \qquad
    n_f = \sqrt{|y_f|^2 + \varepsilon^2} - \varepsilon,

the last only if norms are wanted, with :math:`\varepsilon` = `NORM_EPS`, because a norm has no
gradient at 0.  One operator evaluates all of it and keeps nothing but its arguments: with an
operation of torch for each step, memory traffic takes most of the time of a network's gates.

On a CPU a few rows at a time stay in the cache, and sums over the components of a feature, and
copies of a gate to them, are products with a matrix of zeros and ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tripq.infra.kept import kept
from tripq.kernels.features import NORM_EPS, cached_rows, copies, norm_of, normalised
from tripq.kernels.launch import (
    accumulation_dtype,
    gradients_of_twin,
    higher_derivatives,
    only_needed,
)
from tripq.kernels.operators import operator


class Gates(NamedTuple):
    """What a row of features holds, and what is made of it.

    Attributes
    ----------
    scalars : int
        Number of scalars that are not gates.
    muls, dims : tuple of int
        For each run of features of one order l > 0 their number, and 2 l + 1.
    norms : bool
        Whether norms are appended.
    swish, sigmoid : float
        The factors c_s and c_g.
    """

    scalars: int
    muls: tuple[int, ...]
    dims: tuple[int, ...]
    norms: bool
    swish: float
    sigmoid: float

    @property
    def gated(self) -> int:
        """Number of features with a gate."""
        return sum(self.muls)

    @property
    def components(self) -> int:
        """Number of their components."""
        return sum(mul * dim for mul, dim in zip(self.muls, self.dims, strict=True))

    @property
    def dim_in(self) -> int:
        """Length of a row of the argument."""
        return self.scalars + self.gated + self.components

    @property
    def dim_out(self) -> int:
        """Length of a row of the result."""
        return self.scalars + self.components + (self.gated if self.norms else 0)


def gate(
    x: Tensor,
    gates: Gates,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    sizes: Sequence[int] = (),
) -> Tensor:
    """Activate features.

    Parameters
    ----------
    x : Tensor of shape (..., dim_in)
        Features.
    gates : Gates
        What they are.
    scale, shift : Tensors of shape (S, dim_in), optional
        Both or neither: a factor and a constant for each component and scan, applied first.
    sizes : sequence of S int
        Number of rows of each scan; not needed for one.

    Returns
    -------
    Tensor of shape (..., dim_out)
        Of the type of `x`.

    Examples
    --------
    >>> one_vector = Gates(0, (1,), (3,), norms=True, swish=1.0, sigmoid=2.0)
    >>> gate(torch.tensor([0.0, 3.0, 4.0, 0.0]), one_vector).round(decimals=3).tolist()
    [3.0, 4.0, 0.0, 5.0]
    """
    if scale is not None and shift is not None:
        scale, shift = scale.to(x.dtype), shift.to(x.dtype)
    rows = x.reshape(-1, gates.dim_in)
    result: Tensor = _gate(rows, *gates, scale, shift, list(sizes))
    return result.view(*x.shape[:-1], gates.dim_out)


def gate_twin(
    x: Tensor,
    gates: Gates,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    sizes: Sequence[int] = (),
) -> Tensor:
    """The torch twin of `gate`, (N, dim_in) -> (N, dim_out)."""
    h = x.to(accumulation_dtype(x.dtype))
    if scale is not None and shift is not None:
        h = normalised(h, scale.to(h.dtype), shift.to(h.dtype), sizes)
    widths = [mul * dim for mul, dim in zip(gates.muls, gates.dims, strict=True)]
    scalars, *rest = h.split([gates.scalars, *gates.muls, *widths], dim=-1)
    parts, norms = [gates.swish * functional.silu(scalars)], []
    shapes = list(zip(gates.muls, gates.dims, strict=True))
    for g, part, shape in zip(rest[: len(shapes)], rest[len(shapes) :], shapes, strict=True):
        y = part.unflatten(-1, shape) * (gates.sigmoid * torch.sigmoid(g))[..., None]
        parts.append(y.flatten(-2))
        norms.append(norm_of(y.square().sum(dim=-1)))
    return torch.cat(parts + norms if gates.norms else parts, dim=-1).to(x.dtype)


# -- on a CPU --------------------------------------------------------------------------------------


def _gate_on_cpu(
    x: Tensor, gates: Gates, scale: Tensor | None, shift: Tensor | None, sizes: Sequence[int]
) -> Tensor:
    out = x.new_empty(len(x), gates.dim_out)
    n, to_gates = gates.scalars, slice(gates.scalars, gates.scalars + gates.gated)
    to_components, to_features = _matrices(gates.muls, gates.dims, accumulation_dtype(x.dtype))
    for some in _pieces(x, gates, scale, shift, sizes):
        h, part = some.h, out[some.rows]
        part[:, :n] = functional.silu(h[:, :n]).mul_(gates.swish)
        y = (torch.sigmoid(h[:, to_gates]).mul_(gates.sigmoid) @ to_components).mul_(
            h[:, to_gates.stop :]
        )
        part[:, n : n + gates.components] = y
        if gates.norms:
            squared = y.square_() @ to_features
            size = (squared + NORM_EPS**2).sqrt_().add_(NORM_EPS)
            part[:, n + gates.components :] = squared.div_(size)
    return out


def _gate_backward_on_cpu(
    grad: Tensor,
    x: Tensor,
    gates: Gates,
    scale: Tensor | None,
    shift: Tensor | None,
    sizes: Sequence[int],
) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(x.dtype)
    grad_x = x.new_empty(x.shape)
    grad_affine = x.new_zeros((2, len(sizes) or 1, gates.dim_in), dtype=dtype)
    n, to_gates = gates.scalars, slice(gates.scalars, gates.scalars + gates.gated)
    to_components, to_features = _matrices(gates.muls, gates.dims, dtype)
    for some in _pieces(x, gates, scale, shift, sizes):
        h, g = some.h, grad[some.rows].to(dtype)
        grad_h = torch.empty_like(h)
        grad_h[:, :n] = torch.ops.aten.silu_backward(g[:, :n], h[:, :n]).mul_(gates.swish)
        opened = torch.sigmoid(h[:, to_gates])
        factor = (opened * gates.sigmoid) @ to_components
        gated = h[:, to_gates.stop :]
        grad_y = g[:, n : n + gates.components]
        if gates.norms:
            y = factor * gated
            size = (y.square() @ to_features).add_(NORM_EPS**2).rsqrt_()
            grad_y = y.mul_(size.mul_(g[:, n + gates.components :]) @ to_components).add_(grad_y)
        torch.mul(grad_y, factor, out=grad_h[:, to_gates.stop :])
        grad_factor = ((grad_y * gated) @ to_features).mul_(gates.sigmoid)
        grad_h[:, to_gates] = torch.ops.aten.sigmoid_backward(grad_factor, opened)
        if some.scale is not None:
            grad_affine[0, some.scan] += (some.x * grad_h).sum(dim=0)
            grad_affine[1, some.scan] += grad_h.sum(dim=0)
            grad_h.mul_(some.scale)
        grad_x[some.rows] = grad_h
    return grad_x, grad_affine.to(x.dtype)


class _Piece(NamedTuple):
    """A few rows of one scan: which, features, features with factor and constant, the factor."""

    scan: int
    rows: slice
    x: Tensor
    h: Tensor
    scale: Tensor | None


def _pieces(
    x: Tensor, gates: Gates, scale: Tensor | None, shift: Tensor | None, sizes: Sequence[int]
) -> Iterator[_Piece]:
    """Rows that fit the cache, in the type of sums."""
    dtype = accumulation_dtype(x.dtype)
    start = 0
    for scan, size in enumerate(sizes or [len(x)]):
        for some in cached_rows(size, gates.dim_in, dtype):
            rows = slice(start + some.start, start + some.stop)
            features = x[rows].to(dtype)
            if scale is None or shift is None:
                yield _Piece(scan, rows, features, features, None)
            else:
                factor = scale[scan].to(dtype)
                h = torch.addcmul(shift[scan].to(dtype), features, factor)
                yield _Piece(scan, rows, features, h, factor)
        start += size


@kept
def _matrices(
    muls: tuple[int, ...], dims: tuple[int, ...], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The matrix that copies a number of each feature to its components, and the one that adds."""
    matrix = torch.from_numpy(copies(muls, dims)).to(dtype)
    return matrix.T.contiguous(), matrix


# -- the operators ---------------------------------------------------------------------------------


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.gates, scale, shift, ctx.sizes = _read(*inputs)
    ctx.save_for_backward(x, scale, shift)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, scale, shift = ctx.saved_tensors
    needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[-3:-1])
    if higher_derivatives():
        gradients = gradients_of_twin(
            lambda: gate_twin(x, ctx.gates, scale, shift, ctx.sizes),
            (x, scale, shift),
            needed,
            grad,
        )
    else:
        grad_x, grad_affine = _gate_backward(grad, x, *ctx.gates, scale, shift, ctx.sizes)
        gradients = only_needed((grad_x, *grad_affine), needed)
    return (gradients[0], *[None] * len(Gates._fields), *gradients[1:], None)


def _read(*args: Any) -> tuple[Any, ...]:
    """The arguments of an operator, with those of the gates as one."""
    *tensors, scalars, muls, dims, norms, swish, sigmoid, scale, shift, sizes = args
    gates = Gates(scalars, tuple(muls), tuple(dims), norms, swish, sigmoid)
    return *tensors, gates, scale, shift, sizes


_GATES = "SymInt scalars, int[] muls, int[] dims, bool norms, float swish, float sigmoid"
_AFFINE = "Tensor? scale, Tensor? shift, SymInt[] sizes"

_gate = operator(
    "gate",
    f"(Tensor x, {_GATES}, {_AFFINE}) -> Tensor",
    lambda x, gates, *_: x.new_empty(x.shape[0], gates.dim_out),
    twin=gate_twin,
    on_cpu=_gate_on_cpu,
    kernel="gates_triton.gate",
    read=_read,
    keep=_keep,
    differentiate=_differentiate,
)
# Gradients for x (N, dim_in), and for scale and shift (2, S, dim_in).
_gate_backward = operator(
    "gate_backward",
    f"(Tensor grad, Tensor x, {_GATES}, {_AFFINE}) -> (Tensor, Tensor)",
    lambda grad, x, gates, scale, shift, sizes: (
        x.new_empty(x.shape),
        x.new_empty(2, len(sizes) or 1, gates.dim_in),
    ),
    on_cpu=_gate_backward_on_cpu,
    kernel="gates_triton.gate_backward",
    read=_read,
)
