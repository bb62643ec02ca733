r"""Quadrature: weights of the samples of p-space and q-space.

A layer is an integral over position and over the gradient directions.  With the volume :math:`v_j`
of voxel j and the share :math:`a_i` of its shell that direction i represents, it is

.. math::
    \sum_j \frac{v_j}{v_0} \sum_i a_i\, \bar K_j(p_{out} - p_j, q_{out}, q_i)\, I(p_j, q_i),
    \qquad
    \bar K_j(d) = \frac{1}{v_j} \int_{\mathrm{voxel}\, j} K(d + u)\, du,

where K vanishes beyond its radius.  This module has the rules: points in a voxel
(`voxel_points`), and shares of directions on a shell (`shell_shares`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tripq.so3.harmonics import spherical_harmonics

Quadrature = Literal["integral", "sum"]

#: v_0 in mm3, the voxel of an ordinary diffusion scan, 2 x 2 x 2 mm: it keeps the size of weights.
REFERENCE_VOLUME = 8.0

#: Points along a voxel axis as long as the radius, and the fewest along any axis.  With five, the
#: rule's error is below that of the sampling itself (``perf/sampling.py``).
POINTS_IN_RADIUS, FEWEST_POINTS = 8, 5

#: Shares of directions are those with which harmonics of even orders up to this integrate best.
HIGHEST_ORDER = 8

#: An order integrates exactly if the mean of its harmonics is below this, where a single direction
#: has 1.
EXACT = 0.02

#: Directions closer than this angle (rad, 0.06 degrees) are one, listed several times.
SAME_DIRECTION = 1e-3

#: How much even shares count against exact ones: uneven ones amplify noise.  Without one of 64 even
#: directions the mean of order 4 is at most 0.0006, and 0.0017 with twice this number; noise rises
#: by 2 % or 1 %.  Of 64 random directions the means of order 2 and 4 fall from 0.13 and 0.06 to
#: 0.003 and 0.013, and noise rises by 40 %; by 27 % with twice this number.
EVENNESS = 0.05


@dataclass(frozen=True, eq=False)
class VoxelRule:
    """A quadrature rule over a voxel, for filters that vanish beyond a radius.

    Attributes
    ----------
    points : Tensor of shape (S, 3), float64
        Offsets from the centre of a voxel, in mm, world axes.
    shares : Tensor of shape (S,), float64
        Of the voxel; their sum is 1.
    radius : float
        In mm.
    """

    points: Tensor
    shares: Tensor
    radius: float


def voxel_points(
    steps: NDArray[np.float64], radius: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gauss-Legendre points in a voxel, the product of one rule along each axis.

    Parameters
    ----------
    steps : ndarray of shape (3, 3)
        Linear part of the affine, in mm: its columns are the edges of the voxel, a parallelepiped.
    radius : float
        Of the filters, in mm: the longer an edge is beside it, the more points it gets.

    Returns
    -------
    points : ndarray of shape (S, 3)
        In mm, from the centre.
    shares : ndarray of shape (S,)
        Their sum is 1.

    Examples
    --------
    >>> points, shares = voxel_points(np.diag([2.0, 2.0, 4.0]), radius=3.6)
    >>> (shares @ points**2).round(12)    # the second moments of a box, h^2 / 12
    array([0.33333333, 0.33333333, 1.33333333])
    """
    lengths = np.linalg.norm(steps, axis=0)
    numbers = np.maximum(np.ceil(POINTS_IN_RADIUS * lengths / radius), FEWEST_POINTS)
    rules = [np.polynomial.legendre.leggauss(int(n)) for n in numbers]
    places = np.stack(np.meshgrid(*(x for x, _ in rules), indexing="ij"), axis=-1).reshape(-1, 3)
    a, b, c = (w / 2 for _, w in rules)
    return places / 2 @ steps.T, np.einsum("i,j,k->ijk", a, b, c).ravel()


def shell_shares(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares of the sphere that directions and their opposites represent.

    A direction that is listed several times, or with its opposite, has one share, in equal parts.
    Shares are the nonnegative numbers of sum 1 with which the means of the spherical harmonics of
    order 2, 4, ..., `HIGHEST_ORDER` over the directions are closest to those over the sphere, 0; an
    order l counts 1 / (1 + l (l + 1)), as in smooth functions, and uneven shares count a little.

    Parameters
    ----------
    directions : ndarray of shape (Q, 3)
        Of any length; the zero vector has no direction, and shares are then equal.

    Returns
    -------
    ndarray of shape (Q,)

    Examples
    --------
    >>> axes = np.eye(3)
    >>> shell_shares(axes).round(4)
    array([0.3333, 0.3333, 0.3333])
    >>> shell_shares(np.concatenate([axes, axes[:1]])).round(3)    # one of them twice
    array([0.167, 0.333, 0.333, 0.167])
    """
    from scipy.optimize import nnls

    place, count = _distinct(directions)
    even = _harmonics(directions[np.unique(place, return_index=True)[1]])
    number = len(count)
    rows = [y / np.sqrt((2 * l + 1) * (1 + l * (l + 1))) for l, y in even.items()]
    target = np.zeros(sum(len(y) for y in rows) + number + 1)
    target[0] = 1.0
    matrix = np.concatenate([np.ones((1, number)), *rows, EVENNESS * np.eye(number)])
    shares, _ = nnls(matrix, target)
    return np.asarray((shares / shares.sum() / count)[place])


def _distinct(directions: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number of the distinct direction, opposites being one, of each; how often each occurs."""
    from scipy.sparse.csgraph import connected_components

    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    unit = directions / np.where(lengths > 0, lengths, 1)
    same = np.abs(unit @ unit.T) > np.cos(SAME_DIRECTION)
    same |= (lengths == 0) & (lengths.T == 0)
    np.fill_diagonal(same, True)
    _, place = connected_components(same, directed=False)
    return place.astype(np.int64), np.bincount(place)


def exact_order(directions: NDArray[np.float64], shares: NDArray[np.float64]) -> int:
    """The highest even order up to which a shell integrates harmonics, to `EXACT`.

    Examples
    --------
    >>> exact_order(np.eye(3), np.full(3, 1 / 3))
    2
    """
    exact = 0
    for l, harmonics in _harmonics(directions).items():
        if np.linalg.norm(harmonics @ shares) / np.sqrt(2 * l + 1) > EXACT:
            break
        exact = l
    return exact


def _harmonics(directions: NDArray[np.float64]) -> dict[int, NDArray[np.float64]]:
    """Harmonics (2 l + 1, Q) of the even orders above 0."""
    orders = range(2, HIGHEST_ORDER + 1, 2)
    harmonics = spherical_harmonics(orders, torch.from_numpy(directions))
    # As lists, because inside a transform of torch.func tensors share no memory.
    return {l: np.array(y.tolist()).reshape(y.shape).T for l, y in harmonics.items()}
