"""The page of a group puts failures first, and counts and links the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import pytest

from tripq.tasks.lesions.listing import Candidate
from tripq.tasks.lesions.pages.group import SubjectSummary, write_group_report

CANDIDATE = Candidate(10, 1.25, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), "left", 0.6, 0.9)
ROWS = [
    SubjectSummary.of_candidates(
        "sub-01", [CANDIDATE, CANDIDATE], PurePath("sub-01", "a & b?.html")
    ),
    SubjectSummary.of_failure("sub-02", "sub-02_dwi.bvec: 3 entries, but 65 volumes."),
    SubjectSummary.of_candidates("sub-03", []),
]


def test_the_page_lists_all_and_the_failures_first(
    tmp_path: Path, read: Callable[[Path], Any]
) -> None:
    write_group_report(tmp_path / "group.html", ROWS, {}, title="A dataset")
    page = read(tmp_path / "group.html")
    assert page.table("subject-table") == [
        ["sub-02", "failed", "–", "–"],
        ["sub-01", "ok", "2", "2.50"],
        ["sub-03", "ok", "0", "0.00"],
    ]
    headings = [e.text for e in page.root.iter("h2")]
    assert headings[:2] == ["Failed", "Subjects"]
    assert "sub-02_dwi.bvec: 3 entries, but 65 volumes." in page.text
    cards = page.cards()
    assert [
        cards[n] for n in ("subjects", "with a result", "failed", "with lesion candidates")
    ] == list("3211")
    assert "Total volume ml 0.00 0.62 1.25 1.88 2.50" in page.text
    assert [e.get("href") for e in page.root.iter("a")] == ["./sub-01/a%20%26%20b%3F.html"]


@pytest.mark.parametrize(("subjects", "drawn"), [(4, False), (5, True)])
def test_a_histogram_needs_some_subjects(
    tmp_path: Path, read: Callable[[Path], Any], subjects: int, drawn: bool
) -> None:
    rows = [
        SubjectSummary.of_candidates(f"sub-{number}", [CANDIDATE]) for number in range(subjects)
    ]
    write_group_report(tmp_path / "group.html", rows, {})
    page = read(tmp_path / "group.html")
    assert "Distribution" in page.text
    assert ("Ticks below: individual subjects" in page.text) == drawn


@pytest.mark.parametrize(("rows", "words"), [([], "No subjects."), (ROWS[1:2], "failed")])
def test_without_results_there_is_nothing_to_compare(
    tmp_path: Path, read: Callable[[Path], Any], rows: list[SubjectSummary], words: str
) -> None:
    write_group_report(tmp_path / "group.html", rows, {})
    page = read(tmp_path / "group.html")
    assert words in page.text
    assert "Distribution" not in page.text


@pytest.mark.parametrize(
    "wrong",
    [{}, {"candidates": 1}, {"candidates": 1, "total_ml": 1.0, "failure": "no"}, {"total_ml": 1.0}],
)
def test_a_subject_has_either_a_result_or_a_reason(wrong: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match="sub-01: needs either candidates and total_ml, or a failure"
    ):
        SubjectSummary("sub-01", **wrong)
