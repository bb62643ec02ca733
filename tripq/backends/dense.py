r"""The same sum as a dense convolution: the filter on the voxel grid, then ``conv3d``.

The authors' way.  Between directions, a filter on a grid of voxels is a matrix of shape
:math:`(Q_{out} d_{out}) \times (Q_{in} d_{in})` for each offset.  It is built by two matrix
products from small tables: the weights as coefficients of each product of two harmonics, times the
q-embeddings, times the p-embeddings.  The products and the convolution run near the peak rate of a
machine; but their cost grows with the square of the number of directions and with the box around
the voxels, and the filter must be held in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import record_function

from tripq.backends.parts import by_directions
from tripq.backends.tables import embed_p, embed_q, ungrouped
from tripq.filter import PQFilter, coupling_tensor, path_coupling
from tripq.graph import NodeSpace, PEdges, QSpace
from tripq.paths import Path


def evaluate(
    x: Tensor, edges: PEdges, q: QSpace | NodeSpace, filter: PQFilter, budget: int
) -> Tensor:
    """The sum over all edges; shapes as in `tripq.backends`.

    Raises
    ------
    ValueError
        Where the voxels are on no grid, or have directions of their own.
    """
    if isinstance(q, NodeSpace) or edges.grid is None or edges.steps is None:
        raise ValueError("the dense back end needs voxels on a grid that share their directions")
    n_voxels, n_out = x.shape[0], len(q.q_out)
    if not filter.paths or n_voxels == 0:
        return x.new_zeros(n_voxels, n_out, filter.dim_out)
    shape, position = edges.grid.cropped
    volume = _to_volume(x, shape, position)
    builder = DenseFilter(filter, edges.offsets.to(x.dtype), edges.steps, q)
    coefficients = builder.coefficients()

    def convolved(directions: Tensor, volume: Tensor, coefficients: Tensor) -> Tensor:
        weight = builder.weight(coefficients, directions)
        result = functional.conv3d(volume, weight, padding=[n // 2 for n in builder.cells])
        return _from_volume(result, position).unflatten(1, (len(directions), -1))

    # Parts are built again in the backward pass: all filters together are what does not fit.
    size = builder.numbers_per_direction
    return by_directions(convolved, n_out, size, budget, volume, coefficients)


@dataclass(frozen=True, eq=False)
class DenseFilter:
    """A filter on a grid of offsets and between directions.

    Attributes
    ----------
    filter : PQFilter
        Its weights and functions.
    offsets, steps : Tensors of shape (T, 3)
        The offsets p_out - p_in in mm and in voxels.
    q : QSpace
        The directions.
    """

    filter: PQFilter
    offsets: Tensor
    steps: Tensor
    q: QSpace

    @cached_property
    def cells(self) -> tuple[int, int, int]:
        """Shape of the smallest box around the offsets, in voxels."""
        x, y, z = (2 * self.steps.abs().amax(dim=0) + 1).tolist()
        return x, y, z

    @property
    def numbers_per_direction(self) -> int:
        """How many numbers the filter for one output direction and its intermediates have."""
        x, y, z = self.cells
        size = self.filter.dim_out * self.filter.dim_in * len(self.q.q_in)
        # As coefficients of the p-embeddings, and twice on the grid: conv3d makes a copy.
        return size * (sum(self._widths(outer=True).values()) + 2 * x * y * z)

    @record_function("tripq: filter")
    def coefficients(self) -> Tensor:
        """Of the products of two harmonics, (K_q_out, dim_out, B_q, dim_in, B_p).

        B_q counts (order, radial function of q_in, component), B_p the same in p.
        """
        filter = self.filter
        blocks: dict[tuple[int, int, int, int], Tensor] = {}
        for path, weight in filter.path_weights():
            i, o = filter.channels_of(path)
            key = (o, self._inner(path), i, self._outer(path))
            block = torch.einsum("uvabc,pqio->buocqviap", weight, _angular(path, weight))
            block = block.flatten(7, 8).flatten(5, 6).flatten(3, 4).flatten(1, 2)
            blocks[key] = blocks[key] + block if key in blocks else block

        inner, outer = self._widths(outer=False), self._widths(outer=True)

        def block_at(o: int, l_inner: int, i: int, l_outer: int) -> Tensor:
            if (o, l_inner, i, l_outer) in blocks:
                return blocks[o, l_inner, i, l_outer]
            n_out, n_in = len(filter.channels_out[o].index), len(filter.channels_in[i].index)
            return filter.weight.new_zeros(
                filter.radial[1], n_out, inner[l_inner], n_in, outer[l_outer]
            )

        inputs, outputs = range(len(filter.channels_in)), range(len(filter.channels_out))
        grouped = _joined(block_at, (outputs, inner, inputs, outer), dim=1)
        grouped = grouped.index_select(1, ungrouped(filter.channels_out, grouped.device))
        return grouped.index_select(3, ungrouped(filter.channels_in, grouped.device))

    @record_function("tripq: filter")
    def weight(self, coefficients: Tensor, directions: Tensor) -> Tensor:
        """The filter for some output directions, (Q dim_out, Q_in dim_in, *cells), for conv3d."""
        filter = self.filter
        q = replace(self.q, q_out=self.q.q_out[directions], weights=self.q.weights[directions])
        phi = filter.phi_q_out(q.q_out.to(coefficients.dtype).norm(dim=-1))
        mixed = torch.einsum("ck,kubvp->cubvp", phi, coefficients)
        if filter.kind == "diff":
            filled = self._on_joint_offsets(mixed, q)
        else:
            filled = self._on_separate_offsets(mixed, q)
        n_out, n_in = len(directions) * filter.dim_out, len(q.q_in) * filter.dim_in
        return filled.reshape(n_out, n_in, *self.cells)

    def _on_separate_offsets(self, mixed: Tensor, q: QSpace) -> Tensor:
        """(Q, dim_out, B_q, dim_in, B_p) to (Q, dim_out, Q_in, dim_in, cells)."""
        embedding = embed_q(self.offsets.new_zeros(3), q, self.filter)
        inner = torch.cat([e.flatten(1, 2) for e in embedding.values()], dim=1)
        embedding = embed_p(self.offsets, self.filter)
        outer = torch.cat([e.flatten(1) for e in embedding.values()], dim=1)
        by_direction = inner.transpose(1, 2)[:, None] @ mixed.flatten(3)
        return by_direction.unflatten(3, mixed.shape[3:]) @ self._on_cells(outer.T)

    def _on_joint_offsets(self, mixed: Tensor, q: QSpace) -> Tensor:
        """The same for a ``"diff"`` filter, whose inner harmonics are those of both offsets."""
        inner = torch.cat(
            [e.flatten(2, 3) for e in embed_q(self.offsets, q, self.filter).values()], dim=2
        )
        phi = self.filter.phi_p(self.offsets.norm(dim=-1))
        return self._on_cells(
            torch.einsum("tcbi,cubvt->cuivt", inner, torch.einsum("cubvk,tk->cubvt", mixed, phi))
        )

    def _on_cells(self, values: Tensor) -> Tensor:
        """Values (..., T) at the offsets to (..., cells), zero at others."""
        x, y, z = self.cells
        strides = torch.tensor([y * z, z, 1], device=self.steps.device)
        # conv3d takes the filter at in - out, from the corner of the box.
        place = (x * y * z) // 2 - (self.steps * strides).sum(dim=1)
        filled = values.new_zeros(*values.shape[:-1], x * y * z)
        return filled.index_copy(-1, place, values)

    def _widths(self, *, outer: bool) -> dict[int, int]:
        """Orders of the outer or inner harmonics, and how many functions each stands for."""
        number = self.filter.radial[0 if outer else 2]
        orders = {self._outer(p) if outer else self._inner(p) for p in self.filter.paths}
        return {l: number * (2 * l + 1) for l in sorted(orders)}

    def _inner(self, path: Path) -> int:
        return path.l_filter if self.filter.kind == "diff" else path.l_q

    def _outer(self, path: Path) -> int:
        return 0 if self.filter.kind == "diff" else path.l_p


def _angular(path: Path, like: Tensor) -> Tensor:
    """The couplings of the definition, [outer harmonic, inner harmonic, in, out]."""
    if path.filter == "diff":
        return coupling_tensor(path.l_filter, path.l_in, path.l_out, like)[None]
    return path_coupling(path, like)


def _joined(block: Callable[..., Tensor], keys: tuple[Iterable[int], ...], dim: int) -> Tensor:
    """The blocks of all combinations of keys, those of the first key along `dim` and so on."""
    if not keys:
        return block()
    parts = [_joined(partial(block, key), keys[1:], dim + 1) for key in keys[0]]
    return torch.cat(parts, dim=dim)


def _to_volume(x: Tensor, shape: tuple[int, ...], position: Tensor) -> Tensor:
    """(V, Q, dim) to (volumes, Q dim, x, y, z), zero outside the mask; the channels stand last."""
    rows = x.flatten(1)
    if len(rows) < math.prod(shape):
        rows = rows.new_zeros(math.prod(shape), rows.shape[1]).index_copy(0, position, rows)
    return rows.view(*shape, -1).movedim(-1, 1)


def _from_volume(volume: Tensor, position: Tensor) -> Tensor:
    """(volumes, channels, x, y, z) to (V, channels)."""
    rows = volume.movedim(1, -1).flatten(0, 3)
    return rows if len(rows) == len(position) else rows.index_select(0, position)
