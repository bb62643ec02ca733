"""Voxels: their positions in a volume, and the edges between them (p-edges)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from tripq.domain.adjacency import Adjacency
from tripq.domain.checks import checked_radius, coordinates
from tripq.domain.neighbours import (
    closer_than,
    grid_offsets,
    point_neighbours,
    voxel_offsets,
)
from tripq.domain.quadrature import REFERENCE_VOLUME, Quadrature, VoxelRule, voxel_points
from tripq.infra.kept import kept_property


def flat_places(indices: Tensor, shape: Sequence[int]) -> Tensor:
    """Places of indices (..., d) in an array of this shape without its axes; also of differences.

    Examples
    --------
    >>> flat_places(torch.tensor([[0, 0, 1], [1, 0, 0]]), (2, 3, 4)).tolist()
    [1, 12]
    """
    strides = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    # Not a matrix product: CUDA has none of integers.
    return (indices * torch.tensor(strides, device=indices.device)).sum(dim=-1)


@dataclass(frozen=True, eq=False)
class VoxelGrid:
    """Positions of the voxels of a scan in its volume, or in the volumes of its patches.

    Attributes
    ----------
    shapes : tuple of (int, int, int)
        Of each volume.
    voxels : Tensor of shape (V, 4), int64
        Volume and indices in it, in the order of ``np.argwhere(mask)``.
    """

    shapes: tuple[tuple[int, int, int], ...]
    voxels: Tensor

    def neighbours(self, steps: Tensor) -> Tensor:
        """Number of the voxel at ``out - step``, for steps (T, 3), V where there is none; (V, T).

        Examples
        --------
        >>> row = VoxelGrid(((3, 1, 1),), torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 2, 0, 0]]))
        >>> row.neighbours(torch.tensor([[0, 0, 0], [1, 0, 0]])).tolist()
        [[0, 3], [1, 0], [2, 1]]
        """
        number = len(self.voxels)
        if number == 0 or len(steps) == 0:
            return self.voxels.new_empty(number, len(steps))
        low, high = self.voxels.amin(dim=0), self.voxels.amax(dim=0)
        n, *sizes = (high - low + 1).tolist()
        margins = steps.abs().amax(dim=0)
        room = [size + 2 * m for size, m in zip(sizes, margins.tolist(), strict=True)]
        places = flat_places(self.voxels - low, [n, *room]) + flat_places(margins, room)
        numbers = self.voxels.new_full((n * prod(room),), number)
        numbers[places] = torch.arange(number, device=places.device)
        return numbers[places[:, None] - flat_places(steps, room)]

    def n_pairs(self, steps: Tensor) -> int:
        """How many ordered pairs (out, in) of voxels are one of the steps (T, 3) apart."""
        if len(self.voxels) == 0 or len(steps) == 0:
            return 0
        shape, places = self.cropped
        box = torch.zeros(shape, dtype=torch.float64, device=places.device)
        box.view(-1)[places] = 1
        # The autocorrelation of the mask, with room for the longest steps.
        room = [n + m for n, m in zip(shape[1:], steps.abs().amax(dim=0).tolist(), strict=True)]
        power = torch.fft.rfftn(box, s=room).abs().square().sum(dim=0)
        counts = torch.fft.irfftn(power, s=room).round()
        return int(counts[tuple((steps % steps.new_tensor(room)).T)].sum())

    def join(self, other: VoxelGrid) -> VoxelGrid:
        """The volumes of both, one list after the other."""
        shift = torch.tensor([len(self.shapes), 0, 0, 0], device=self.voxels.device)
        return VoxelGrid(self.shapes + other.shapes, torch.cat([self.voxels, other.voxels + shift]))

    @kept_property
    def cropped(self) -> tuple[tuple[int, int, int, int], Tensor]:
        """Shape (volumes, x, y, z) of the smallest boxes around the voxels, flat places in them."""
        low = self.voxels.amin(dim=0)
        n, x, y, z = (self.voxels.amax(dim=0) - low + 1).tolist()
        return (n, x, y, z), flat_places(self.voxels - low, (n, x, y, z))


@dataclass(frozen=True, eq=False)
class PEdges:
    """Edges between the voxels of a scan, each with the type of its offset.

    Attributes
    ----------
    n_voxels : int
        Number of voxels.
    offsets : Tensor of shape (T, 3), float64
        Offsets p_out - p_in in mm, one for each edge type.
    pairs : Tensor of shape (3, E), int64, or None
        For irregular points, where every edge has its own type: output voxel, input voxel and edge
        type of each edge, ordered by output voxel.  On a grid edges follow from the steps: None,
        unless they were listed by `with_list`.
    grid : VoxelGrid or None
        Positions of the voxels, on a grid.
    steps : Tensor of shape (T, 3), int64, or None
        The offsets in voxel indices, on a grid.
    axes : Tensor of shape (3, 3), float64, or None
        On a grid the edges of a voxel in mm: the columns of the linear part of the affine.
    volumes : Tensor of shape (V,), float64, or None
        Volumes in mm3 of irregular points; None for `REFERENCE_VOLUME` each.
    weights : Tensor of shape (T,), float64, or None
        Quadrature weight of each edge type, see `integrated`; None for a sum.
    rule : VoxelRule or None
        Points over which filters are averaged around each offset; None for the offset alone.
    """

    n_voxels: int
    offsets: Tensor
    pairs: Tensor | None = None
    grid: VoxelGrid | None = None
    steps: Tensor | None = None
    axes: Tensor | None = None
    volumes: Tensor | None = None
    weights: Tensor | None = None
    rule: VoxelRule | None = None

    @classmethod
    def listed(
        cls,
        n_voxels: int,
        offsets: Tensor,
        dst: Tensor,
        src: Tensor,
        type_: Tensor,
        volumes: Tensor | None = None,
    ) -> PEdges:
        """Edges one by one, ordered by output voxel."""
        return cls(n_voxels, offsets, torch.stack([dst, src, type_]), volumes=volumes)

    @kept_property
    def table(self) -> Tensor | None:
        """The neighbours on a grid, (V, T), int64; None for irregular points.

        A voxel has at most one neighbour of each type: its number, or V if there is none.
        """
        if self.grid is None or self.steps is None:
            return None
        return self.grid.neighbours(self.steps)

    @kept_property
    def edge_list(self) -> Tensor:
        """All edges as `pairs`, on a grid too."""
        if self.pairs is not None:
            return self.pairs
        table = self.table
        assert table is not None
        dst, type_ = torch.nonzero(table < len(table), as_tuple=True)
        return torch.stack([dst, table[dst, type_], type_])

    def with_list(self) -> PEdges:
        """The same edges; copies with other offsets share the list of them."""
        return replace(self, pairs=self.edge_list)

    @property
    def dst(self) -> Tensor:
        """Output voxel of each edge, shape (E,)."""
        return self.edge_list[0]

    @property
    def src(self) -> Tensor:
        """Input voxel of each edge, shape (E,)."""
        return self.edge_list[1]

    @property
    def type(self) -> Tensor:
        """Edge type of each edge, shape (E,)."""
        return self.edge_list[2]

    @kept_property
    def n_edges(self) -> int:
        """Number of edges; on a grid they need not be listed for it."""
        if self.grid is None or self.steps is None:
            return self.edge_list.shape[1]
        return self.grid.n_pairs(self.steps)

    @kept_property
    def margin(self) -> tuple[int, int, int]:
        """How many voxels the longest offset reaches along each axis of a grid."""
        assert self.steps is not None
        x, y, z = self.steps.abs().amax(dim=0).tolist()
        return x, y, z

    @kept_property
    def adjacency(self) -> Adjacency:
        """The edges listed by each end and by type."""
        return Adjacency.build(
            self.dst, self.src, self.type, self.n_voxels, self.n_voxels, len(self.offsets)
        )

    @kept_property
    def transposed_table(self) -> Tensor | None:
        """The output voxel for each (input voxel, type), V where there is none."""
        if (table := self.table) is None:
            return None
        dst, src, type_ = self.edge_list
        transposed = torch.full_like(table, len(table))
        transposed[src, type_] = dst
        return transposed

    def within(self, radius: float) -> PEdges:
        """The edges shorter than `radius` mm."""
        keep = closer_than(self.offsets.detach().norm(dim=-1), radius)
        if bool(keep.all()):
            return self
        if self.grid is not None and self.steps is not None:
            return replace(self, offsets=self.offsets[keep], pairs=None, steps=self.steps[keep])
        kept = keep[self.type]
        renumbered = torch.cumsum(keep, 0) - 1
        return PEdges.listed(
            self.n_voxels,
            self.offsets[keep],
            self.dst[kept],
            self.src[kept],
            renumbered[self.type[kept]],
            self.volumes,
        )

    def integrated(self, radius: float) -> PEdges:
        """The edges of an integral over a ball of `radius` mm, see `tripq.domain.quadrature`.

        On a grid they come from every voxel that intersects the ball, not only those with their
        centre in it.  Irregular points have a volume and no shape: filters are not averaged.  A
        radius of 0 joins each voxel with itself, as a sum does.
        """
        if radius == 0:
            return self.within(radius)
        if self.axes is None or self.grid is None:
            near = self.within(radius)
            if near.volumes is None:
                weights = torch.ones_like(near.offsets[:, 0])
            else:
                weights = near.volumes.new_zeros(len(near.offsets))
                weights = weights.index_copy(0, near.type, near.volumes[near.src])
                weights = weights / REFERENCE_VOLUME
            return replace(near, weights=weights)
        axes = coordinates(self.axes)
        points, shares = voxel_points(axes, radius)
        steps = voxel_offsets(axes, points, radius)
        offsets = torch.from_numpy(steps @ axes.T)
        volume = abs(float(np.linalg.det(axes)))
        device = self.axes.device
        return PEdges(
            self.n_voxels,
            offsets.to(device),
            grid=self.grid,
            steps=torch.from_numpy(steps).to(device),
            axes=self.axes,
            weights=torch.full_like(offsets[:, 0], volume / REFERENCE_VOLUME).to(device),
            rule=VoxelRule(
                torch.from_numpy(points).to(device), torch.from_numpy(shares).to(device), radius
            ),
        )

    def of_types(self, part: slice) -> PEdges:
        """Some of the edge types, without the edges: for tables of embeddings."""
        weights = None if self.weights is None else self.weights[part]
        none = torch.empty(3, 0, dtype=torch.int64, device=self.offsets.device)
        return PEdges(0, self.offsets[part], none, weights=weights, rule=self.rule)

    def at_points(self) -> Iterator[PEdges]:
        """For each point of the rule the edges at the offsets shifted there, with its weights.

        The sum over them is what `rule` stands for; without a rule they are the edges themselves.
        """
        if self.rule is None or self.weights is None:
            yield self
            return
        for point, share in zip(self.rule.points, self.rule.shares, strict=True):
            offsets = self.offsets + point
            weights = share * self.weights * inside(offsets.norm(dim=-1), self.rule.radius)
            yield replace(self, offsets=offsets, weights=weights, rule=None)


def neighbour_steps(
    axes: NDArray[np.float64], radius: float, quadrature: Quadrature
) -> NDArray[np.int64]:
    """Index offsets (T, 3), out - in, of the neighbours that a layer sums over on a grid.

    Parameters
    ----------
    axes : ndarray of shape (3, 3)
        Linear part of the affine, in mm.
    radius : float
        Of the layer, in mm.
    quadrature : {"integral", "sum"}
        Of the layer.

    Examples
    --------
    >>> [len(neighbour_steps(2 * np.eye(3), 3.0, kind)) for kind in ("integral", "sum")]
    [27, 19]
    """
    if quadrature == "sum" or radius == 0:
        return grid_offsets(axes, radius)
    points, _ = voxel_points(axes, radius)
    return voxel_offsets(axes, points, radius)


def inside(lengths: Tensor, radius: float) -> Tensor:
    """1.0 where a filter of `radius` mm has its values, 0.0 beyond; dtype as `lengths`."""
    return closer_than(lengths.detach(), radius).to(lengths.dtype)


def point_edges(points: Tensor, radius: float, volumes: Tensor | None = None) -> PEdges:
    """Edges between points (V, 3) that are closer than a radius in mm; `volumes` (V,) in mm3."""
    dst, src = (
        torch.from_numpy(index)
        for index in point_neighbours(coordinates(points), checked_radius(radius))
    )
    offsets = points[dst] - points[src]
    return PEdges.listed(len(points), offsets, dst, src, torch.arange(len(dst)), volumes)


def grid_edges(mask: ArrayLike, affine: ArrayLike, radius: float) -> tuple[Tensor, PEdges]:
    """Centres (V, 3) in mm of the voxels of a mask, and the edges between them.

    Raises
    ------
    ValueError
        As ``PQGraph.from_grid`` says.
    """
    values = np.asarray(mask)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("the mask holds values that are not finite")
    selected = values != 0
    if selected.ndim != 3:
        raise ValueError(f"the mask must be 3D, not of shape {selected.shape}")
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise ValueError("the affine must be a finite matrix of shape (4, 4)")
    linear = matrix[:3, :3]
    if abs(np.linalg.det(linear)) < 1e-12:
        raise ValueError("the affine is singular: it has a voxel axis of no length")
    offsets = grid_offsets(linear, checked_radius(radius))
    voxels = np.argwhere(selected)
    x, y, z = selected.shape
    edges = PEdges(
        len(voxels),
        torch.from_numpy(offsets @ linear.T),
        grid=VoxelGrid(((x, y, z),), torch.from_numpy(np.pad(voxels, ((0, 0), (1, 0))))),
        steps=torch.from_numpy(offsets),
        axes=torch.from_numpy(linear.copy()),
    )
    return torch.from_numpy(voxels @ linear.T + matrix[:3, 3]), edges
