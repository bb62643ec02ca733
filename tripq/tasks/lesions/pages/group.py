"""The group page: a table of the subjects, failed ones first, and distributions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import PurePath
from urllib.parse import quote

import numpy as np

from tripq.report.page import make_picture, write_page
from tripq.tasks.lesions.listing import Candidate
from tripq.tasks.lesions.names import HEALTHY_HEADS
from tripq.tasks.lesions.pages.charts import load_figure

_FEWEST_DRAWN = 5  # minimum number of subjects for histograms


@dataclass(frozen=True)
class SubjectSummary:
    """A subject on the group page; `of_candidates` and `of_failure` create it.

    Attributes
    ----------
    name : str
        Name such as ``sub-01``.
    candidates : int or None
        Number of lesion candidates; None if the subject failed.
    total_ml : float or None
        Their volume in ml; None if the subject failed.
    failure : str or None
        Reason for a missing result; None if there is a result.
    page : PurePath or None
        Page of the subject, relative to the folder of the group page.

    Raises
    ------
    ValueError
        Unless there is either a result or a failure.
    """

    name: str
    candidates: int | None = None
    total_ml: float | None = None
    failure: str | None = None
    page: PurePath | None = None

    def __post_init__(self) -> None:
        has_result = self.candidates is not None and self.total_ml is not None
        if has_result == (self.failure is not None) or (self.candidates is None) != (
            self.total_ml is None
        ):
            raise ValueError(f"{self.name}: needs either candidates and total_ml, or a failure.")

    @classmethod
    def of_candidates(
        cls, name: str, candidates: Sequence[Candidate], page: PurePath | None = None
    ) -> SubjectSummary:
        """Summary of a subject with a result, with or without candidates."""
        total = float(sum(candidate.volume_ml for candidate in candidates))
        return cls(name, candidates=len(candidates), total_ml=total, page=page)

    @classmethod
    def of_failure(cls, name: str, reason: str) -> SubjectSummary:
        """Summary of a subject without a result."""
        return cls(name, failure=reason)

    @property
    def link(self) -> str | None:
        """Address of the page, relative and quoted, so that it is never a site or a script."""
        return None if self.page is None else f"./{quote(os.fsencode(self.page.as_posix()))}"


@dataclass(frozen=True)
class _Spread:
    """Distribution of a number over subjects."""

    name: str
    unit: str | None
    decimals: int
    lowest: float
    lower_quartile: float
    median: float
    upper_quartile: float
    highest: float


def write_group_report(
    path: str | PathLike[str],
    rows: Sequence[SubjectSummary],
    settings: Mapping[str, str],
    *,
    title: str = "Group",
) -> None:
    """Write the group page.

    Parameters
    ----------
    path : path
        ``.html``; an existing page is replaced.
    rows : sequence of SubjectSummary
        The subjects.
    settings : mapping of str to str
        Settings that determine the results, shown unchanged. The value of ``"caution"`` is shown
        at the top, and that of `HEALTHY_HEADS` below the totals.
    title : str, optional
        Title, such as the name of the dataset.

    Raises
    ------
    ReportError
        If `path` is not the name of a page, or nothing can be written there.
    """
    done = [row for row in rows if row.failure is None]
    candidates = [row.candidates for row in done if row.candidates is not None]
    total_ml = [row.total_ml for row in done if row.total_ml is not None]
    shown = dict(settings)
    healthy_heads = shown.pop(HEALTHY_HEADS, "")
    write_page(
        path,
        "group.html.jinja",
        package=__package__,
        settings=shown,
        healthy_heads=healthy_heads,
        title=title,
        rows=rows,
        done=done,
        failed=[row for row in rows if row.failure is not None],
        spreads=[
            _spread("Lesion candidates", None, 1, candidates),
            _spread("Total volume", "ml", 2, total_ml),
        ]
        if done
        else [],
        chart=make_picture(
            load_figure(candidates, total_ml),
            "Histograms of the number of candidates and of their total volume, over subjects",
        )
        if len(done) >= _FEWEST_DRAWN
        else None,
    )


def _spread(name: str, unit: str | None, decimals: int, values: Sequence[float]) -> _Spread:
    return _Spread(name, unit, decimals, *np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist())
