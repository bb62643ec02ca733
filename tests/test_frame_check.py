"""`perf/frame_check.py` counts what `tripq check` says."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.dwi.test_coherence import make_rods, oblique
from tripq.dwi.coherence import MIN_VOXELS

PERF = Path(__file__).parents[1] / "perf"


@pytest.fixture(scope="module")
def frame_check() -> Iterator[ModuleType]:
    before = sys.path[:]
    sys.path.append(str(PERF))
    yield import_module("frame_check")
    sys.path[:] = before


def test_a_scan_is_made_worse_as_it_says(frame_check: ModuleType) -> None:
    rods = make_rods(oblique(), n_directions=13)
    worse = list(frame_check.made_worse(rods, np.random.default_rng(0)))
    assert worse[0] == ("as it is", rods)
    for what, dwi in worse[1:]:
        number, _, unit = what.rpartition(" = ")[2].partition(" ")
        if unit == "directions":
            assert len(dwi.b_values) == 1 + int(number)
            assert len(dwi.b0) == len(rods.b0)
        elif unit.startswith("slice"):
            assert np.count_nonzero(dwi.mask.any(axis=(0, 1))) == int(number)
            np.testing.assert_array_equal(dwi.signal, rods.signal[dwi.mask[rods.mask]])
        else:
            deviation = np.std(dwi.b0 - rods.b0)
            assert deviation == pytest.approx(1 / float(number), rel=0.05)
    named = [what for what, _ in worse]
    assert named.count("6 directions") == named.count("12 directions") == frame_check.DRAWS
    assert "20 directions" not in named


def test_right_frames_are_named_for_wrong_ones(frame_check: ModuleType) -> None:
    found = list(frame_check.examine_frames(make_rods(oblique()), "fsl"))
    assert [said for _, said in found] == ["the right frame"] * 2
    assert [angle for angle, _ in found] == pytest.approx([0, 14.0], abs=0.1)


def test_cases_are_counted(frame_check: ModuleType) -> None:
    cases = [
        frame_check.Case(True, "as it is", 9000, 0.2, right_leads=True),
        frame_check.Case(True, "as it is", 9000, 0.03, right_leads=False),
        frame_check.Case(True, "as it is", MIN_VOXELS - 1, 0.5, right_leads=False),
        frame_check.Case(False, "1 slice", 9000, 0.06, right_leads=False),
    ]
    written = frame_check.tables(cases, [(False, 12.3, "silent")])
    assert "| real | as it is | 3 | 1 | 2 | 0 | 0.200 | 0.030 |" in written
    assert "| simulated | 1 slice | 1 | 0 | 0 | 1 |  | 0.060 |" in written
    assert "| 0% | 1 | 1 | 2 |" in written
    assert "| 10% | 1 | 3 | 0 |" in written
    assert "| simulated | 12° | silent |" in written
