"""Smooth random fields, for variation between places and between heads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tripq.simulate.grid import Grid


def random_field(grid: Grid, scale: float, rng: np.random.Generator) -> NDArray[np.float32]:
    r"""Gaussian random field of mean 0 and variance 1.

    White noise on a coarse lattice of knots, spread by Gaussians:
    :math:`f(x) = \sum_k w_k\, e^{-|x - c_k|^2 / 2 s^2}` over the knots :math:`c_k`, one scale
    :math:`s` apart, divided by the standard deviation of the sum. Values at distance :math:`d` have
    a correlation of about :math:`e^{-d^2 / 4 s^2}`. The Gaussian is a product over the axes, so the
    field costs three small matrix products however large the scale.

    Parameters
    ----------
    grid : Grid
        Where the field is wanted.
    scale : float
        In mm, along every axis.
    rng : numpy.random.Generator
        Source of the noise.

    Returns
    -------
    (X, Y, Z) float32 array

    Examples
    --------
    >>> grid = Grid((20, 20, 20), np.diag([2.0, 2.0, 2.0, 1.0]))
    >>> field = random_field(grid, 10.0, np.random.default_rng(0))
    >>> bool(np.abs(np.diff(field, axis=0)).max() < np.abs(field).max() / 2)
    True
    """
    spreads = [_spread(n, size, scale) for n, size in zip(grid.shape, grid.voxel_size, strict=True)]
    field = rng.standard_normal([spread.shape[1] for spread in spreads], dtype=np.float32)
    for spread in spreads:  # contracts the first axis and appends the new one: thrice is in order
        field = np.tensordot(field, spread, axes=(0, 1))
    return field


def _spread(n: int, voxel_size: float, scale: float) -> NDArray[np.float32]:
    """Weights from knots to voxels along one axis, (n, knots), with rows of length 1."""
    position = np.arange(n) * voxel_size
    knots = np.arange(-3 * scale, position[-1] + 4 * scale, scale)  # 3 scales beyond either end
    weights = np.exp(-0.5 * ((position[:, None] - knots) / scale) ** 2)
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)
