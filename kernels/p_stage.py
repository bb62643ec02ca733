"""The p-stage: gather features over the edges between voxels, one small matrix per edge type.

For features z of shape (V, N, R) and matrices m of shape (T, R, M),

    out[v] = sum over edges e with dst[e] = v of z[src[e]] @ m[type[e]],        (V, N, M).

Every output voxel sums over its own edges (no atomics), and nothing of the size of the edges times
the features is kept for the backward pass, which walks the transposed edges.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Numbers in a working buffer: 4 MB in float32 stay in the cache of one core ...
_GATHERED = 1 << 20
# ... and 128 MB are a small share of any machine's memory.
_PROJECTED = 1 << 25


def aggregate_on_grid(z: Tensor, m: Tensor, table: Tensor, transposed: Tensor) -> Tensor:
    """The p-stage where a voxel has at most one neighbour of each type.

    Parameters
    ----------
    z : Tensor of shape (V, N, R)
        Features.
    m : Tensor of shape (T, R, M)
        One matrix for each edge type.
    table, transposed : Tensors of shape (V, T), int64
        Input voxel of each (output voxel, type), and output voxel of each (input voxel, type);
        V where there is none.

    Returns
    -------
    Tensor of shape (V, N, M)
    """
    result: Tensor = _GridAggregation.apply(z, m, table, transposed)  # type: ignore[no-untyped-call]
    return result


def aggregate_on_edges(z: Tensor, m: Tensor, dst: Tensor, src: Tensor, type_: Tensor) -> Tensor:
    """The p-stage over a list of edges (E,), for irregular points; else as `aggregate_on_grid`."""
    result: Tensor = _EdgeAggregation.apply(z, m, dst, src, type_)  # type: ignore[no-untyped-call]
    return result


class _GridAggregation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, m: Tensor, table: Tensor, transposed: Tensor) -> Tensor:
        ctx.save_for_backward(z, m, table, transposed)
        return _grid(z, m, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, m, table, transposed = ctx.saved_tensors
        grad_z = grad_m = None
        if ctx.needs_input_grad[0]:
            grad_z = _grid(grad, m.transpose(1, 2), transposed)
        if ctx.needs_input_grad[1]:
            # Gather whichever side has fewer components.
            if z.shape[2] <= grad.shape[2]:
                grad_m = _grid_correlation(z, grad, table)
            else:
                grad_m = _grid_correlation(grad, z, transposed).transpose(1, 2)
        return grad_z, grad_m, None, None


def _grid(z: Tensor, m: Tensor, table: Tensor) -> Tensor:
    """Gather first or multiply first, whichever moves less."""
    n_types, n_in, n_out = m.shape
    if z.shape[0] == 0 or z.shape[1] == 0 or n_types == 0:
        return z.new_zeros(z.shape[0], z.shape[1], n_out)
    if n_in <= 2 * n_out:
        return _gather_then_multiply(z, m, table)
    return _multiply_then_gather(z, m, table)


def _gather_then_multiply(z: Tensor, m: Tensor, table: Tensor) -> Tensor:
    n_voxels, n, _ = z.shape
    n_types, n_in, n_out = m.shape
    matrix = m.reshape(n_types * n_in, n_out)
    out = z.new_empty(n_voxels, n, n_out)
    for rows, gathered in _gathered(z, table):
        torch.mm(gathered, matrix, out=out[rows].view(-1, n_out))
    return out


def _multiply_then_gather(z: Tensor, m: Tensor, table: Tensor) -> Tensor:
    n_voxels, n, n_in = z.shape
    n_types, _, n_out = m.shape
    matrix = m.permute(0, 2, 1).reshape(n_types * n_out, n_in)
    padded = torch.cat([z, z.new_zeros(1, n, n_in)])
    out = z.new_empty(n_voxels, n, n_out)
    step = max(1, _PROJECTED // (n_types * n_out * (n_voxels + 1)))
    for part, out_part in zip(padded.split(step, dim=1), out.split(step, dim=1), strict=True):
        projected = matrix @ part.reshape(-1, n_in).T
        projected = projected.view(n_types, n_out, n_voxels + 1, part.shape[1])
        total = z.new_zeros(n_out, n_voxels, part.shape[1])
        for t in range(n_types):
            total += projected[t].index_select(1, table[:, t])
        out_part.copy_(total.permute(1, 2, 0))
    return out


def _grid_correlation(a: Tensor, b: Tensor, table: Tensor) -> Tensor:
    """Sum over the edges of each type of a[src]^T b[dst], shape (T, R_a, R_b)."""
    n_types, n_a, n_b = table.shape[1], a.shape[2], b.shape[2]
    total = a.new_zeros(n_types * n_a, n_b)
    for rows, gathered in _gathered(a, table):
        total.addmm_(gathered.T, b[rows].reshape(-1, n_b))
    return total.view(n_types, n_a, n_b)


def _gathered(z: Tensor, table: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of output voxels with the features of all their neighbours, (chunk N, T R)."""
    n_voxels, n, width = z.shape
    n_types = table.shape[1]
    padded = torch.cat([z, z.new_zeros(1, n, width)]).view(n_voxels + 1, n * width)
    step = max(1, _GATHERED // max(1, n_types * n * width))
    for start in range(0, n_voxels, step):
        rows = slice(start, min(start + step, n_voxels))
        gathered = padded.index_select(0, table[rows].reshape(-1))
        if n > 1:
            gathered = gathered.view(rows.stop - rows.start, n_types, n, width).transpose(1, 2)
        yield rows, gathered.reshape((rows.stop - rows.start) * n, n_types * width)


class _EdgeAggregation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, m: Tensor, dst: Tensor, src: Tensor, type_: Tensor) -> Tensor:
        ctx.save_for_backward(z, m, dst, src, type_)
        return _edges(z, m, dst, src, type_)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, m, dst, src, type_ = ctx.saved_tensors
        grad_z = grad_m = None
        if ctx.needs_input_grad[0]:
            grad_z = _edges(grad, m.transpose(1, 2), src, dst, type_)
        if ctx.needs_input_grad[1]:
            grad_m = torch.zeros_like(m)
            for part in _edge_chunks(z, len(dst)):
                products = z[src[part]].transpose(1, 2) @ grad[dst[part]]
                grad_m.index_add_(0, type_[part], products)
        return grad_z, grad_m, None, None, None


def _edges(z: Tensor, m: Tensor, dst: Tensor, src: Tensor, type_: Tensor) -> Tensor:
    out = z.new_zeros(z.shape[0], z.shape[1], m.shape[2])
    for part in _edge_chunks(z, len(dst)):
        out.index_add_(0, dst[part], z[src[part]] @ m[type_[part]])
    return out


def _edge_chunks(z: Tensor, n_edges: int) -> Iterator[slice]:
    step = max(1, _GATHERED // max(1, z.shape[1] * z.shape[2]))
    return (slice(start, start + step) for start in range(0, n_edges, step))
