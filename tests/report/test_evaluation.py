"""The page of an evaluation shows the scores of tripq.tasks.lesions.scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tripq.tasks.lesions.evaluated import EvaluatedSubject
from tripq.tasks.lesions.pages.evaluation import write_evaluation_report
from tripq.tasks.lesions.scores import calibration_error, count_lesions, evaluate

pytestmark = pytest.mark.usefixtures("undrawn")


def test_the_scores_are_those_of_the_maps(
    tmp_path: Path, case: Any, read: Callable[[Path], Any]
) -> None:
    mask, shifted = case.dwi.mask, np.roll(case.probability, 1)
    healthy = np.zeros(len(case.truth), dtype=bool)
    maps, truths = [case.probability, shifted, shifted], [case.truth, case.truth, healthy]
    subjects = [
        EvaluatedSubject(name, mask, p, t, 0.125)
        for name, p, t in zip(("one", "two", "three"), maps, truths, strict=True)
    ]
    write_evaluation_report(tmp_path / "page.html", subjects, 0.5, {})
    page = read(tmp_path / "page.html")

    expected = evaluate(maps, truths, 0.5)
    first, second, third = page.table("score-table")
    scores, counts = (
        expected.subjects[0],
        count_lesions(case.dwi.volume(maps[0] >= 0.5), case.dwi.volume(truths[0])),
    )
    assert first == [
        "one",
        f"{scores.roc_auc:.3f}",
        f"{scores.average_precision:.3f}",
        f"{scores.dice:.3f}",
        f"{calibration_error(maps[0], truths[0]):.4f}",
        *("35", "2", "3"),
        *(f"{value:.3f}" for value in (counts.sensitivity, counts.precision, counts.f1)),
    ]
    assert second[1] == f"{expected.subjects[1].roc_auc:.3f}"
    error = f"{calibration_error(shifted, healthy):.4f}"
    assert third == ["three", "–", "–", "0.000", error, "0", "0", "3", "–", "0.000", "0.000"]
    cards = page.cards()
    assert cards["subjects"] == "3"
    assert cards["area under the ROC curve"] == f"{expected.pooled.roc_auc:.3f}"
    assert cards["sensitivity, lesions"] == "0.500"  # 2 of 4 known
    pooled = calibration_error(np.concatenate(maps), np.concatenate(truths))
    assert cards["expected calibration error"] == f"{pooled:.4f}"
    assert any(e.get("alt") == "Reliability curve" for e in page.root.iter("img"))
    assert any("ROC curves" in e.get("alt") for e in page.root.iter("img"))


def test_candidates_below_the_minimum_volume_are_not_counted(
    tmp_path: Path, case: Any, read: Callable[[Path], Any]
) -> None:
    """Of 27, 8 and 1 voxels of 0.125 ml, the first is known; another lesion is not marked."""
    subject = EvaluatedSubject("one", case.dwi.mask, case.probability, case.truth, 0.125)
    rows = []
    for min_volume in (0.0, 0.9, 1.1, 4.0):
        write_evaluation_report(tmp_path / "page.html", [subject], 0.5, {}, min_volume=min_volume)
        ((*_, dice, _, _, known, found, _, precision, _),) = read(tmp_path / "page.html").table(
            "score-table"
        )
        rows.append((dice, known, found, precision))
    assert rows == [
        (f"{2 * 27 / (36 + 35):.3f}", "2", "3", "0.333"),
        (f"{2 * 27 / (35 + 35):.3f}", "2", "2", "0.500"),
        (f"{2 * 27 / (27 + 35):.3f}", "2", "1", "1.000"),
        ("0.000", "2", "0", "–"),
    ]
    assert (
        "the threshold 0.500 and the minimum volume of 4.000 ml"
        in read(tmp_path / "page.html").text
    )


def test_without_lesions_there_are_no_curves(
    tmp_path: Path, case: Any, read: Callable[[Path], Any]
) -> None:
    subject = EvaluatedSubject("one", case.dwi.mask, case.probability, 0 * case.probability, 0.125)
    write_evaluation_report(tmp_path / "page.html", [subject], 0.5, {})
    assert "No curves: they need both lesion voxels" in read(tmp_path / "page.html").text


def test_an_evaluation_needs_subjects_whose_shapes_agree(tmp_path: Path, case: Any) -> None:
    with pytest.raises(ValueError, match=r"page\.html: an evaluation needs a subject"):
        write_evaluation_report(tmp_path / "page.html", [], 0.5, {})
    with pytest.raises(ValueError, match=r"one: lesion has shape \(3,\); its mask needs"):
        EvaluatedSubject("one", case.dwi.mask, case.probability, np.zeros(3), 0.125)
