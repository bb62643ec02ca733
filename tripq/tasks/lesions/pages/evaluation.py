"""The page of an evaluation: scores of the maps of several subjects against known lesions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike

import numpy as np

from tripq.report.page import make_picture, write_page
from tripq.tasks.lesions.evaluated import EvaluatedSubject
from tripq.tasks.lesions.figures import curves_figure, reliability_figure
from tripq.tasks.lesions.scores import (
    MATCHING_IOU,
    N_BINS,
    LesionCounts,
    Scores,
    calibration_error,
    count_lesions,
    evaluate,
)


@dataclass(frozen=True)
class _Row:
    """The scores of a subject, or of all."""

    name: str
    scores: Scores
    calibration_error: float
    counts: LesionCounts


def write_evaluation_report(
    path: str | PathLike[str],
    subjects: Sequence[EvaluatedSubject],
    threshold: float,
    settings: Mapping[str, str],
    *,
    min_volume: float = 0.0,
    chosen_here: bool = False,
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
    min_volume : float, optional
        Minimum volume of a candidate in ml, also chosen on other subjects.
    chosen_here : bool, optional
        Whether both were chosen on these subjects; the page then says that scores are too high.
    title : str, optional
        Title, such as the name of the network.

    Raises
    ------
    ReportError
        If `path` is not the name of a page, or nothing can be written there.
    ValueError
        If there is no subject, or a value is not a probability.
    """
    if not subjects:
        raise ValueError(f"{path}: an evaluation needs a subject.")
    probabilities = [subject.probability for subject in subjects]
    lesions = [subject.lesion for subject in subjects]
    marked = [subject.mark(threshold, min_volume) for subject in subjects]
    found = [one[subject.mask] for one, subject in zip(marked, subjects, strict=True)]
    evaluation = evaluate(probabilities, lesions, threshold, found=found)
    rows = [
        _Row(
            subject.name,
            scores,
            calibration_error(subject.probability, subject.lesion),
            count_lesions(one, subject.known),
        )
        for subject, scores, one in zip(subjects, evaluation.subjects, marked, strict=True)
    ]
    everything = np.concatenate(probabilities), np.concatenate(lesions)
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
        min_volume=min_volume,
        chosen_here=chosen_here,
        matching_iou=MATCHING_IOU,
        n_bins=N_BINS,
        rows=rows,
        pooled=_Row(
            "all voxels, all lesions", evaluation.pooled, calibration_error(*everything), counts
        ),
        curves=curves,
        calibration=make_picture(reliability_figure(*everything), "Reliability curve"),
    )
