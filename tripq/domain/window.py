r"""Means over the surroundings of each voxel, which a Gaussian of the distance weights.

With positions p in mm, volumes v, and sums s and numbers n of the rows of features of each voxel,

.. math::
    m_i = \frac{\sum_j g_{ij} v_j s_j}{\sum_j g_{ij} v_j n_j}, \qquad
    g_{ij} = \exp\left(-\frac{|p_i - p_j|^2}{2 \sigma^2}\right),

which turns and moves with the voxels, and on a finer grid approximates the same integral.

On a grid with orthogonal axes, g is a product of one matrix for each axis.  A Gaussian that is wide
against the voxels has few eigenvalues that count: with :math:`B = U \sqrt{\Lambda}` each matrix is
:math:`B B^T`, and the sums are products with six small matrices.  Other voxels are taken in pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from tripq.domain.scan_graph import ScanGraph
from tripq.infra.chunks import chunks
from tripq.infra.kept import kept_with_owner

#: Memory of a volume, and of a matrix of pairs, that is held at a time: larger ones are slower.
_BYTES = 1 << 24

#: Eigenvalues below this share of the largest are left out.
_LEAST = 1e-12

#: Cosine of the angle of two axes that are orthogonal.
_ORTHOGONAL = 1e-6


@dataclass(frozen=True, eq=False)
class GridWindow:
    """Of voxels on a grid with orthogonal axes.

    Attributes
    ----------
    shape : tuple of three int
        Of the smallest box around the voxels.
    places : Tensor of shape (V,), int64
        Flat places of the voxels in it.
    factors : tuple of three Tensors of shape (n, rank)
        For each axis of n voxels the matrix B.
    """

    shape: tuple[int, int, int]
    places: Tensor
    factors: tuple[Tensor, Tensor, Tensor]

    @property
    def n_voxels(self) -> int:
        """Number of voxels."""
        return len(self.places)

    def sums(self, x: Tensor) -> Tensor:
        """Weighted sums around each voxel, (V, C)."""
        width = max(1, _BYTES // (x.dtype.itemsize * prod(self.shape)))
        return torch.cat([self.at_once(part) for part in x.split(width, dim=1)], dim=1)

    def at_once(self, x: Tensor) -> Tensor:
        """The same in one volume of all columns."""
        volume = x.new_zeros(prod(self.shape), x.shape[1]).index_copy(0, self.places, x)
        lengths = list(self.shape)
        for axis, factor in enumerate(self.factors):
            volume, lengths[axis] = _along(volume, lengths, axis, factor.T)
        for axis, factor in reversed(list(enumerate(self.factors))):
            volume, lengths[axis] = _along(volume, lengths, axis, factor)
        return volume.reshape(-1, x.shape[1])[self.places]


def _along(volume: Tensor, lengths: list[int], axis: int, matrix: Tensor) -> tuple[Tensor, int]:
    """A matrix times a volume along an axis, and the new length of the axis."""
    before = prod(lengths[:axis])
    return matrix @ volume.reshape(before, lengths[axis], -1), matrix.shape[0]


@dataclass(frozen=True, eq=False)
class PointWindow:
    """Of voxels anywhere.

    Attributes
    ----------
    p : Tensor of shape (V, 3)
        Positions in mm.
    volumes : Tensor of shape (V,) or None
        In mm3; None if they are equal.
    sigma : float
        Of the Gaussian, in mm.
    """

    p: Tensor
    volumes: Tensor | None
    sigma: float

    @property
    def n_voxels(self) -> int:
        """Number of voxels."""
        return len(self.p)

    def sums(self, x: Tensor) -> Tensor:
        """Weighted sums around each voxel, (V, C)."""
        if self.volumes is not None:
            x = x * self.volumes[:, None]
        places = (self.p - self.p.mean(dim=0)) / self.sigma
        return torch.cat([_gaussian(part, places) @ x for part in self._parts(places)])

    def _parts(self, places: Tensor) -> Iterator[Tensor]:
        return (places[rows] for rows in chunks(len(places), 8 * len(places), _BYTES))


def _gaussian(a: Tensor, b: Tensor) -> Tensor:
    """Of the distances between places (N, 3) and (M, 3) in standard deviations, (N, M)."""
    squared = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1) - 2 * a @ b.T
    return torch.exp(-squared.clamp(min=0) / 2)


def windows_of(scan: ScanGraph, sigma: float) -> Sequence[GridWindow | PointWindow]:
    """Those of the patches of a scan, which do not see each other, in the order of its voxels."""
    on_grid = () if scan.p.requires_grad else _grid_windows(scan, sigma)
    return on_grid or _point_windows(scan, sigma)


@kept_with_owner
def _grid_windows(scan: ScanGraph, sigma: float) -> tuple[GridWindow, ...]:
    """One for each patch; none unless they are on a grid with orthogonal axes."""
    axes, grid = scan.edges.axes, scan.grid
    if axes is None or grid is None:
        return ()
    unit = axes / axes.norm(dim=0)
    if (unit.T @ unit - torch.eye(3).to(unit)).abs().max() > _ORTHOGONAL:
        return ()
    edges = axes.norm(dim=0).tolist()
    patches = grid.voxels[:, 1:].split(_patch_sizes(scan))
    return tuple(_grid_window(voxels, edges, sigma) for voxels in patches)


def _grid_window(voxels: Tensor, edges: list[float], sigma: float) -> GridWindow:
    low = voxels.amin(dim=0)
    x, y, z = (voxels.amax(dim=0) - low + 1).tolist()
    places = ((voxels - low) * torch.tensor([y * z, z, 1]).to(voxels)).sum(dim=1)
    first, second, third = (
        _factor(length, edge / sigma).to(voxels.device)
        for length, edge in zip((x, y, z), edges, strict=True)
    )
    return GridWindow((x, y, z), places, (first, second, third))


def _factor(length: int, step: float) -> Tensor:
    """The matrix B of an axis of voxels that are `step` standard deviations apart."""
    places = step * torch.arange(length, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(torch.exp(-(places[:, None] - places).square() / 2))
    counts = values > _LEAST * values[-1]
    return vectors[:, counts] * values[counts].sqrt()


def _point_windows(scan: ScanGraph, sigma: float) -> list[PointWindow]:
    if scan.grid is None:
        return [PointWindow(scan.p, scan.edges.volumes, sigma)]
    return [PointWindow(p, None, sigma) for p in scan.p.split(_patch_sizes(scan))]


@kept_with_owner
def _patch_sizes(scan: ScanGraph) -> list[int]:
    """Voxels of each patch on a grid that has any."""
    assert scan.grid is not None
    sizes: list[int] = torch.bincount(scan.grid.voxels[:, 0]).tolist()
    return [size for size in sizes if size]
