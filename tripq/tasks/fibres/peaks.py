"""Peaks of orientation distributions, and their angles to known fibres.

dipy finds the maxima on a sphere of 724 vertices, and Newton's method refines them.  So they do not
depend on the vertices, and are equivariant.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from dipy.core.sphere import Sphere
from dipy.data import get_sphere
from dipy.direction.peaks import peak_directions
from numpy.typing import NDArray

from tripq.simulate.orientations import MOST_PEAKS
from tripq.so3.fit import harmonics_at
from tripq.so3.mrtrix import ORTHONORMAL, highest_order

LEAST_AMPLITUDE = 0.1
"""Voxels without a higher value have no peak; one fibre that fills a voxel has 3.6 at order 8."""

RELATIVE = 0.2
"""Peaks below this share of the largest one of the voxel are left out."""

SEPARATION = 25.0
"""Of two peaks nearer to each other than this, in degrees, the smaller is left out."""

_STEPS = 4  # of Newton's method; the vertices are 7 degrees apart
_DIFFERENCE = 1e-3  # in radians, for derivatives
_LONGEST = 0.1  # step in radians
_CHUNK = 4096  # voxels, or peaks, at once


def find_peaks(fodf: NDArray[np.floating]) -> NDArray[np.float32]:
    """The largest peaks of orientation distributions.

    Parameters
    ----------
    fodf : (V, C) array
        Coefficients; orthonormal, in e3nn's basis.

    Returns
    -------
    (V, 3, 3) float32 array
        Up to three vectors in world axes, as long as the value there, the longest first; zeros for
        missing ones.  The sign of a vector has no meaning.

    Examples
    --------
    >>> along = torch.tensor([[0.0, 0.6, 0.8]], dtype=torch.float64)
    >>> fodf = harmonics_at(along, 8).numpy() / ORTHONORMAL
    >>> peak = find_peaks(fodf)[0, 0]
    >>> (np.abs(peak) / np.linalg.norm(peak)).round(4)
    array([0. , 0.6, 0.8], dtype=float32)
    """
    order = highest_order(fodf.shape[1])
    sphere = _sphere()
    at = harmonics_at(torch.from_numpy(sphere.vertices), order).numpy() / ORTHONORMAL
    voxels: list[int] = []
    directions: list[NDArray[np.float64]] = []
    for start in range(0, len(fodf), _CHUNK):
        values = fodf[start : start + _CHUNK].astype(np.float64) @ at.T
        for row in np.flatnonzero(values.max(axis=1) > LEAST_AMPLITUDE):
            found, _, _ = peak_directions(
                values[row],
                sphere,
                relative_peak_threshold=RELATIVE,
                min_separation_angle=SEPARATION,
            )
            voxels += [start + int(row)] * len(found[:MOST_PEAKS])
            directions.append(found[:MOST_PEAKS])
    peaks = np.zeros((len(fodf), MOST_PEAKS, 3), np.float32)
    if not voxels:
        return peaks
    of_peak = np.array(voxels)
    refined = _refine(fodf[of_peak].astype(np.float64), np.concatenate(directions), order)
    number = np.arange(len(of_peak)) - np.searchsorted(of_peak, of_peak)
    peaks[of_peak, number] = refined
    lengths = np.linalg.norm(peaks, axis=-1)
    largest_first = np.argsort(-lengths, axis=1, kind="stable")
    return np.take_along_axis(peaks, largest_first[..., None], axis=1)


@cache
def _sphere() -> Sphere:
    return get_sphere(name="repulsion724")


def _refine(
    fodf: NDArray[np.float64], directions: NDArray[np.float64], order: int
) -> NDArray[np.float64]:
    """Peaks (N, 3) by Newton's method from near ones, as long as the value there."""
    parts = []
    for start in range(0, len(fodf), _CHUNK):
        part = slice(start, start + _CHUNK)
        coefficients, v = fodf[part], directions[part]
        for _ in range(_STEPS):
            v = _newton(coefficients, v, order)
        parts.append(_values(coefficients, v[:, None], order) * v)
    return np.concatenate(parts)


def _newton(
    coefficients: NDArray[np.float64], v: NDArray[np.float64], order: int
) -> NDArray[np.float64]:
    """A step uphill in the tangent plane; none where the function is not concave."""
    helper = np.eye(3)[np.abs(v).argmin(axis=1)]
    first = np.cross(v, helper)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    axes = np.stack([first, np.cross(v, first)], axis=1)  # (N, 2, 3)
    steps = _DIFFERENCE * np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1], [1, 1], [-1, -1]])
    f = _values(coefficients, v[:, None] + steps @ axes, order)
    h = _DIFFERENCE
    gradient = np.stack([f[:, 1] - f[:, 2], f[:, 3] - f[:, 4]], axis=1) / (2 * h)
    xx, yy = ((f[:, i] + f[:, i + 1] - 2 * f[:, 0]) / h**2 for i in (1, 3))
    xy = ((f[:, 5] + f[:, 6] - 2 * f[:, 0]) / h**2 - xx - yy) / 2
    determinant = xx * yy - xy**2
    concave = (xx < 0) & (determinant > 0)
    inverse = np.stack([yy, -xy, -xy, xx], axis=1).reshape(-1, 2, 2)
    inverse /= np.where(concave, determinant, 1.0)[:, None, None]
    step = -np.einsum("nij,nj->ni", inverse, gradient) * concave[:, None]
    length = np.linalg.norm(step, axis=1, keepdims=True)
    step *= np.minimum(1, _LONGEST / np.maximum(length, 1e-12))
    moved = v + np.einsum("ni,nij->nj", step, axes)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def _values(
    coefficients: NDArray[np.float64], v: NDArray[np.float64], order: int
) -> NDArray[np.float64]:
    """Values (N, P) of N functions at P directions each, (N, P, 3)."""
    at = harmonics_at(torch.from_numpy(np.ascontiguousarray(v)), order).numpy() / ORTHONORMAL
    values: NDArray[np.float64] = np.einsum("nc,npc->np", coefficients, at)
    return values


def angles_between(known: NDArray[np.floating], found: NDArray[np.floating]) -> NDArray[np.float64]:
    """Angle of every known fibre to the nearest of the largest peaks, as many as there are fibres.

    Further peaks have no effect, and a missing one gives a large angle.

    Parameters
    ----------
    known : (V, K, 3) array
        Fibres, zeros for missing ones.
    found : (V, 3, 3) array
        Peaks, the largest first, zeros for missing ones.

    Returns
    -------
    (V, K) float64 array
        In degrees; NaN for missing fibres, and 90 where there is no peak.

    Examples
    --------
    >>> known = np.array([[[0.0, 0, 1], [0, 0, 0]]])
    >>> found = np.array([[[0.0, 1, 1], [0, 0, 0.5], [0, 0, 0]]])
    >>> angles_between(known, found).round()
    array([[45., nan]])
    """
    a, b = _unit(known), _unit(found)
    fibres = a.any(axis=-1)
    cosines = np.abs(np.einsum("vki,vji->vkj", a, b))
    cosines *= np.arange(found.shape[1]) < fibres.sum(axis=1)[:, None, None]
    angles = np.degrees(np.arccos(cosines.max(axis=-1).clip(0, 1)))
    return np.where(fibres, angles, np.nan)


def crossing_angles(peaks: NDArray[np.floating]) -> NDArray[np.float64]:
    """Angle between the two largest peaks, (V,), in degrees; NaN with fewer than two."""
    unit = _unit(peaks)
    cosines = np.abs((unit[:, 0] * unit[:, 1]).sum(axis=1)).clip(0, 1)
    both = (np.abs(unit[:, :2]).sum(axis=-1) > 0).all(axis=1)
    return np.where(both, np.degrees(np.arccos(cosines)), np.nan)


def _unit(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: NDArray[np.float64] = vectors / np.where(lengths > 0, lengths, 1.0)
    return unit
