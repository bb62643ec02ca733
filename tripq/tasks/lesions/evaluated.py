"""Subjects with known lesions and a map, and the limits of candidates that suit them best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tripq.tasks.lesions.listing import drop_small
from tripq.tasks.lesions.scores import (
    LesionCounts,
    best_min_volume,
    best_threshold,
    count_lesions,
)


@dataclass(frozen=True, eq=False)
class EvaluatedSubject:
    """A subject with known lesions, and its map.

    Parameters
    ----------
    name : str
        Name such as ``sub-01``.
    mask : (X, Y, Z) bool array
        The voxels, as in `tripq.scans.DWI.mask`.
    probability : (V,) array-like
        Probability of a lesion, in the order of ``np.argwhere(mask)``.
    lesion : (V,) array-like of bool
        The known lesions.
    voxel_ml : float
        Volume of a voxel in ml.

    Raises
    ------
    ValueError
        If the shapes do not agree.
    """

    name: str
    mask: NDArray[np.bool_]
    probability: ArrayLike
    lesion: ArrayLike
    voxel_ml: float

    def __post_init__(self) -> None:
        voxels = (int(np.count_nonzero(self.mask)),)
        for what in ("probability", "lesion"):
            if (shape := np.shape(getattr(self, what))) != voxels:
                raise ValueError(f"{self.name}: {what} has shape {shape}; its mask needs {voxels}.")

    @property
    def known(self) -> NDArray[np.bool_]:
        """The known lesions on the grid, (X, Y, Z)."""
        known = np.zeros_like(self.mask)
        known[self.mask] = np.asarray(self.lesion).astype(bool)
        return known

    def mark(self, threshold: float, min_volume: float = 0.0) -> NDArray[np.bool_]:
        """The candidates on the grid, (X, Y, Z), of a minimum volume in ml."""
        marked = np.zeros_like(self.mask)
        marked[self.mask] = np.asarray(self.probability, dtype=float) >= threshold
        return drop_small(marked, self.voxel_ml, min_volume)

    def count(self, threshold: float, min_volume: float = 0.0) -> LesionCounts:
        """Match the candidates, of a minimum volume in ml, with the known lesions."""
        return count_lesions(self.mark(threshold, min_volume), self.known)


def best_limits(subjects: Sequence[EvaluatedSubject]) -> tuple[float, float]:
    """The threshold with the highest Dice, and the minimum volume in ml with the highest F1.

    See `tripq.tasks.lesions.scores.best_threshold` and `best_min_volume`.  The subjects must not be
    scored with these limits: the scores would be too optimistic.

    Raises
    ------
    ValueError
        If no subject has a lesion.
    """
    threshold = best_threshold(
        np.concatenate([np.asarray(subject.probability) for subject in subjects]),
        np.concatenate([np.asarray(subject.lesion) for subject in subjects]),
    )
    min_volume = best_min_volume(
        [subject.mark(threshold) for subject in subjects],
        [subject.known for subject in subjects],
        [subject.voxel_ml for subject in subjects],
    )
    return threshold, min_volume
