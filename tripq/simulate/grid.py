"""Voxel grids, and interpolation between their voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from numpy.typing import NDArray
from scipy import ndimage

from tripq.scans import orthogonal_part, voxel_ml


@dataclass(frozen=True, eq=False)
class Grid:
    """A grid of voxels in the world.

    Parameters
    ----------
    shape : tuple of int
        Numbers of voxels (X, Y, Z).
    affine : (4, 4) float64 array
        From voxel indices to world coordinates (RAS+) in mm. Axes may be oblique and voxels
        anisotropic, but not sheared.

    Raises
    ------
    DWIError
        If the affine is singular or sheared.

    Examples
    --------
    >>> grid = Grid((3, 4, 5), np.diag([2.0, 2.0, 3.0, 1.0]))
    >>> grid.voxel_size, grid.voxel_volume
    (array([2., 2., 3.]), 12.0)
    >>> grid.points()[-1]
    array([ 4.,  6., 12.])
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        orthogonal_part(self.affine)

    @property
    def voxel_size(self) -> NDArray[np.float64]:
        """Edges of a voxel in mm, (3,)."""
        return voxel_sizes(self.affine)

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel in mm3."""
        return 1000 * voxel_ml(self.affine)

    def points(self) -> NDArray[np.float64]:
        """Voxel centres in world coordinates, (X * Y * Z, 3), in mm and in C order."""
        return apply_affine(self.affine, np.indices(self.shape).reshape(3, -1).T)

    def to_voxels(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """World coordinates (N, 3) in mm as fractional voxel indices, (N, 3)."""
        return apply_affine(np.linalg.inv(self.affine), points)

    def covering(self, points: NDArray[np.floating], margin: float) -> Grid:
        """Smallest grid on the same lattice that holds points with a margin around them.

        Parameters
        ----------
        points : (N, 3) array
            World coordinates in mm.
        margin : float
            In mm.

        Returns
        -------
        Grid
            Its voxels coincide with those of this grid, or of its continuation.

        Examples
        --------
        >>> grid = Grid((3, 4, 5), np.diag([2.0, 2.0, 2.0, 1.0]))
        >>> wide = grid.covering(np.array([[0.0, 0.0, 0.0], [7.0, 2.0, 2.0]]), margin=2.0)
        >>> wide.shape, wide.affine[:3, 3]
        ((7, 4, 4), array([-2., -2., -2.]))
        """
        voxels = self.to_voxels(points)
        pad = margin / self.voxel_size
        lower = np.floor(voxels.min(0) - pad).astype(int)
        upper = np.ceil(voxels.max(0) + pad).astype(int)
        shift = np.eye(4)
        shift[:3, 3] = lower
        x, y, z = (upper - lower + 1).tolist()
        return Grid((x, y, z), self.affine @ shift)


def interpolate(volume: NDArray[np.floating], voxels: NDArray[np.floating]) -> NDArray[np.float32]:
    """Read a map between its voxels, trilinearly; beyond the grid its voxels are 0.

    Parameters
    ----------
    volume : (X, Y, Z) array
        The map.
    voxels : (N, 3) array
        Fractional voxel indices.

    Returns
    -------
    (N,) float32 array

    Examples
    --------
    >>> interpolate(np.arange(8.0).reshape(2, 2, 2), np.array([[0.0, 0.0, 0.5], [1.0, 1.0, 1.0]]))
    array([0.5, 7. ], dtype=float32)
    """
    return ndimage.map_coordinates(
        volume, voxels.T, output=np.float32, order=1, mode="grid-constant"
    )


def nearest(shape: tuple[int, int, int], voxels: NDArray[np.floating]) -> tuple[NDArray, ...]:
    """Index of the voxel nearest to each point, for indexing a map of that shape.

    Parameters
    ----------
    shape : tuple of int
        Of the map.
    voxels : (N, 3) array
        Fractional voxel indices; those outside the grid get its nearest border voxel.

    Returns
    -------
    tuple of three (N,) int arrays

    Examples
    --------
    >>> volume = np.arange(8.0).reshape(2, 2, 2)
    >>> volume[nearest(volume.shape, np.array([[0.2, 0.0, 0.9], [1.0, 7.0, -1.0]]))]
    array([1., 6.])
    """
    rounded = np.clip(np.rint(voxels), 0, np.array(shape) - 1).astype(np.intp)
    return tuple(rounded.T)
