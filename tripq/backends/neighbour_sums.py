"""The p-stage: gather features over the edges between voxels, one small matrix per edge type.

For features z of shape (V, N, R) and matrices m of shape (T, R, M),

    out[v] = sum over edges e with dst[e] = v of z[src[e]] @ m[type[e]],        (V, N, M).

Every output voxel sums over its own edges (no atomics), and nothing of the size of the edges times
the features is kept for the backward pass, which uses the transposed edges.  The torch twins define
the result, and all derivatives other than that of the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tripq.infra.chunks import chunks
from tripq.kernels.launch import (
    DEFAULT_BUDGET,
    gradients_of_twin,
    higher_derivatives,
    needs_twin,
)

# Bytes of gathered features: they stay in the cache of one core.
_CACHED = 1 << 22


def aggregate_on_grid(
    z: Tensor, m: Tensor, table: Tensor, transposed: Tensor, budget: int = DEFAULT_BUDGET
) -> Tensor:
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
    budget : int
        Bytes that temporary arrays may take.

    Returns
    -------
    Tensor of shape (V, N, M)
    """
    if needs_twin():
        return grid_twin(z, m, table)
    result: Tensor = _GridAggregation.apply(z, m, table, transposed, budget)
    return result


def aggregate_on_edges(
    z: Tensor, m: Tensor, dst: Tensor, src: Tensor, type_: Tensor, budget: int = DEFAULT_BUDGET
) -> Tensor:
    """The p-stage over a list of edges (E,), for irregular points; else as `aggregate_on_grid`."""
    if needs_twin():
        return edges_twin(z, m, dst, src, type_)
    result: Tensor = _EdgeAggregation.apply(z, m, dst, src, type_, budget)
    return result


def grid_twin(z: Tensor, m: Tensor, table: Tensor) -> Tensor:
    """The torch twin of `aggregate_on_grid`."""
    padded = torch.cat([z, z.new_zeros(1, *z.shape[1:])])
    return torch.einsum("vtnr,trm->vnm", padded[table], m)


def edges_twin(z: Tensor, m: Tensor, dst: Tensor, src: Tensor, type_: Tensor) -> Tensor:
    """The torch twin of `aggregate_on_edges`."""
    zeros = z.new_zeros(z.shape[0], z.shape[1], m.shape[2])
    return zeros.index_add(0, dst, z[src] @ m[type_])


class _GridAggregation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, m: Tensor, table: Tensor, transposed: Tensor, budget: int
    ) -> Tensor:
        ctx.save_for_backward(z, m, table, transposed)
        ctx.budget = budget
        return _grid(z, m, table, budget)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, m, table, transposed = ctx.saved_tensors
        if higher_derivatives():
            needed = ctx.needs_input_grad[:2]
            found = gradients_of_twin(lambda: grid_twin(z, m, table), (z, m), needed, grad)
            return *found, None, None, None
        grad_z = grad_m = None
        if ctx.needs_input_grad[0]:
            grad_z = _grid(grad, m.transpose(1, 2), transposed, ctx.budget)
        if ctx.needs_input_grad[1]:
            # Gather whichever side has fewer components.
            if z.shape[2] <= grad.shape[2]:
                grad_m = _grid_correlation(z, grad, table, ctx.budget)
            else:
                grad_m = _grid_correlation(grad, z, transposed, ctx.budget).transpose(1, 2)
        return grad_z, grad_m, None, None, None


# Operators, so that a compiler sees one call each, however many chunks there are.


@torch.library.custom_op("tripq::grid", mutates_args=())
def _grid(z: Tensor, m: Tensor, table: Tensor, budget: int) -> Tensor:
    """Gather first or multiply first, whichever moves less."""
    n_types, n_in, n_out = m.shape
    if z.shape[0] == 0 or z.shape[1] == 0 or n_types == 0:
        return z.new_zeros(z.shape[0], z.shape[1], n_out)
    if n_in <= 2 * n_out:
        return _gather_then_multiply(z, m, table, budget)
    return _multiply_then_gather(z, m, table, budget)


@_grid.register_fake
def _(z: Tensor, m: Tensor, table: Tensor, budget: int) -> Tensor:
    return z.new_empty(z.shape[0], z.shape[1], m.shape[2])


def _gather_then_multiply(z: Tensor, m: Tensor, table: Tensor, budget: int) -> Tensor:
    n_voxels, n, _ = z.shape
    n_types, n_in, n_out = m.shape
    matrix = m.reshape(n_types * n_in, n_out)
    out = z.new_empty(n_voxels, n, n_out)
    for rows, gathered in _gathered(z, table, budget):
        torch.mm(gathered, matrix, out=out[rows].view(-1, n_out))
    return out


def _multiply_then_gather(z: Tensor, m: Tensor, table: Tensor, budget: int) -> Tensor:
    n_voxels, n, n_in = z.shape
    n_types, _, n_out = m.shape
    matrix = m.permute(0, 2, 1).reshape(n_types * n_out, n_in)
    padded = torch.cat([z, z.new_zeros(1, n, n_in)])
    out = z.new_empty(n_voxels, n, n_out)
    size = z.element_size() * n_types * n_out * (n_voxels + 1)
    for part in chunks(n, size, budget):
        columns = padded[:, part]
        projected = matrix @ columns.reshape(-1, n_in).T
        projected = projected.view(n_types, n_out, n_voxels + 1, columns.shape[1])
        total = z.new_zeros(n_out, n_voxels, columns.shape[1])
        for t in range(n_types):
            total += projected[t].index_select(1, table[:, t])
        out[:, part].copy_(total.permute(1, 2, 0))
    return out


@torch.library.custom_op("tripq::grid_correlation", mutates_args=())
def _grid_correlation(a: Tensor, b: Tensor, table: Tensor, budget: int) -> Tensor:
    """Sum over the edges of each type of a[src]^T b[dst], shape (T, R_a, R_b)."""
    n_types, n_a, n_b = table.shape[1], a.shape[2], b.shape[2]
    total = a.new_zeros(n_types * n_a, n_b)
    for rows, gathered in _gathered(a, table, budget):
        total.addmm_(gathered.T, b[rows].reshape(-1, n_b))
    return total.view(n_types, n_a, n_b)


@_grid_correlation.register_fake
def _(a: Tensor, b: Tensor, table: Tensor, budget: int) -> Tensor:
    return a.new_empty(table.shape[1], a.shape[2], b.shape[2])


def _gathered(z: Tensor, table: Tensor, budget: int) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of output voxels with the features of all their neighbours, (chunk N, T R)."""
    n_voxels, n, width = z.shape
    n_types = table.shape[1]
    padded = torch.cat([z, z.new_zeros(1, n, width)]).view(n_voxels + 1, n * width)
    size = z.element_size() * n_types * n * width
    for rows in chunks(n_voxels, size, min(_CACHED, budget)):
        gathered = padded.index_select(0, table[rows].reshape(-1))
        if n > 1:
            gathered = gathered.view(rows.stop - rows.start, n_types, n, width).transpose(1, 2)
        yield rows, gathered.reshape((rows.stop - rows.start) * n, n_types * width)


class _EdgeAggregation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, m: Tensor, dst: Tensor, src: Tensor, type_: Tensor, budget: int
    ) -> Tensor:
        ctx.save_for_backward(z, m, dst, src, type_)
        ctx.budget = budget
        return _edges(z, m, dst, src, type_, budget)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, m, *edges = ctx.saved_tensors
        if higher_derivatives():
            needed = ctx.needs_input_grad[:2]
            found = gradients_of_twin(lambda: edges_twin(z, m, *edges), (z, m), needed, grad)
            return *found, None, None, None, None
        dst, src, type_ = edges
        grad_z = grad_m = None
        if ctx.needs_input_grad[0]:
            grad_z = _edges(grad, m.transpose(1, 2), src, dst, type_, ctx.budget)
        if ctx.needs_input_grad[1]:
            grad_m = _edge_correlation(z, grad, dst, src, type_, m.shape[0], ctx.budget)
        return grad_z, grad_m, None, None, None, None


@torch.library.custom_op("tripq::edges", mutates_args=())
def _edges(z: Tensor, m: Tensor, dst: Tensor, src: Tensor, type_: Tensor, budget: int) -> Tensor:
    out = z.new_zeros(z.shape[0], z.shape[1], m.shape[2])
    for part in _edge_chunks(z, m, len(dst), budget):
        out.index_add_(0, dst[part], z[src[part]] @ m[type_[part]])
    return out


@_edges.register_fake
def _(z: Tensor, m: Tensor, dst: Tensor, src: Tensor, type_: Tensor, budget: int) -> Tensor:
    return z.new_empty(z.shape[0], z.shape[1], m.shape[2])


@torch.library.custom_op("tripq::edge_correlation", mutates_args=())
def _edge_correlation(
    a: Tensor, b: Tensor, dst: Tensor, src: Tensor, type_: Tensor, n_types: int, budget: int
) -> Tensor:
    """Sum over the edges of each type of a[src]^T b[dst], shape (T, R_a, R_b)."""
    total = a.new_zeros(n_types, a.shape[2], b.shape[2])
    for part in _edge_chunks(a, total, len(dst), budget):
        total.index_add_(0, type_[part], a[src[part]].transpose(1, 2) @ b[dst[part]])
    return total


@_edge_correlation.register_fake
def _(
    a: Tensor, b: Tensor, dst: Tensor, src: Tensor, type_: Tensor, n_types: int, budget: int
) -> Tensor:
    return a.new_empty(n_types, a.shape[2], b.shape[2])


def _edge_chunks(z: Tensor, m: Tensor, n_edges: int, budget: int) -> list[slice]:
    size = z.element_size() * max(z.shape[1] * z.shape[2], m.shape[1] * m.shape[2])
    return chunks(n_edges, size, min(_CACHED, budget))
