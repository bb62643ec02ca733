"""`perf/rotation.py` measures what it says, and sees what does not turn along."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

PERF = Path(__file__).parents[2] / "perf"
ROUNDING = 1e-4
"""Of a map, as a share of its spread."""


@pytest.fixture(scope="module")
def rotation(perf_modules: None) -> ModuleType:
    return import_module("rotation")


def test_a_quarter_turn_needs_no_interpolation(rotation: ModuleType) -> None:
    """So that nothing but rounding is left: image and table turn the same way."""
    head = rotation.Head(radius=28.0, directions=8, order=3, seed=0)
    original = head.segment(head.image)
    quarter = np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]) @ np.diag([1.0, -1, -1])
    turned, wanted = head.turned(head.image, quarter), head.turned(original, quarter)
    middle, away = (np.array(original.shape) - 1) // 2, np.array([3, -2, 1])
    place = middle + (quarter @ away).astype(int)
    np.testing.assert_allclose(turned[tuple(place)], head.image[tuple(middle + away)], rtol=1e-4)
    assert original[head.inner].std() > 0.01
    assert head.difference(head.segment(turned, quarter), wanted) < ROUNDING
    assert head.difference(head.segment(turned), wanted) > 0.1


def test_the_table_tells_resampling_from_what_is_wrong(
    rotation: ModuleType, tmp_path: Path
) -> None:
    result = rotation.measure([90.0, 30.0], axes=1, radius=28.0, directions=8)
    assert [row.degrees for row in result.rows] == [30.0, 90.0]
    assert result.voxels > 100
    assert 0 < result.shifted_scan < 1
    for row in result.rows:
        assert row.turned_grid < ROUNDING
        assert 0 < row.map_there_and_back < row.turned_scan < row.table_unchanged
    rotation.write(result, tmp_path)
    kept = json.loads((tmp_path / "rotation.json").read_text())
    assert kept["rows"][1]["turned_scan"] == result.rows[1].turned_scan
    assert (tmp_path / "rotation.png").stat().st_size > 10_000


def test_a_ball_that_does_not_fit_is_told(rotation: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"a radius above 21\.6 mm"):
        rotation.measure([90.0], radius=16.0)
    with pytest.raises(ValueError, match="a smaller radius"):
        rotation.measure([90.0], radius=70.0)


def test_the_page_shows_what_was_measured(rotation: ModuleType) -> None:
    kept = json.loads((PERF / "results/laws/rotation.json").read_text())
    page = (PERF.parent / "docs/laws.md").read_text()
    assert f"differs by {rotation.percent(kept['shifted_scan'])}" in page
    assert f"{kept['voxels']:,} voxels" in page
    for row in kept["rows"]:
        values = (rotation.percent(row[name]) for name in rotation.COLUMNS)
        line = " | ".join((f"{row['degrees']:g}", *values))
        assert f"| {line} |" in page
