"""Scores of several subjects and splits, and how sure they are.

A score of a split is that of all voxels of its test patients together. Scores of the splits are
averaged. Intervals are percentiles of a bootstrap over the test patients, within each split; those
of a ratio of two networks take the same patients for both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from paper.results import SubjectResult, Tested
from tripq.tasks.lesions.scores import LesionCounts

_RESAMPLES = 1000
_LEVEL = 0.95

T = TypeVar("T")
Score = Callable[[Sequence[SubjectResult]], float]


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


# -- scores of the voxels of several subjects together -------------------------------------------


def roc_auc(subjects: Sequence[SubjectResult]) -> float:
    """Area under the ROC curve, from the curves of the subjects."""
    healthy, sick = _counts(subjects)
    if not healthy[0] or not sick[0]:
        return math.nan
    return float(-np.trapezoid(_to_zero(sick) / sick[0], _to_zero(healthy) / healthy[0]))


def average_precision(subjects: Sequence[SubjectResult]) -> float:
    """Mean precision over recall, from the curves of the subjects."""
    return precision_over_recall(*_counts(subjects))


def precision_over_recall(healthy: NDArray[np.int64], sick: NDArray[np.int64]) -> float:
    """Mean precision over recall.

    Parameters
    ----------
    healthy, sick : (n,) int array
        All voxels of both kinds, then those at or above each of the logits of a curve.
    """
    if not sick[0]:
        return math.nan
    found = healthy + sick
    precision = np.where(found > 0, sick / np.maximum(found, 1), 1.0)
    # In a step between two logits precision goes from one end's to the other's.
    middle = (precision + np.append(precision[1:], precision[-1])) / 2
    return float(-(np.diff(_to_zero(sick)) * middle).sum() / sick[0])


def dice(subjects: Sequence[SubjectResult]) -> float:
    """Dice of the voxels of all subjects, at the threshold of the run."""
    total = [s.load_ml + s.found_ml for s in subjects]
    common = [
        0.0 if math.isnan(s.scores.dice) else s.scores.dice * both / 2
        for s, both in zip(subjects, total, strict=True)
    ]
    return 2 * sum(common) / sum(total) if sum(total) else math.nan


def lesions(subjects: Sequence[SubjectResult]) -> LesionCounts:
    """Lesions of all subjects."""
    return sum((s.lesions for s in subjects), LesionCounts(0, 0, 0))


def headline(tested: Tested) -> tuple[float, float, float, float, float]:
    """ROC AUC, average precision and Dice by voxel; sensitivity and precision by lesion."""
    pooled, counts = tested.pooled, lesions(tested.subjects)
    return (
        pooled.roc_auc,
        pooled.average_precision,
        pooled.dice,
        counts.sensitivity,
        counts.precision,
    )


def lesion_sensitivity(subjects: Sequence[SubjectResult]) -> float:
    """Share of the lesions that were found."""
    return lesions(subjects).sensitivity


def lesion_precision(subjects: Sequence[SubjectResult]) -> float:
    """Share of what was found that are lesions."""
    return lesions(subjects).precision


def lesion_f1(subjects: Sequence[SubjectResult]) -> float:
    """Harmonic mean of both."""
    return lesions(subjects).f1


def volume_difference(subjects: Sequence[SubjectResult]) -> float:
    """Mean of |found - true| in ml."""
    return float(np.mean([abs(s.found_ml - s.load_ml) for s in subjects]))


# -- over splits ---------------------------------------------------------------------------------


def estimate(score: Score, splits: Sequence[Sequence[SubjectResult]]) -> Estimate:
    """Mean over the splits, with its interval."""
    return _estimate(score, tuple(map(tuple, splits)))


def ratio(
    score: Score,
    ours: Sequence[Sequence[SubjectResult]],
    theirs: Sequence[Sequence[SubjectResult]],
) -> Estimate:
    """By how much the mean over the splits is higher than another one: 0.1 is 10 %."""
    return _ratio(score, tuple(map(tuple, ours)), tuple(map(tuple, theirs)))


# A page has many of these several times, and each takes a thousand evaluations.
@cache
def _estimate(score: Score, splits: tuple[tuple[SubjectResult, ...], ...]) -> Estimate:
    return _interval(
        float(np.mean([score(subjects) for subjects in splits])),
        [float(np.mean([score(chosen) for chosen in drawn])) for drawn in _draws(splits)],
    )


@cache
def _ratio(
    score: Score,
    ours: tuple[tuple[SubjectResult, ...], ...],
    theirs: tuple[tuple[SubjectResult, ...], ...],
) -> Estimate:
    pairs = [list(zip(a, b, strict=True)) for a, b in zip(ours, theirs, strict=True)]

    def gain(chosen: Sequence[Sequence[tuple[SubjectResult, SubjectResult]]]) -> float:
        means = [
            np.mean([score([pair[side] for pair in split]) for split in chosen]) for side in (0, 1)
        ]
        return float(means[0] / means[1] - 1) if means[1] else math.nan

    return _interval(gain(pairs), [gain(drawn) for drawn in _draws(pairs)])


def _draws(splits: Sequence[Sequence[T]]) -> list[list[list[T]]]:
    rng = np.random.default_rng(0)
    return [
        [[split[i] for i in rng.integers(len(split), size=len(split))] for split in splits]
        for _ in range(_RESAMPLES)
    ]


def _interval(value: float, resampled: list[float]) -> Estimate:
    known = [number for number in resampled if math.isfinite(number)]
    if not known:
        return Estimate(value, math.nan, math.nan)
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def _counts(
    subjects: Sequence[SubjectResult],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Healthy and lesion voxels at or above each logit; all of them first."""
    curves = np.sum([_curve(subject.curve) for subject in subjects], axis=0)
    voxels = sum(s.scores.voxels for s in subjects)
    sick = sum(s.scores.lesion_voxels for s in subjects)
    healthy, ill = np.vstack([[voxels - sick, sick], curves]).T
    return healthy, ill


@cache
def _curve(curve: tuple[tuple[int, int], ...]) -> NDArray[np.int64]:
    return np.array(curve)


def _to_zero(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.append(counts, 0)
