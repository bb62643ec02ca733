"""Scores of probability maps against known lesions, by voxel and by lesion.

The areas under the curves and the calibration need no threshold.  Dice and the scores of lesions
need one, and a minimum volume of what is marked: choose both on subjects that are not scored
(`best_threshold`, `best_min_volume`); otherwise the scores are too optimistic.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from tripq.tasks.lesions.listing import NEIGHBOURS, drop_small

#: Minimum intersection over union of a match between a found and a true lesion.  It is low because
#: an outline error of half a voxel lowers the value strongly for lesions of a few voxels.
MATCHING_IOU = 0.1

#: Minimum volumes in ml that `best_min_volume` compares; higher ones would hide clear lesions.
MIN_VOLUMES = (0.0, 0.01, 0.02, 0.03, 0.05, 0.1)

#: Number of bins of probabilities, of equal width.
N_BINS = 15


@dataclass(frozen=True)
class Scores:
    """Scores of one map, or of the pooled voxels of several maps.

    Attributes
    ----------
    roc_auc : float
        Area under the ROC curve; NaN unless there are both lesion and healthy voxels.
    average_precision : float
        Mean precision over recall; NaN without lesion voxels.  Its chance level is the fraction of
        lesion voxels.
    dice : float
        Overlap ``2 |A and B| / (|A| + |B|)`` of lesion voxels and marked voxels; NaN if both are
        empty.
    voxels, lesion_voxels : int
        Number of scored voxels, and of lesion voxels among them.
    """

    roc_auc: float
    average_precision: float
    dice: float
    voxels: int
    lesion_voxels: int


@dataclass(frozen=True)
class LesionCounts:
    """Counts of true, found and matched lesions; counts of several subjects can be added.

    A lesion is a connected component (26 neighbours).  A true and a found lesion match if their
    intersection over union is `MATCHING_IOU` or more; each matches at most once.

    Attributes
    ----------
    true, found, matched : int
        Number of lesions in the truth, in the map, and of matched pairs.
    """

    true: int
    found: int
    matched: int

    @property
    def sensitivity(self) -> float:
        """Share of the true lesions that were found; NaN without true lesions."""
        return self.matched / self.true if self.true else math.nan

    @property
    def precision(self) -> float:
        """Share of the found lesions that are true; NaN without found lesions."""
        return self.matched / self.found if self.found else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of sensitivity and precision; NaN without true and found lesions."""
        total = self.true + self.found
        return 2 * self.matched / total if total else math.nan

    def __add__(self, other: LesionCounts) -> LesionCounts:
        return LesionCounts(
            self.true + other.true, self.found + other.found, self.matched + other.matched
        )


@dataclass(frozen=True)
class Evaluation:
    """Scores of a network on several subjects.

    Attributes
    ----------
    threshold : float
        Threshold of the probability for Dice.
    pooled : Scores
        Scores over the voxels of all subjects together.
    subjects : tuple of Scores
        Scores of each subject.
    """

    threshold: float
    pooled: Scores
    subjects: tuple[Scores, ...]


def dice(probability: ArrayLike, lesion: ArrayLike, threshold: float) -> float:
    """Dice overlap of lesions and voxels at or above a threshold; NaN if both are empty.

    Examples
    --------
    >>> float(dice([0.9, 0.6, 0.4, 0.1], [True, False, True, False], threshold=0.5))
    0.5
    """
    values, truth = _checked(probability, lesion)
    return _overlap(values >= threshold, truth)


def _overlap(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    total = np.count_nonzero(found) + np.count_nonzero(truth)
    return 2 * np.count_nonzero(found & truth) / total if total else math.nan


def best_threshold(probability: ArrayLike, lesion: ArrayLike) -> float:
    """The threshold with the highest Dice.

    Parameters
    ----------
    probability : (V,) array-like
        Probabilities of subjects that are not scored with this threshold.
    lesion : (V,) array-like of bool
        Lesion voxels.

    Raises
    ------
    ValueError
        If there is no lesion voxel.

    Examples
    --------
    >>> best_threshold([0.9, 0.6, 0.4, 0.1], [True, False, True, False])
    0.4
    """
    from sklearn.metrics import precision_recall_curve

    values, truth = _checked(probability, lesion)
    if not truth.any():
        raise ValueError("the best threshold is undefined without a lesion voxel")
    precision, recall, thresholds = precision_recall_curve(truth, values)
    # The last point of the curve has no threshold; 2 P R / (P + R) is Dice.
    overlap = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    return float(thresholds[np.argmax(overlap[:-1])])


def best_min_volume(
    found: Sequence[ArrayLike],
    truths: Sequence[ArrayLike],
    voxel_ml: Sequence[float],
    volumes: Sequence[float] = MIN_VOLUMES,
) -> float:
    """The minimum volume of a candidate with the highest F1 of whole lesions.

    Parameters
    ----------
    found, truths : sequences of (X_i, Y_i, Z_i) array-likes of bool
        Voxels at or above the threshold and lesion voxels of each subject, on its grid.  The
        subjects must not be scored with this minimum.
    voxel_ml : sequence of float
        Volume of a voxel of each subject in ml.
    volumes : sequence of float, optional
        Minimum volumes in ml to choose from.

    Returns
    -------
    float
        The volume with the highest `LesionCounts.f1` of all subjects together; the smallest of
        several.

    Raises
    ------
    ValueError
        If no subject has a lesion.

    Examples
    --------
    >>> truth = np.zeros((12, 5, 5), bool)
    >>> truth[1:4, 1:4, 1:4] = True
    >>> found = truth.copy()
    >>> found[8, 2, 2] = found[11, 2, 2] = True
    >>> best_min_volume([found], [truth], [0.008])
    0.01
    """
    if not any(np.any(truth) for truth in truths):
        raise ValueError("the best minimum volume is undefined without a lesion")

    def f1(volume: float) -> float:
        counts = (
            count_lesions(drop_small(marked, size, volume), truth)
            for marked, truth, size in zip(found, truths, voxel_ml, strict=True)
        )
        return sum(counts, start=LesionCounts(0, 0, 0)).f1

    return max(sorted(volumes), key=f1)


@dataclass(frozen=True)
class Reliability:
    """A reliability curve: in each bin with a voxel, what is predicted and what is true.

    Attributes
    ----------
    predicted : (B,) array
        Mean probability of the voxels of a bin.
    true : (B,) array
        Fraction of lesion voxels among them.
    """

    predicted: NDArray[np.float64]
    true: NDArray[np.float64]


def reliability(probability: ArrayLike, lesion: ArrayLike, n_bins: int = N_BINS) -> Reliability:
    """Reliability curve over voxels, in bins of probability of equal width, by scikit-learn.

    Parameters
    ----------
    probability : (V,) array-like
        Probability of a lesion in every voxel, from 0 to 1.
    lesion : (V,) array-like of bool
        Lesion voxels.
    n_bins : int, optional
        Number of bins; the curve has a point for each one with a voxel.

    Raises
    ------
    ValueError
        If the lengths differ, or a value is not a probability.

    Examples
    --------
    >>> curve = reliability([0.1, 0.1, 0.8, 0.9], [False, False, False, True], n_bins=2)
    >>> curve.predicted.round(2), curve.true
    (array([0.1 , 0.85]), array([0. , 0.5]))
    """
    from sklearn.calibration import calibration_curve

    values, truth = _checked_probabilities(probability, lesion)
    true, predicted = calibration_curve(truth, values, n_bins=n_bins)
    return Reliability(predicted, true)


def calibration_error(
    probability: ArrayLike, lesion: ArrayLike, *, above: float | None = None, n_bins: int = N_BINS
) -> float:
    """Expected calibration error over voxels, by torchmetrics.

    In bins of probability of equal width, the mean of ``|predicted - true|``, weighted by the share
    of the voxels in each bin; both terms are those of `Reliability` (Naeini et al., AAAI 2015).
    Nearly all voxels of a head are easily recognised as healthy; over all of them, the standard
    definition, the error is therefore small even if the probabilities of marked voxels are wrong.
    The argument ``above`` excludes these voxels.

    Parameters
    ----------
    probability : (V,) array-like
        Probability of a lesion in every voxel, from 0 to 1.
    lesion : (V,) array-like of bool
        Lesion voxels.
    above : float, optional
        Only voxels with a higher probability; by default all.
    n_bins : int, optional
        Number of bins.

    Returns
    -------
    float
        From 0 to 1; NaN without a voxel above the limit.

    Raises
    ------
    ValueError
        If the lengths differ, or a value is not a probability.

    Examples
    --------
    >>> round(calibration_error([0.1, 0.1, 0.8, 0.9], [False, False, False, True], n_bins=2), 3)
    0.225
    """
    import torch
    from torchmetrics.functional.classification import binary_calibration_error

    values, truth = _checked_probabilities(probability, lesion)
    if above is not None:
        values, truth = values[values > above], truth[values > above]
    if not len(values):
        return math.nan
    error = binary_calibration_error(
        torch.from_numpy(values), torch.from_numpy(truth).long(), n_bins=n_bins
    )
    return float(error)


def score(
    probability: ArrayLike,
    lesion: ArrayLike,
    threshold: float,
    *,
    found: ArrayLike | None = None,
) -> Scores:
    """Scores of one map.

    Parameters
    ----------
    probability : (V,) array-like
        Probability of a lesion in every voxel.
    lesion : (V,) array-like of bool
        Lesion voxels.
    threshold : float
        Threshold of the probability for Dice.
    found : (V,) array-like of bool, optional
        Marked voxels, for Dice; by default those at or above the threshold.

    Raises
    ------
    ValueError
        If the lengths differ, or a probability is not finite.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    values, truth = _checked(probability, lesion)
    marked = values >= threshold if found is None else np.asarray(found).astype(bool)
    lesions = int(np.count_nonzero(truth))
    both = 0 < lesions < len(truth)
    return Scores(
        roc_auc=float(roc_auc_score(truth, values)) if both else math.nan,
        average_precision=float(average_precision_score(truth, values)) if lesions else math.nan,
        dice=_overlap(marked, truth),
        voxels=len(truth),
        lesion_voxels=lesions,
    )


def count_lesions(found: ArrayLike, truth: ArrayLike) -> LesionCounts:
    """Match found lesions with true ones.

    Pairs are matched in the order of falling intersection over union, from `MATCHING_IOU` on, and
    each lesion once: the naive threshold matching of panoptica (Kofler et al., arXiv:2312.02608),
    with which the tests compare.

    Parameters
    ----------
    found, truth : (X, Y, Z) array-likes of bool
        Lesion voxels on a grid; see `tripq.scans.DWI.volume`.

    Raises
    ------
    ValueError
        If they are not two volumes of the same shape.

    Examples
    --------
    >>> truth = np.zeros((9, 9, 9), bool)
    >>> truth[1:4, 1:4, 1:4] = truth[7, 7, 7] = True
    >>> found = np.zeros_like(truth)
    >>> found[2:5, 1:4, 1:4] = True
    >>> count_lesions(found, truth)
    LesionCounts(true=2, found=1, matched=1)
    """
    ours, theirs = np.asarray(found).astype(bool), np.asarray(truth).astype(bool)
    if ours.ndim != 3 or ours.shape != theirs.shape:
        raise ValueError(
            f"lesions are counted in two volumes of the same shape, not in {ours.shape} and "
            f"{theirs.shape}"
        )
    labels, n_found = ndimage.label(ours, NEIGHBOURS)
    true_labels, n_true = ndimage.label(theirs, NEIGHBOURS)
    return LesionCounts(n_true, n_found, _count_matches(true_labels, labels))


def evaluate(
    probabilities: Sequence[ArrayLike],
    lesions: Sequence[ArrayLike],
    threshold: float,
    *,
    found: Sequence[ArrayLike] | None = None,
) -> Evaluation:
    """Scores of several subjects, and of all their voxels together.

    Parameters
    ----------
    probabilities, lesions : sequences of (V_i,) array-likes
        As in `score`, one for each subject.
    threshold : float
        Threshold of the probability for Dice.
    found : sequence of (V_i,) array-likes of bool, optional
        As in `score`.
    """
    marked = [None] * len(probabilities) if found is None else found
    subjects = tuple(
        score(probability, lesion, threshold, found=one)
        for probability, lesion, one in zip(probabilities, lesions, marked, strict=True)
    )
    pooled = score(
        np.concatenate(probabilities),
        np.concatenate(lesions),
        threshold,
        found=None if found is None else np.concatenate(found),
    )
    return Evaluation(threshold, pooled, subjects)


def write_metrics(
    evaluations: Mapping[str, Evaluation],
    path: str | PathLike[str],
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write evaluations as JSON; an undefined score (NaN) becomes null.

    Parameters
    ----------
    evaluations : mapping
        Evaluation by the name of each network.
    path : path
        Output file; an existing file is replaced.
    about : mapping, optional
        Further entries, such as the training of the networks.
    """
    content = {**(about or {}), "networks": {k: asdict(v) for k, v in evaluations.items()}}
    text = json.dumps(without_nan(content), indent=2, allow_nan=False)
    Path(path).write_text(text + "\n", encoding="utf-8")


def _count_matches(true: NDArray[np.integer[Any]], found: NDArray[np.integer[Any]]) -> int:
    """Number of matched pairs of two labelled volumes, in which 0 is no lesion."""
    both = (true > 0) & (found > 0)
    pairs, common = np.unique(np.stack([true[both], found[both]]), axis=1, return_counts=True)
    sizes_true, sizes_found = np.bincount(true.ravel()), np.bincount(found.ravel())
    iou = common / (sizes_true[pairs[0]] + sizes_found[pairs[1]] - common)
    order = np.argsort(-iou, kind="stable")[: np.count_nonzero(iou >= MATCHING_IOU)]
    free_true, free_found = np.ones(len(sizes_true), bool), np.ones(len(sizes_found), bool)
    for i, j in pairs.T[order]:
        if free_true[i] and free_found[j]:
            free_true[i] = free_found[j] = False
    return int(np.count_nonzero(~free_true))


def _checked(
    probability: ArrayLike, lesion: ArrayLike
) -> tuple[NDArray[np.floating[Any]], NDArray[np.bool_]]:
    values, truth = np.asarray(probability, dtype=float), np.asarray(lesion).astype(bool)
    if values.ndim != 1 or values.shape != truth.shape or len(values) == 0:
        raise ValueError(
            "need one probability and one label for each voxel, not arrays of shape "
            f"{values.shape} and {truth.shape}"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(values))} probabilities are not finite")
    return values, truth


def _checked_probabilities(
    probability: ArrayLike, lesion: ArrayLike
) -> tuple[NDArray[np.floating[Any]], NDArray[np.bool_]]:
    values, truth = _checked(probability, lesion)
    wrong = (values < 0) | (values > 1)
    if wrong.any():
        raise ValueError(
            f"{np.count_nonzero(wrong)} values are not probabilities from 0 to 1, such as "
            f"{values[wrong][0]:g}"
        )
    return values, truth


def without_nan(value: Any) -> Any:
    """Copy a tree of mappings, lists and numbers, with None for every number that is not finite.

    Examples
    --------
    >>> without_nan({"dice": [0.5, float("nan")]})
    {'dice': [0.5, None]}
    """
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
