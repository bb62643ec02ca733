"""The page of an evaluation: scores of the maps of several subjects against known lesions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tripq.report.page import make_picture, write_page
from tripq.tasks.lesions.figures import curves_figure
from tripq.tasks.lesions.scores import MATCHING_IOU, LesionCounts, Scores, count_lesions, evaluate


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

    Raises
    ------
    ValueError
        If the shapes do not agree.
    """

    name: str
    mask: NDArray[np.bool_]
    probability: ArrayLike
    lesion: ArrayLike

    def __post_init__(self) -> None:
        voxels = (int(np.count_nonzero(self.mask)),)
        for what in ("probability", "lesion"):
            if (shape := np.shape(getattr(self, what))) != voxels:
                raise ValueError(f"{self.name}: {what} has shape {shape}; its mask needs {voxels}.")

    def count(self, threshold: float) -> LesionCounts:
        """Match the lesions at or above a threshold with the known ones."""
        found, known = np.zeros_like(self.mask), np.zeros_like(self.mask)
        found[self.mask] = np.asarray(self.probability, dtype=float) >= threshold
        known[self.mask] = np.asarray(self.lesion).astype(bool)
        return count_lesions(found, known)


@dataclass(frozen=True)
class _Row:
    """The scores of a subject, or of all."""

    name: str
    scores: Scores
    counts: LesionCounts


def write_evaluation_report(
    path: str | PathLike[str],
    subjects: Sequence[EvaluatedSubject],
    threshold: float,
    settings: Mapping[str, str],
    *,
    title: str = "Evaluation",
) -> None:
    """Write the page of an evaluation.

    Parameters
    ----------
    path : path
        ``.html``; an existing page is replaced.
    subjects : sequence of EvaluatedSubject
        At least one subject.
    threshold : float
        Threshold of the probability for Dice and for lesions; it must be chosen on other subjects,
        otherwise the scores are too high.
    settings : mapping of str to str
        Settings that determine the maps, shown unchanged. The value of ``"caution"`` is shown at
        the top.
    title : str, optional
        Title, such as the name of the network.

    Raises
    ------
    ReportError
        If `path` is not the name of a page, or nothing can be written there.
    ValueError
        If there is no subject, or a probability is not finite.
    """
    if not subjects:
        raise ValueError(f"{path}: an evaluation needs a subject.")
    probabilities = [subject.probability for subject in subjects]
    lesions = [subject.lesion for subject in subjects]
    evaluation = evaluate(probabilities, lesions, threshold)
    rows = [
        _Row(subject.name, scores, subject.count(threshold))
        for subject, scores in zip(subjects, evaluation.subjects, strict=True)
    ]
    counts = sum((row.counts for row in rows), start=LesionCounts(0, 0, 0))
    curves = None
    if not math.isnan(evaluation.pooled.roc_auc):
        figure = curves_figure(lesions, probabilities, threshold)
        curves = make_picture(figure, "ROC curves and precision-recall curves")
    write_page(
        path,
        "evaluation.html.jinja",
        package=__package__,
        settings=settings,
        title=title,
        threshold=threshold,
        matching_iou=MATCHING_IOU,
        rows=rows,
        pooled=_Row("all voxels, all lesions", evaluation.pooled, counts),
        curves=curves,
    )
