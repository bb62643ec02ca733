"""The page of scores shows the scores of every scan, and how maps and known maps agree."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from tripq.report.scores import agreement_figure, write_scores_report


def test_the_page_has_every_scan_and_all_together(read: Any, tmp_path: Path) -> None:
    rows = [
        ("sub-01", {"error": 0.25, "slope": math.nan, "voxels": 1200}),
        ("<b>sub-02</b>", {"error": -0.5, "slope": 1.0, "voxels": 800}),
        ("all", {"error": 0.125, "slope": 1.0, "voxels": 2000}),
    ]
    columns = {"error": "error, mm", "slope": "slope", "voxels": "voxels"}
    values = np.random.default_rng(0).normal(size=(50, 2))
    path = tmp_path / "scores.html"
    figure = agreement_figure(values, values)
    settings = {"caution": "not scored: sub-03"}
    write_scores_report(
        path, rows, columns, settings, title="net", figure=figure, remark="A remark."
    )
    page = read(path)
    assert page.table("score-table") == [
        ["sub-01", "0.2500", "–", "1,200"],
        ["<b>sub-02</b>", "−0.5000", "1.0000", "800"],
    ]
    assert page.cards() == {
        "scans": "2",
        "error, mm": "0.1250",
        "slope": "1.0000",
        "voxels": "2,000",
    }
    assert "Error, mm" in page.text
    assert "A remark." in page.text
    assert "Caution: not scored: sub-03" in page.text


def test_values_are_counted_where_map_and_known_map_have_them() -> None:
    rng = np.random.default_rng(0)
    known = rng.uniform(1, 2, 4000)
    (drawn,) = agreement_figure(known + 1, known, "mm").axes[0].collections
    counts = np.ma.filled(drawn.get_array(), 0).reshape(100, 100)
    rows, columns = counts.nonzero()
    assert 0.99 * 4000 < counts.sum() <= 4000
    assert (rows > columns).all()  # the map is higher everywhere
    constant = agreement_figure(np.ones(5), np.ones(5)).axes[0].collections[0]
    assert np.ma.filled(constant.get_array(), 0).sum() == 5
