"""Voxels closer than a radius: on a grid by index arithmetic, otherwise by a search."""

from __future__ import annotations

from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

#: Coordinates come from float32 headers, so a distance is known to about this share of itself.
#: A neighbour at the radius, to within it, is not closer than the radius: were ties left to the
#: rounding, a rotated copy of a scan would have other edges.
RELATIVE_TIE = 1e-5

#: Offsets that are looked at for one radius: 50 voxels to each side.  A radius that reaches further
#: is in another unit than the voxels, or one of them is broken.
MAX_OFFSETS = 10**6


@overload
def closer_than(lengths: NDArray[np.float64], radius: float) -> NDArray[np.bool_]: ...


@overload
def closer_than(lengths: Tensor, radius: float) -> Tensor: ...


def closer_than(lengths: Any, radius: float) -> Any:
    """Whether each length is below `radius`; ties are not, a length of 0 always is.

    Examples
    --------
    >>> closer_than(np.array([0.0, 4.9, 5.0 - 1e-7, 5.1]), 5.0).tolist()
    [True, True, False, False]
    """
    return (lengths < radius * (1 - RELATIVE_TIE)) | (lengths == 0)


def grid_offsets(linear: NDArray[np.float64], radius: float) -> NDArray[np.int64]:
    """Index offsets whose length in world space is below `radius`.

    Parameters
    ----------
    linear : ndarray of shape (3, 3)
        Linear part of an affine, in mm: columns are the steps along the voxel axes.
    radius : float
        In mm.

    Returns
    -------
    ndarray of shape (T, 3)
        In lexicographic order; (0, 0, 0) is always among them.

    Raises
    ------
    ValueError
        If there are more than about `MAX_OFFSETS`.

    Examples
    --------
    >>> len(grid_offsets(np.diag([2.0, 2.0, 2.0]), 3.5))
    27
    >>> len(grid_offsets(np.diag([2.0, 2.0, 2.0]), 2.0))    # ties are not closer
    1
    """
    candidates = _offsets_in_box(linear, radius, 0.0)
    lengths = np.linalg.norm(candidates @ linear.T, axis=1)
    return candidates[closer_than(lengths, radius)]


def voxel_offsets(
    linear: NDArray[np.float64], points: NDArray[np.float64], radius: float
) -> NDArray[np.int64]:
    """Index offsets of voxels that have one of some points closer to the origin than `radius`.

    Parameters
    ----------
    linear : ndarray of shape (3, 3)
        As in `grid_offsets`.
    points : ndarray of shape (S, 3)
        Points of a voxel, in mm from its centre.
    radius : float
        In mm.

    Returns
    -------
    ndarray of shape (T, 3)
        In lexicographic order.

    Examples
    --------
    >>> corners = np.array(list(np.ndindex(2, 2, 2))) * 2.0 - 1.0
    >>> len(voxel_offsets(np.diag([2.0, 2.0, 2.0]), corners, 3.0))
    27
    """
    candidates = _offsets_in_box(linear, radius, 0.5)
    centres = candidates @ linear.T
    nearest = np.full(len(candidates), np.inf)
    for point in points:
        np.minimum(nearest, np.linalg.norm(centres + point, axis=1), out=nearest)
    return candidates[closer_than(nearest, radius)]


def _offsets_in_box(linear: NDArray[np.float64], radius: float, margin: float) -> NDArray[np.int64]:
    """Index offsets in the box around a ball and a margin, in voxels, in lexicographic order."""
    # |d_i| = |row_i(A^-1) A d| <= |row_i(A^-1)| |A d|
    furthest = np.floor(np.linalg.norm(np.linalg.inv(linear), axis=1) * radius + margin)
    if not np.prod(2 * furthest + 1) <= MAX_OFFSETS:
        raise ValueError(
            f"a radius of {radius:g} mm spans {furthest.max():g} voxels: too many neighbours"
        )
    ranges = [np.arange(-r, r + 1) for r in furthest.astype(np.int64)]
    return np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3)


def point_neighbours(
    p: NDArray[np.float64], radius: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All ordered pairs (out, in) of points closer than `radius`, each point with itself included.

    torch-cluster searches if it is installed, otherwise SciPy's KD-tree.  Both only propose pairs,
    and the distance decides, so the edges are equal.

    Returns
    -------
    dst, src : ndarrays of shape (E,)
        Ordered by `dst`, then `src`.
    """
    if len(p) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    dst, src = _candidates(p, radius)
    lengths = np.linalg.norm(p[dst] - p[src], axis=1)
    keep = closer_than(lengths, radius)
    dst, src = dst[keep], src[keep]
    order = np.lexsort((src, dst))
    return dst[order], src[order]


def _candidates(
    p: NDArray[np.float64], radius: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ordered pairs that include every one closer than `radius`."""
    # The search may round in float32: look a little farther than asked.
    reach = radius * (1 + RELATIVE_TIE) + 1e-4
    try:
        from torch_cluster import radius as cluster_search
    except ImportError:
        from scipy.spatial import KDTree

        sparse = KDTree(p).sparse_distance_matrix(KDTree(p), reach, output_type="ndarray")
        return sparse["i"].astype(np.int64), sparse["j"].astype(np.int64)
    import torch

    points = torch.from_numpy(p)
    # torch-cluster silently keeps only so many neighbours: allow all of them.
    dst, src = cluster_search(points, points, reach, max_num_neighbors=len(p)).numpy()
    return dst.astype(np.int64), src.astype(np.int64)
