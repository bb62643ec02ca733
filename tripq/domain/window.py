r"""Means over the surroundings of each voxel, which a Gaussian of the distance weights.

With positions p in mm, volumes v, and sums s and numbers n of the rows of features of each voxel,

.. math::
    m_i = \frac{\sum_j g_{ij} v_j s_j}{\sum_j g_{ij} v_j n_j}, \qquad
    g_{ij} = \exp\left(-\frac{|p_i - p_j|^2}{2 \sigma^2}\right),

which does not change if all voxels are rotated or shifted together, and approximates the same
integral on a finer grid.

On a grid with orthogonal axes, g is a product of one matrix for each axis.  A Gaussian that is wide
against the voxels has few eigenvalues above rounding error: with :math:`B = U \sqrt{\Lambda}` each
matrix is :math:`B B^T`, and the sums are products with six small matrices.  On other grids, g
depends on the difference of the indices alone, and the sums are a convolution, by FFT.  Anywhere
else the sums run over all pairs of voxels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tripq.domain.scan_graph import ScanGraph
from tripq.domain.voxels import flat_places
from tripq.infra.chunks import chunks
from tripq.infra.kept import kept_with_owner

#: Bytes of the volumes, and of the matrices of pairs, that are computed at a time: they stay in the
#: cache of a processor.
_BYTES = 1 << 24

#: Eigenvalues below this share of the largest are left out.
_LEAST = 1e-12

#: Largest cosine between axes that count as orthogonal.  Means change by less than a thousandth;
#: directions in files are rounded to 5 digits or so.
_ORTHOGONAL = 1e-3


@dataclass(frozen=True, eq=False)
class GridWindow:
    """Window for voxels on a grid with orthogonal axes.

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
        return _by_columns(self.sums_in_one_volume, x, math.prod(self.shape))

    def sums_in_one_volume(self, x: Tensor) -> Tensor:
        """The same, with all columns in memory at once."""
        volume = x.new_zeros(math.prod(self.shape), x.shape[1]).index_copy(0, self.places, x)
        lengths = list(self.shape)
        for axis, factor in enumerate(self.factors):
            volume, lengths[axis] = _along(volume, lengths, axis, factor.T)
        for axis, factor in reversed(list(enumerate(self.factors))):
            volume, lengths[axis] = _along(volume, lengths, axis, factor)
        return volume.reshape(-1, x.shape[1])[self.places]


def _along(volume: Tensor, lengths: list[int], axis: int, matrix: Tensor) -> tuple[Tensor, int]:
    """A matrix times a volume along an axis, and the new length of the axis."""
    before = math.prod(lengths[:axis])
    return matrix @ volume.reshape(before, lengths[axis], -1), matrix.shape[0]


def _by_columns(function: Callable[[Tensor], Tensor], x: Tensor, cells: int) -> Tensor:
    """A function of some columns of x at a time, whose volumes have so many cells."""
    width = max(1, _BYTES // (x.dtype.itemsize * cells))
    return torch.cat([function(part) for part in x.split(width, dim=1)], dim=1)


@dataclass(frozen=True, eq=False)
class ShearedWindow:
    """Window for voxels on a grid with any axes.

    Attributes
    ----------
    shape : tuple of three int
        Of the smallest box around the voxels, and room for the differences of their indices.
    places : Tensor of shape (V,), int64
        Flat places of the voxels in it.
    spectrum : Tensor of the shape of a real FFT of the box
        Of the Gaussian, which is real.
    """

    shape: tuple[int, int, int]
    places: Tensor
    spectrum: Tensor

    @property
    def n_voxels(self) -> int:
        """Number of voxels."""
        return len(self.places)

    def sums(self, x: Tensor) -> Tensor:
        """Weighted sums around each voxel, (V, C)."""
        return _by_columns(self._sums, x, math.prod(self.shape))

    def _sums(self, x: Tensor) -> Tensor:
        volume = x.new_zeros(x.shape[1], math.prod(self.shape)).index_copy(1, self.places, x.T)
        spectrum = torch.fft.rfftn(volume.unflatten(1, self.shape), dim=(1, 2, 3))
        found = torch.fft.irfftn(spectrum * self.spectrum, s=self.shape, dim=(1, 2, 3))
        return found.flatten(1)[:, self.places].T


@dataclass(frozen=True, eq=False)
class PointWindow:
    """Window for voxels at any positions.

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
        rows = chunks(len(places), 8 * len(places), _BYTES)
        return torch.cat([x[:0], *(_gaussian(places[part], places) @ x for part in rows)])


def _gaussian(a: Tensor, b: Tensor) -> Tensor:
    """Of the distances between places (N, 3) and (M, 3) in standard deviations, (N, M)."""
    squared = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1) - 2 * a @ b.T
    return torch.exp(-squared.clamp(min=0) / 2)


@dataclass(frozen=True, eq=False)
class WholeWindow:
    """Window that is infinitely wide.

    Attributes
    ----------
    volumes : Tensor of shape (V, 1)
        In mm3, or 1 if they are equal.
    """

    volumes: Tensor

    @property
    def n_voxels(self) -> int:
        """Number of voxels."""
        return len(self.volumes)

    def sums(self, x: Tensor) -> Tensor:
        """Sums over all voxels, for each of them, (V, C)."""
        return (x * self.volumes).sum(dim=0, keepdim=True).expand_as(x)


Window = GridWindow | ShearedWindow | PointWindow | WholeWindow


def windows_of(scan: ScanGraph, sigma: float) -> Sequence[Window]:
    """The windows of the patches of a scan, in the order of its voxels.

    Sums do not extend from one patch to another.
    """
    volumes = scan.edges.volumes
    sizes = [scan.n_voxels] if scan.grid is None else _patch_sizes(scan)
    if math.isinf(sigma):
        every = scan.p.new_ones(scan.n_voxels) if volumes is None else volumes
        return [WholeWindow(part[:, None]) for part in every.split(sizes)]
    if scan.grid is None or scan.p.requires_grad:
        return [PointWindow(p, volumes, sigma) for p in scan.p.split(sizes)]
    windows: Sequence[Window] = _grid_windows(scan, sigma)
    return windows


@kept_with_owner
def _grid_windows(scan: ScanGraph, sigma: float) -> list[Window]:
    axes, grid = scan.edges.axes, scan.grid
    assert axes is not None
    assert grid is not None
    cosines = (axes / axes.norm(dim=0)).T @ (axes / axes.norm(dim=0))
    make = _sheared_window if cosines.triu(1).abs().max() > _ORTHOGONAL else _grid_window
    patches = grid.voxels[:, 1:].split(_patch_sizes(scan))
    return [make(voxels, axes / sigma) for voxels in patches]


@kept_with_owner
def _patch_sizes(scan: ScanGraph) -> list[int]:
    """Voxels of each patch on a grid, without patches that have none."""
    assert scan.grid is not None
    sizes: list[int] = torch.bincount(scan.grid.voxels[:, 0]).tolist()
    return [size for size in sizes if size]


def _grid_window(voxels: Tensor, axes: Tensor) -> GridWindow:
    """Of voxels (V, 3) on axes (3, 3) in standard deviations."""
    (x, y, z), places = _boxed(voxels)
    first, second, third = (
        _factor(length, edge).to(voxels.device)
        for length, edge in zip((x, y, z), axes.norm(dim=0).tolist(), strict=True)
    )
    return GridWindow((x, y, z), places, (first, second, third))


def _sheared_window(voxels: Tensor, axes: Tensor) -> ShearedWindow:
    """Of voxels (V, 3) on axes (3, 3) in standard deviations."""
    lengths, _ = _boxed(voxels)
    shape, places = _boxed(voxels, 2)
    # Differences from 0 up to the length of the box, then the negative ones.
    differences = [
        torch.fft.fftfreq(double, 1 / double, dtype=torch.float64, device=voxels.device)
        for double in (2 * length for length in lengths)
    ]
    steps = torch.stack(torch.meshgrid(*differences, indexing="ij"), dim=-1)
    gaussian = torch.exp(-(steps @ axes.T).square().sum(dim=-1) / 2)
    return ShearedWindow(shape, places, torch.fft.rfftn(gaussian))


def _boxed(voxels: Tensor, times: int = 1) -> tuple[tuple[int, int, int], Tensor]:
    """The shape of a box, so many times as long as that around voxels, and their places in it."""
    low = voxels.amin(dim=0)
    x, y, z = (times * length for length in (voxels.amax(dim=0) - low + 1).tolist())
    return (x, y, z), flat_places(voxels - low, (x, y, z))


def _factor(length: int, step: float) -> Tensor:
    """The matrix B of an axis of voxels that are `step` standard deviations apart."""
    places = step * torch.arange(length, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(torch.exp(-(places[:, None] - places).square() / 2))
    counts = values > _LEAST * values[-1]
    return vectors[:, counts] * values[counts].sqrt()
