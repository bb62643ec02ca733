r"""The same sum as a dense convolution: the filter on the voxel grid, then ``conv3d``.

This is the authors' method.  Between directions, a filter on a grid of voxels is a matrix of shape
:math:`(Q_{out} d_{out}) \times (Q_{in} d_{in})` for each offset.  It is built by two matrix
products from small tables: the weights as coefficients of each product of two harmonics, times the
q-embeddings, times the p-embeddings.  The products and the convolution run near the peak rate of a
machine.  But their cost grows with the square of the number of directions and with the box around
the voxels, and the filter must fit into memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.profiler import record_function

from tripq.backends.base import BackEnd, Request, Work, empty_sum, grid_obstacle
from tripq.backends.parts import by_directions
from tripq.backends.precision import convolve, single_precision
from tripq.backends.tables import (
    Index,
    Terms,
    coefficient_matrix,
    embed_q,
    q_embedding,
    radial_q_out,
)
from tripq.domain.nodes import NodeSpace
from tripq.domain.qspace import QSpace
from tripq.domain.voxels import PEdges, flat_places
from tripq.filters.filter import PQFilter
from tripq.filters.sparse import SparseMatrix
from tripq.infra.kept import keep, kept_with_owner
from tripq.kernels.launch import accumulation_dtype


@single_precision
def evaluate(
    x: Tensor, edges: PEdges, q: QSpace | NodeSpace, filter: PQFilter, budget: int
) -> Tensor:
    """The sum over all edges; shapes as in `tripq.backends`."""
    assert isinstance(q, QSpace)  # see `grid_obstacle`
    assert edges.grid is not None
    if not filter.paths or not len(x):
        return empty_sum(x, q, filter)
    shape, position = edges.grid.cropped
    volume = _to_volume(x, shape, position)
    builder = DenseFilter(filter, edges, q, accumulation_dtype(x.dtype))  # half under autocast
    coefficients = builder.coefficients()

    def convolved(part: slice, volume: Tensor, coefficients: Tensor) -> Tensor:
        weight = builder.weight(coefficients, part)
        result = convolve(volume, weight, [n // 2 for n in builder.cells])
        return _from_volume(result, position).unflatten(1, (part.stop - part.start, -1))

    # Parts are built again in the backward pass: all filters together are what does not fit.
    size = builder.numbers_per_direction
    return by_directions(convolved, len(q.q_out), size, budget, volume, coefficients)


@dataclass(frozen=True, eq=False)
class DenseFilter:
    """A filter on a grid of offsets and between directions.

    Attributes
    ----------
    filter : PQFilter
        Its weights and functions.
    edges : PEdges
        The p-edges of a grid.
    q : QSpace
        The directions.
    dtype : torch.dtype
        In which it is made.
    """

    filter: PQFilter
    edges: PEdges
    q: QSpace
    dtype: torch.dtype

    @property
    def cells(self) -> tuple[int, int, int]:
        """Shape of the smallest box around the offsets, in voxels."""
        x, y, z = self.edges.margin
        return 2 * x + 1, 2 * y + 1, 2 * z + 1

    @property
    def numbers_per_direction(self) -> int:
        """How many numbers the filter for one output direction and its intermediates have."""
        x, y, z = self.cells
        size = self.filter.dim_out * self.filter.dim_in * len(self.q.q_in)
        # As coefficients of the p-embeddings, and twice on the grid: conv3d makes a copy.
        return size * (_shape(self.filter)[-1] + 2 * x * y * z)

    @record_function("tripq: filter")
    def coefficients(self) -> Tensor:
        """Of the products of two harmonics, (K_q_out, dim_out, B_q, dim_in, B_p).

        B_q counts (order, radial function of q_in, component), B_p the same in p.
        """
        flat = _coefficient_matrix(self.filter).times(self.filter.exact_weight)
        return flat.view(_shape(self.filter))

    @record_function("tripq: filter")
    def weight(self, coefficients: Tensor, part: slice) -> Tensor:
        """The filter for some output directions, (Q dim_out, Q_in dim_in, *cells), for conv3d."""
        filter = self.filter
        q = self.q.to_outputs(part)
        phi = radial_q_out(q, filter, coefficients.dtype)
        mixed = torch.einsum("ck,kubvp->cubvp", phi, coefficients)
        if filter.joint:
            filled = self._on_joint_offsets(mixed, q)
        else:
            filled = self._on_separate_offsets(mixed, q)
        n_out, n_in = len(q.q_out) * filter.dim_out, len(q.q_in) * filter.dim_in
        return filled.reshape(n_out, n_in, *self.cells)

    def _on_separate_offsets(self, mixed: Tensor, q: QSpace) -> Tensor:
        """(Q, dim_out, B_q, dim_in, B_p) to (Q, dim_out, Q_in, dim_in, cells)."""
        key = self.filter.constants_q(q, self.dtype)
        inner = keep(q, key and ("dense", key), lambda: self._inner(q))
        key = self.filter.constants_p(self.edges, self.dtype)
        outer = keep(self.edges, key and ("dense", key), self._outer)
        by_direction = inner @ mixed.flatten(3)
        return by_direction.unflatten(3, mixed.shape[3:]) @ outer

    def _inner(self, q: QSpace) -> Tensor:
        """The q-embedding as matrices, (Q, 1, Q_in, B_q)."""
        embedding = q_embedding(q, self.filter, self.dtype)
        rows = torch.cat([e.flatten(1, 2) for e in embedding.values()], dim=1)
        return rows.transpose(1, 2)[:, None]

    def _outer(self) -> Tensor:
        """The p-embedding on the grid of offsets, (B_p, cells)."""
        embedding = self.filter.embed_p(self.edges, self.dtype)
        return self._on_cells(torch.cat([e.flatten(1) for e in embedding.values()], dim=1).T)

    def _on_joint_offsets(self, mixed: Tensor, q: QSpace) -> Tensor:
        """The same for a ``"diff"`` filter, whose inner harmonics are those of both offsets."""
        total = mixed.new_zeros(())
        for edges in self.edges.at_points():
            embedding = embed_q(edges.offsets.to(self.dtype), q, self.filter)
            inner = torch.cat([e.flatten(2, 3) for e in embedding.values()], dim=2)
            phi = self.filter.radial_p(edges, self.dtype)
            total = total + torch.einsum(
                "tcbi,cubvt->cuivt", inner, torch.einsum("cubvk,tk->cubvt", mixed, phi)
            )
        return self._on_cells(total)

    def _on_cells(self, values: Tensor) -> Tensor:
        """Values (..., T) at the offsets to (..., cells), zero at others."""
        x, y, z = self.cells
        assert self.edges.steps is not None
        # conv3d takes the filter at in - out, from the corner of the box.
        place = (x * y * z) // 2 - flat_places(self.edges.steps, self.cells)
        filled = values.new_zeros(*values.shape[:-1], x * y * z)
        return filled.index_copy(-1, place, values)


# -- coefficients --------------------------------------------------------------------------------


@kept_with_owner
def _coefficient_matrix(filter: PQFilter) -> SparseMatrix:
    inner, outer = _starts(filter, outer=False), _starts(filter, outer=True)
    shape = _shape(filter)
    _, n_out, n_inner, n_in, n_outer = shape

    def place(t: Terms) -> Index:
        row = inner[t.path.inner] + t.k_q_in * (2 * t.path.inner + 1) + t.m_q
        column = outer[t.path.outer] + t.k_p * (2 * t.path.outer + 1) + t.m_p
        return (
            ((t.k_q_out * n_out + t.output) * n_inner + row) * n_in + t.input
        ) * n_outer + column

    return coefficient_matrix(filter, math.prod(shape), place)


def _shape(filter: PQFilter) -> tuple[int, int, int, int, int]:
    """(K_q_out, dim_out, B_q, dim_in, B_p)."""
    n_inner, n_outer = (sum(_widths(filter, outer=outer).values()) for outer in (False, True))
    return filter.radial[1], filter.dim_out, n_inner, filter.dim_in, n_outer


def _widths(filter: PQFilter, *, outer: bool) -> dict[int, int]:
    """Orders of the outer or inner harmonics, and the number of functions of each."""
    number = filter.radial[0 if outer else 2]
    orders = {path.outer if outer else path.inner for path in filter.paths}
    return {l: number * (2 * l + 1) for l in sorted(orders)}


def _starts(filter: PQFilter, *, outer: bool) -> dict[int, int]:
    """Where the functions of each order begin."""
    widths = _widths(filter, outer=outer)
    return dict(zip(widths, accumulate(widths.values(), initial=0), strict=False))


# -- volumes -------------------------------------------------------------------------------------


def _to_volume(x: Tensor, shape: tuple[int, ...], position: Tensor) -> Tensor:
    """(V, Q, dim) to (volumes, Q dim, x, y, z), zero outside the mask; the channels are last."""
    rows = x.flatten(1)
    if len(rows) < math.prod(shape):
        rows = rows.new_zeros(math.prod(shape), rows.shape[1]).index_copy(0, position, rows)
    return rows.view(*shape, -1).movedim(-1, 1)


def _from_volume(volume: Tensor, position: Tensor) -> Tensor:
    """(volumes, channels, x, y, z) to (V, channels)."""
    rows = volume.movedim(1, -1).flatten(0, 3)
    return rows if len(rows) == len(position) else rows.index_select(0, position)


# -- what it takes -------------------------------------------------------------------------------


def cost(request: Request) -> Work:
    """The filter on the grid, and the convolution of the box around the voxels."""
    r, f, stages = request, request.filter, request.stages
    matrix = r.n_out * f.dim_out * r.n_in * f.dim_in
    mixing = r.n_out * f.radial[1] * stages.embedding * stages.outer * f.dim_out * f.dim_in
    if f.joint:
        building = mixing + matrix * r.n_types * stages.embedding
    else:
        building = mixing + matrix * (stages.embedding + r.n_types) * stages.outer
    volume = r.n_box * r.n_in * f.dim_in
    held = matrix * (stages.outer + 2 * r.n_cells) + r.n_box * r.n_out * f.dim_out
    return Work(building + r.n_box * r.n_cells * matrix, 2 * (held + volume), held, volume)


# In bfloat16 both passes took .6 of the time in float32, on a CPU with instructions for it.
_RATES = {"cpu": 70.0, "cpu, bfloat16": 120.0, "cuda": 12_000.0}

BACK_END = BackEnd("dense", grid_obstacle, cost, _RATES, evaluate)
