r"""Permutation test of the order of the gradient directions against that of the volumes.

On a shell the signal of tissue varies smoothly with the direction :math:`g`: a polynomial of second
order, :math:`g^T A g`, explains most of this variation.  The explained share of the variance
between the volumes of a shell, over all voxels, does not change if the axes of all directions are
rotated, flipped or permuted (`tripq.scans.coherence` detects that).  It falls to chance level if
directions and volumes are in different orders.  Chance level is the share of the same directions in
random orders.

With :math:`H` the projection on the polynomials without the constant, and :math:`C` the covariance
of the volumes summed over voxels, the share is :math:`\mathrm{tr}(HC) / \mathrm{tr}(C)`, so the
voxels are read once and a shuffle costs little.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tripq.scans.scan import DWI
from tripq.scans.shells import count_directions

MIN_DIRECTIONS = 12
"""Fewer directions on a shell explain too much in any order: the polynomial has 6 parameters."""

MAX_CHANCE = 0.01
"""The order is called wrong if more than this share of the shuffles explain as much.

So one of a hundred wrong orders is missed.  Of 387 right orders of real and simulated scans, most
of them degraded, one is called wrong (docs/frames.md); in whole scans, no shuffle explains as
much."""

SHUFFLES = 999

_CHUNK = 50_000  # voxels whose products are formed at once
_MOST = 300  # volumes of a shell that are looked at, evenly chosen


@dataclass(frozen=True)
class Order:
    """Variance explained by the directions, in their order and in random orders.

    Parameters
    ----------
    explained : float
        Share of the variance between the volumes of a shell, over all voxels; 0 where there is no
        shell to judge.
    usual : float
        The mean of that share over shuffles: chance level.
    chance : float
        Share of the shuffles that explain as much, including the given order.
    n_directions : int
        Number of different directions on the largest shell.
    """

    explained: float
    usual: float
    chance: float
    n_directions: int

    @property
    def is_wrong(self) -> bool:
        """Whether the order is no better than chance, with enough directions for this answer."""
        return self.n_directions >= MIN_DIRECTIONS and self.chance > MAX_CHANCE


def volume_order(dwi: DWI) -> Order:
    """Whether the directions of a scan are in the order of its volumes.

    Parameters
    ----------
    dwi : DWI
        Restricted to the brain.

    Returns
    -------
    Order
        Reproducible: the shuffles are always the same.
    """
    chosen = [shell.indices[:: -(-len(shell) // _MOST)] for shell in dwi.shells]
    counts = [count_directions(dwi.q[indices]) for indices in chosen]
    judged = [
        (_projection(dwi.q[indices]), _covariance(dwi, indices))
        for indices, count in zip(chosen, counts, strict=True)
        if count >= MIN_DIRECTIONS
    ]
    total = sum(float(np.trace(covariance)) for _, covariance in judged)
    most = max(counts, default=0)
    if not total > 0:
        return Order(0.0, 0.0, 1.0, most)
    rng = np.random.default_rng(0)
    given = sum(float((projection * covariance).sum()) for projection, covariance in judged)
    shuffled = np.zeros(SHUFFLES)
    for projection, covariance in judged:
        for number in range(SHUFFLES):
            order = rng.permutation(len(covariance))
            shuffled[number] += float((projection * covariance[np.ix_(order, order)]).sum())
    as_good = 1 + np.count_nonzero(shuffled >= given * (1 - 1e-9))
    return Order(given / total, float(shuffled.mean()) / total, as_good / (1 + SHUFFLES), most)


def _projection(q: NDArray[np.float64]) -> NDArray[np.float64]:
    """On polynomials of second order in N directions, without the constant, (N, N)."""
    x, y, z = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
    terms = np.stack([x * x, y * y, z * z, x * y, x * z, y * z], axis=1)
    return terms @ np.linalg.pinv(terms) - np.full((len(q), len(q)), 1 / len(q))


def _covariance(dwi: DWI, indices: NDArray[np.intp]) -> NDArray[np.float64]:
    """Covariance of the intensities of some volumes, summed over voxels, (N, N)."""
    covariance = np.zeros((len(indices), len(indices)))
    for start in range(0, len(dwi.b0), _CHUNK):
        part = slice(start, start + _CHUNK)
        values = dwi.signal[part, indices].astype(np.float64) * dwi.b0[part, None]
        values -= values.mean(axis=1, keepdims=True)
        covariance += values.T @ values
    return covariance
