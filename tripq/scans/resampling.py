r"""Scans on a grid of another voxel size, and maps back on the first grid.

A network applies to the voxel sizes of its training.  A scan with other voxels is resampled to such
a size, and the map is resampled back, as in nnU-Net (Isensee et al., Nature Methods 18:203-211,
2021).

Both grids have the same axes and the same centre, so an interpolation is a matrix for each axis:
linear between the neighbouring voxels, after a Gaussian filter if voxels become larger.  The filter
widens a point spread function of the old voxel size to the new one (Cardoso et al., MICCAI 2015,
"Scale factor point spread function matching"); its variance is, in old voxels,

.. math:: \sigma^2 = \frac{r^2 - 1}{8 \ln 2}, \qquad r = \text{new edge} / \text{old edge} > 1 .

The signal outside the mask is unknown, so means are taken over the voxels of the mask only.
"""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

from tripq.scans import DWI, DWIError

#: A voxel of the new grid belongs to the mask if at least this share of its neighbourhood does.
_COVERAGE = 0.5

#: Rounding of voxel sizes in headers, which adds no row of voxels and no rotation of the axes.
_ROUNDING = 1e-3

#: Shares of a neighbourhood that differ by less are equal.  Grids with one centre make many that
#: are exactly a half: rounding would decide, and with it the order of the axes in a file.
_SAME_SHARE = 1e-4


def blur_between(ratio: float) -> float:
    """Standard deviation of the blur before voxels are read at larger ones, in old voxels.

    A Gaussian as wide as the new voxel, less what the old voxel has blurred already; 0 if the new
    one is not larger.

    Parameters
    ----------
    ratio : float
        Edge of the new voxels over that of the old ones.
    """
    return float(np.sqrt(max(ratio**2 - 1, 0) / (8 * np.log(2))))


def resample(dwi: DWI, voxel_size: float) -> DWI:
    """Resample a scan to cubic voxels.

    Intensities are interpolated, volume by volume, and then divided by b0.  Directions and the
    position in world coordinates do not change.

    Parameters
    ----------
    dwi : DWI
        The scan.
    voxel_size : float
        Edge of the new voxels in mm.

    Returns
    -------
    DWI
        On a grid with the axes and the centre of the old one; a note records the resampling.

    Raises
    ------
    DWIError
        If the voxel size is not above 0, or so large that the mask becomes empty.

    Examples
    --------
    >>> mask = np.ones((4, 4, 3), dtype=bool)
    >>> dwi = DWI(
    ...     signal=np.full((48, 2), 1.0, dtype=np.float32),
    ...     b_values=np.array([0.0, 1000.0]),
    ...     q=np.array([[0.0, 0, 0], [1, 0, 0]]),
    ...     mask=mask,
    ...     affine=np.diag([2.0, 2.0, 4.0, 1.0]),
    ...     b0=np.ones(48, dtype=np.float32),
    ... )
    >>> resample(dwi, 2.0)
    DWI(96 voxels of 2 x 2 x 2 mm, 1 directions, shells b=1000 (1))
    """
    if not voxel_size > 0 or not np.isfinite(voxel_size):
        raise DWIError(f"a voxel size is a number of mm above 0, not {voxel_size}.")
    shape, affine = _cubic_grid(dwi, voxel_size)
    weights = _axis_weights(dwi.mask.shape, dwi.affine, shape, affine)
    coverage = _apply(weights, dwi.mask)
    mask = coverage > _COVERAGE - _SAME_SHARE
    if not mask.any():
        raise DWIError(
            f"{dwi.path or 'scan'}: no voxel of its mask is left on voxels of {voxel_size:g} mm."
        )
    inside = coverage[mask]
    b0 = _apply(weights, dwi.volume(dwi.b0))[mask] / inside
    signal = np.ones((len(b0), dwi.signal.shape[1]), dtype=np.float32)
    for sample in range(1, signal.shape[1]):
        intensity = dwi.volume(dwi.signal[:, sample] * dwi.b0)
        signal[:, sample] = _apply(weights, intensity)[mask] / inside / b0
    old = " x ".join(f"{edge:.3g}" for edge in dwi.voxel_size)
    return replace(
        dwi,
        signal=signal,
        mask=mask,
        affine=affine,
        b0=b0,
        header=None,
        notes=(*dwi.notes, f"Voxels of {old} mm were resampled to {voxel_size:g} mm."),
    )


def bytes_to_resample(dwi: DWI, voxel_size: float) -> float:
    """Approximate memory of the result of `resample`, with a volume and the longest weights.

    Parameters
    ----------
    dwi : DWI
        The scan.
    voxel_size : float
        Edge of the new voxels in mm.

    Examples
    --------
    >>> mask = np.ones((4, 4, 4), dtype=bool)
    >>> dwi = DWI(
    ...     signal=np.ones((64, 2), dtype=np.float32),
    ...     b_values=np.array([0.0, 1000.0]),
    ...     q=np.array([[0.0, 0, 0], [1, 0, 0]]),
    ...     mask=mask,
    ...     affine=np.diag([2.0, 2.0, 2.0, 1.0]),
    ...     b0=np.ones(64, dtype=np.float32),
    ... )
    >>> f"{bytes_to_resample(dwi, 2e-3):.1e}"
    '7.7e+11'
    """
    new = np.maximum(np.array(dwi.mask.shape) * dwi.voxel_size / voxel_size, 1)
    grid = float(np.prod(new))
    voxels = grid * np.count_nonzero(dwi.mask) / dwi.mask.size
    weights = float((new * dwi.mask.shape).max())
    return 4 * (voxels * dwi.signal.shape[1] + grid) + 8 * weights


def map_back(values: ArrayLike, from_dwi: DWI, to_dwi: DWI) -> NDArray[np.float32]:
    """Resample a map of a resampled scan to the original scan.

    Parameters
    ----------
    values : (V, ...) array-like
        One value, or a row of values, for each voxel of `from_dwi`.
    from_dwi : DWI
        Made by `resample` of `to_dwi`.
    to_dwi : DWI
        The scan.

    Returns
    -------
    (W, ...) float32 array
        The same for each voxel of `to_dwi`, each value within the range of its map.  A voxel
        without a neighbour in the mask of `from_dwi` has the mean of the voxels there that are
        nearest.

    Raises
    ------
    DWIError
        If the axes of the grids are not parallel, or there is not one value for each voxel.
    """
    volume = from_dwi.volume(np.asarray(values, dtype=np.float32))
    maps = volume[from_dwi.mask].reshape(len(from_dwi.b0), -1)
    grid = (from_dwi.mask.shape, from_dwi.affine, to_dwi.mask.shape, to_dwi.affine)
    weights = _axis_weights(*grid)
    coverage = _apply(weights, from_dwi.mask)[to_dwi.mask]
    covered = coverage > _SAME_SHARE
    mapped = np.empty((len(coverage), maps.shape[1]), dtype=np.float32)
    for number, each in enumerate(maps.T):
        interpolated = _apply(weights, from_dwi.volume(each))[to_dwi.mask]
        mapped[covered, number] = interpolated[covered] / coverage[covered]
    if not covered.all():
        mapped[~covered] = _mean_of_nearest(to_dwi.voxel_centres()[~covered], maps, from_dwi)
    return np.clip(mapped, maps.min(axis=0), maps.max(axis=0)).reshape(-1, *volume.shape[3:])


def _cubic_grid(dwi: DWI, voxel_size: float) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Shape and affine of a grid of cubic voxels that covers that of a scan, with its centre."""
    old = np.array(dwi.mask.shape)
    ratio = voxel_size / dwi.voxel_size
    new = np.maximum(np.ceil(old / ratio - _ROUNDING), 1).astype(int)
    affine = dwi.affine.copy()
    affine[:3, :3] *= ratio
    centre = nib.affines.apply_affine(dwi.affine, (old - 1) / 2)
    affine[:3, 3] = centre - affine[:3, :3] @ ((new - 1) / 2)
    x, y, z = new.tolist()
    return (x, y, z), affine


def _axis_weights(
    old_shape: tuple[int, ...],
    old_affine: NDArray[np.float64],
    new_shape: tuple[int, ...],
    new_affine: NDArray[np.float64],
) -> list[csr_array]:
    """Matrices (new, old) that interpolate along each axis."""
    to_old = np.linalg.inv(old_affine) @ new_affine
    ratio, start = np.diag(to_old)[:3], to_old[:3, 3]
    turned = np.abs(to_old[:3, :3] - np.diag(ratio)) * np.array(new_shape)
    if turned.max() > max(old_shape) * _ROUNDING or ratio.min() <= 0:
        raise DWIError("the axes of the two grids are not parallel.")
    return [_weights(*axis) for axis in zip(old_shape, new_shape, ratio, start, strict=True)]


def _weights(old: int, new: int, ratio: float, start: float) -> csr_array:
    """Matrix (new, old) of one axis: voxel i is at ``start + ratio i`` in old voxels.

    Rows sum to 1, or to less where they reach beyond the grid.
    """
    distance = (start + ratio * np.arange(new))[:, None] - np.arange(old)
    linear = np.maximum(1 - np.abs(distance), 0)
    sigma = blur_between(ratio)
    if sigma > _ROUNDING:
        linear = gaussian_filter1d(linear, sigma, axis=1, mode="constant")
    return csr_array(linear.astype(np.float32))


def _apply(weights: list[csr_array], volume: NDArray[np.generic]) -> NDArray[np.float32]:
    """Interpolate a volume (X, Y, Z).

    Each step treats the first axis and moves it to the end, so that all are in order after three.
    """
    array = volume.astype(np.float32)
    for matrix in weights:
        rest = array.shape[1:]
        array = np.ascontiguousarray((matrix @ array.reshape(len(array), -1)).T)
        array = array.reshape(*rest, matrix.shape[0])
    return array


def _mean_of_nearest(
    points: NDArray[np.float64], values: NDArray[np.float32], dwi: DWI
) -> NDArray[np.float64]:
    """Mean of the values (V, C) of the voxels of a mask nearest to each point (P, 3), in mm.

    Often several are equally near, and choosing one would depend on the order of the axes.
    """
    tree = cKDTree(dwi.voxel_centres())
    distance, _ = tree.query(points)
    nearest = list(tree.query_ball_point(points, distance * (1 + _ROUNDING)))
    number = np.array([len(voxels) for voxels in nearest])
    listed = values[np.concatenate(nearest)].astype(np.float64)
    sums = np.add.reduceat(listed, np.cumsum(number) - number, axis=0)
    return np.asarray(sums / number[:, None])
