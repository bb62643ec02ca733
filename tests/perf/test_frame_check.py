"""`perf/frame_check.py` counts what `tripq check` says."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import numpy as np
import pytest

from tests.scans.test_coherence import make_rods, oblique
from tripq.scans.coherence import MIN_VOXELS
from tripq.scans.order import Order


@pytest.fixture(scope="module")
def frame_check(perf_modules: None) -> ModuleType:
    return import_module("frame_check")


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


def test_orders_are_counted(frame_check: ModuleType) -> None:
    right = Order(explained=0.8, usual=0.4, chance=0.001, n_directions=12)
    wrong = Order(explained=0.42, usual=0.4, chance=0.3, n_directions=12)
    few = Order(explained=0.0, usual=0.0, chance=1.0, n_directions=6)
    cases = [
        frame_check.OrderCase(True, "as it is", right, wrong),
        frame_check.OrderCase(True, "as it is", right, right),
        frame_check.OrderCase(True, "as it is", wrong, wrong),
        frame_check.OrderCase(True, "as it is", few, few),
    ]
    assert "| real | as it is | 4 | 1 | 1 | 2 | 1 | 1.05 |" in frame_check.order_table(cases)


def test_directions_are_shuffled_within_their_shell(frame_check: ModuleType) -> None:
    rods = make_rods(oblique(), n_directions=14)
    case = frame_check.examine_order(rods, "as it is", np.random.default_rng(0), real=False)
    assert not case.right.is_wrong
    assert case.shuffled.is_wrong
