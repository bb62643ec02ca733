"""Scores of probability maps against known lesions, by voxel and by lesion.

The areas under the curves need no threshold.  Dice and the scores of lesions need one: choose it on
subjects that are not scored (`best_threshold`); otherwise the scores are too optimistic.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

#: Minimum intersection over union of a match between a found and a true lesion.  It is low because
#: an outline error of half a voxel lowers the value strongly for lesions of a few voxels.
MATCHING_IOU = 0.1


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
        Overlap ``2 |A and B| / (|A| + |B|)`` of lesions and voxels at or above the threshold; NaN
        if both are empty.
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
    found = values >= threshold
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


def score(probability: ArrayLike, lesion: ArrayLike, threshold: float) -> Scores:
    """Scores of one map.

    Parameters
    ----------
    probability : (V,) array-like
        Probability of a lesion in every voxel.
    lesion : (V,) array-like of bool
        Lesion voxels.
    threshold : float
        Threshold of the probability for Dice.

    Raises
    ------
    ValueError
        If the lengths differ, or a probability is not finite.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    values, truth = _checked(probability, lesion)
    lesions = int(np.count_nonzero(truth))
    both = 0 < lesions < len(truth)
    return Scores(
        roc_auc=float(roc_auc_score(truth, values)) if both else math.nan,
        average_precision=float(average_precision_score(truth, values)) if lesions else math.nan,
        dice=dice(values, truth, threshold),
        voxels=len(truth),
        lesion_voxels=lesions,
    )


def count_lesions(found: ArrayLike, truth: ArrayLike) -> LesionCounts:
    """Match found lesions with true ones, by panoptica.

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
    if not (ours.any() and theirs.any()):
        return LesionCounts(_count_components(theirs), _count_components(ours), 0)
    result = _matcher().evaluate(ours.astype(np.uint8), theirs.astype(np.uint8), verbose=False)
    counts = result["ungrouped"]
    return LesionCounts(int(counts.n_ref_instances), int(counts.n_pred_instances), int(counts.tp))


def evaluate(
    probabilities: Sequence[ArrayLike], lesions: Sequence[ArrayLike], threshold: float
) -> Evaluation:
    """Scores of several subjects, and of all their voxels together.

    Parameters
    ----------
    probabilities, lesions : sequences of (V_i,) array-likes
        As in `score`, one for each subject.
    threshold : float
        Threshold of the probability for Dice.
    """
    subjects = tuple(
        score(probability, lesion, threshold)
        for probability, lesion in zip(probabilities, lesions, strict=True)
    )
    pooled = score(np.concatenate(probabilities), np.concatenate(lesions), threshold)
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


@cache
def _matcher() -> Any:
    """The evaluator of panoptica, imported here because the import takes a second.

    Its citation reminder is disabled, as it would print into reports; please cite panoptica:
    https://github.com/BrainLesion/panoptica#citation.
    """
    from panoptica import (
        ConnectedComponentsInstanceApproximator,
        InputType,
        Metric,
        NaiveThresholdMatching,
        Panoptica_Evaluator,
        disable_citation_reminder,
    )

    disable_citation_reminder()
    return Panoptica_Evaluator(
        expected_input=InputType.SEMANTIC,
        instance_approximator=ConnectedComponentsInstanceApproximator(),
        instance_matcher=NaiveThresholdMatching(Metric.IOU, MATCHING_IOU),
        instance_metrics=[Metric.IOU],
        global_metrics=[],
    )


def _count_components(volume: NDArray[np.bool_]) -> int:
    return int(ndimage.label(volume, np.ones((3, 3, 3)))[1])


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
