"""Triton kernels of `tripq.kernels.mixing`, which defines their results.

Features and matrices are read direction by direction, but the result has directions last.  So the
direction is the fastest index of programs: programs of neighbouring directions run at the same time
and write (or read) neighbouring numbers, which share cache lines.

Tensors of any strides are tuples of a pointer and these, `Features` and `Matrices`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tripq.kernels.launch import accumulation_dtype

# The least that a matrix product of Triton takes, and the step of the sums over channels.
_LEAST = 16
# The most rows (channels), and the voxels, of the tile of one program.
_ROWS = 64
_VOXELS = 64
# The step of the sums over voxels, and how many programs such sums are split for: twice what keeps
# the largest devices busy.  The split, and with it rounding, depends on the sizes alone.
_VOXEL_STEP = 32
_PROGRAMS = 2048


class Features(NamedTuple):
    """Features (Q, C, n, V), and the strides of their axes."""

    data: Tensor
    direction: int
    channel: int
    component: int
    voxel: int

    @classmethod
    def of(cls, x: Tensor) -> Features:
        """Features in memory as they are."""
        return cls(x, *x.stride())


class Matrices(NamedTuple):
    """Matrices (Q, C, R), and the strides of their axes."""

    data: Tensor
    direction: int
    channel: int
    row: int

    @classmethod
    def of(cls, w: Tensor) -> Matrices:
        """Matrices in memory as they are."""
        return cls(w, *w.stride())


@triton.jit
def _tile(pointer, row, column, n_rows, n_columns, row_stride, column_stride):
    """Load a tile (rows, columns), 0 where it reaches over the edge."""
    inside = (row < n_rows)[:, None] & (column < n_columns)[None, :]
    address = row[:, None].to(tl.int64) * row_stride + column[None, :].to(tl.int64) * column_stride
    return tl.load(pointer + address, mask=inside, other=0.0)


@triton.jit
def product_kernel(
    x,  # Features (Q, K, n, V)
    w,  # Matrices (Q, K, R)
    out,  # Features (Q, R, n, V)
    n_q,
    n_k,
    n_rows,
    n_m,
    n_voxels,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    VOXELS: tl.constexpr,
    STEP: tl.constexpr,
):
    """out[q, row, m, v] = sum over k of w[q, k, row] x[q, k, m, v], a tile of rows and voxels."""
    program = tl.program_id(0)
    q = (program % n_q).to(tl.int64)
    program = program // n_q
    row_tiles = tl.cdiv(n_rows, ROWS)
    row = (program % row_tiles) * ROWS + tl.arange(0, ROWS)
    program = program // row_tiles
    m = (program % n_m).to(tl.int64)
    voxel = (program // n_m) * VOXELS + tl.arange(0, VOXELS)
    of_x = x.data + q * x.direction + m * x.component
    of_w = w.data + q * w.direction
    total = tl.zeros((ROWS, VOXELS), ACC)
    for begin in range(0, n_k, STEP):
        k = begin + tl.arange(0, STEP)
        matrix = _tile(of_w, row, k, n_rows, n_k, w.row, w.channel)  # (ROWS, STEP)
        features = _tile(of_x, k, voxel, n_k, n_voxels, x.channel, x.voxel)  # (STEP, VOXELS)
        total = tl.dot(matrix, features, total, input_precision=PRECISION, out_dtype=ACC)
    inside = (row < n_rows)[:, None] & (voxel < n_voxels)[None, :]
    address = row[:, None].to(tl.int64) * out.channel + voxel[None, :].to(tl.int64) * out.voxel
    tl.store(out.data + q * out.direction + m * out.component + address, total, mask=inside)


@triton.jit
def correlation_kernel(
    grad,  # Features (Q, R, n, V)
    a,  # Features (Q, C, n, V)
    out,  # (splits, Q, C, R)
    n_q,
    n_c,
    n_r,
    n_m,
    n_voxels,
    tiles_of_split,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
):
    """out[q, c, r] = sum of a[q, c, m, v] grad[q, r, m, v] over a split of the tiles of (m, v)."""
    program = tl.program_id(0)
    q = (program % n_q).to(tl.int64)
    program = program // n_q
    c_tiles = tl.cdiv(n_c, ROWS)
    c = (program % c_tiles) * ROWS + tl.arange(0, ROWS)
    program = program // c_tiles
    r_tiles = tl.cdiv(n_r, COLUMNS)
    r = (program % r_tiles) * COLUMNS + tl.arange(0, COLUMNS)
    split = (program // r_tiles).to(tl.int64)
    voxel_tiles = tl.cdiv(n_voxels, STEP)
    begin = split * tiles_of_split
    end = tl.minimum(begin + tiles_of_split, n_m * voxel_tiles)
    of_a = a.data + q * a.direction
    of_grad = grad.data + q * grad.direction
    total = tl.zeros((ROWS, COLUMNS), ACC)
    for tile in range(begin, end):
        m = tile // voxel_tiles
        v = (tile % voxel_tiles) * STEP + tl.arange(0, STEP)
        # (ROWS, STEP) and (STEP, COLUMNS)
        features = _tile(of_a + m * a.component, c, v, n_c, n_voxels, a.channel, a.voxel)
        change = _tile(of_grad + m * grad.component, v, r, n_voxels, n_r, grad.voxel, grad.channel)
        total = tl.dot(features, change, total, input_precision=PRECISION, out_dtype=ACC)
    inside = (c < n_c)[:, None] & (r < n_r)[None, :]
    address = c[:, None].to(tl.int64) * n_r + r[None, :]
    tl.store(out + (split * n_q + q) * n_c * n_r + address, total, mask=inside)


def mix(a: Tensor, w: Tensor) -> Tensor:
    """Launch the product over input channels; (Q, C, n, V), (Q, C, R) -> (V, R, n, Q)."""
    n_q, _, n_m, n_voxels = a.shape
    out = torch.empty((n_voxels, w.shape[2], n_m, n_q), dtype=a.dtype, device=a.device)
    _multiply(a, w, out.permute(3, 1, 2, 0))
    return out


def mix_grad_a(grad: Tensor, w: Tensor) -> Tensor:
    """Launch the product over output channels; (V, R, n, Q), (Q, C, R) -> (Q, C, n, V)."""
    n_voxels, _, n_m, n_q = grad.shape
    out = torch.empty((n_q, w.shape[1], n_m, n_voxels), dtype=grad.dtype, device=grad.device)
    _multiply(grad.permute(3, 1, 2, 0), w.transpose(1, 2), out)
    return out


def mix_grad_w(grad: Tensor, a: Tensor) -> Tensor:
    """Launch the sums over voxels in splits, and add the partial sums.

    (V, R, n, Q), (Q, C, n, V) -> (Q, C, R).
    """
    n_q, n_c, n_m, n_voxels = a.shape
    n_r = grad.shape[1]
    rows, columns = _rows(n_c), _rows(n_r)
    tiles = n_m * triton.cdiv(n_voxels, _VOXEL_STEP)
    products = n_q * triton.cdiv(n_c, rows) * triton.cdiv(n_r, columns)
    if not tiles * products:
        return torch.zeros((n_q, n_c, n_r), dtype=a.dtype, device=a.device)
    tiles_of_split = triton.cdiv(tiles, max(1, _PROGRAMS // products))
    n_splits = triton.cdiv(tiles, tiles_of_split)
    dtype = accumulation_dtype(a.dtype)
    parts = torch.empty((n_splits, n_q, n_c, n_r), dtype=dtype, device=a.device)
    with torch.cuda.device_of(a):
        correlation_kernel[(products * n_splits,)](
            Features.of(grad.permute(3, 1, 2, 0)),
            Features.of(a),
            parts,
            n_q,
            n_c,
            n_r,
            n_m,
            n_voxels,
            tiles_of_split,
            ACC=_accumulator(a.dtype),
            PRECISION=_precision(),
            ROWS=rows,
            COLUMNS=columns,
            STEP=_VOXEL_STEP,
            enable_fp_fusion=True,
        )
    return parts.sum(dim=0).to(a.dtype)


def _multiply(x: Tensor, w: Tensor, out: Tensor) -> None:
    """out[q, row, m, v] = sum over k of w[q, k, row] x[q, k, m, v], whatever the strides."""
    n_q, n_rows, n_m, n_voxels = out.shape
    rows = _rows(n_rows)
    programs = n_q * triton.cdiv(n_rows, rows) * n_m * triton.cdiv(n_voxels, _VOXELS)
    if not programs:
        return
    with torch.cuda.device_of(out):
        product_kernel[(programs,)](
            Features.of(x),
            Matrices.of(w),
            Features.of(out),
            n_q,
            x.shape[1],
            n_rows,
            n_m,
            n_voxels,
            ACC=_accumulator(out.dtype),
            PRECISION=_precision(),
            ROWS=rows,
            VOXELS=_VOXELS,
            STEP=_LEAST,
            enable_fp_fusion=True,
        )


def _rows(n: int) -> int:
    """Rows of the tiles that cover `n`."""
    return min(max(triton.next_power_of_2(n), _LEAST), _ROWS)


def _precision() -> str:
    """Whether products of float32 may be rounded to TensorFloat-32."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def _accumulator(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if accumulation_dtype(dtype) == torch.float64 else tl.float32
