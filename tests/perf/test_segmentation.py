"""`perf/segmentation.py` measures the stages of the command and compares the maps."""

from __future__ import annotations

import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from tripq.simulate import GradientTable, default_anatomy
from tripq.tasks.lesions.simulate import simulate_subject, write_subject


@pytest.fixture(scope="module")
def segmentation(perf_modules: None) -> ModuleType:
    return import_module("segmentation")


@pytest.mark.exhaustive
@pytest.mark.parametrize("masked", [True, False])
def test_the_map_of_the_measured_call_is_that_of_the_network(
    masked: bool, segmentation: ModuleType, tmp_path: Path
) -> None:
    anatomy = default_anatomy(4.0).within((-32, -48, 0), (32, 24, 20))
    subject = simulate_subject(anatomy, GradientTable.from_shells([1000], [12]), 0)
    write_subject(subject, tmp_path)
    mask = tmp_path / "mask.nii.gz" if masked else None
    call = segmentation.measure(segmentation.Scan("small", tmp_path / "dwi.nii.gz", mask), 1)
    assert call.mask is masked
    assert call.voxels == subject.dwi.mask.sum() or not masked
    assert call.difference <= segmentation.TOLERANCE
    assert call.stages["imports"] > 0.5  # the import of torch alone takes more
    assert {"layers", "maps and page"} <= set(call.stages)


def test_the_thread_counts_seconds_where_the_code_is(segmentation: ModuleType) -> None:
    start = time.perf_counter()
    with segmentation.watched() as seconds:
        time.sleep(0.1)
    assert set(seconds) == {segmentation.OTHER}
    assert 0.05 < seconds[segmentation.OTHER] <= time.perf_counter() - start


def test_every_stage_is_that_of_its_modules(segmentation: ModuleType) -> None:
    for stage, places in segmentation.STAGES.items():
        for place in places:
            name = import_module(place).__name__  # a place that is gone would count as "other"
            assert segmentation.stage_of(["torch.nn", name, "tripq.commands.segment"]) == stage
    assert segmentation.stage_of(["tripq.scans.reading"]) == "reading and checks"
    assert segmentation.stage_of(["tripq.nnn", "e3nn"]) == segmentation.OTHER
    imported = ["tripq.nn.gate", "importlib._bootstrap", "tripq.scans.brain"]
    assert segmentation.stage_of(imported) == segmentation.IMPORTS


def test_a_wrong_map_has_no_figures(
    segmentation: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    call = segmentation.Call("scan", 100, 13, True, "EPYC", 1, 2.0, 1.0, 1e-6, {"imports": 1.0})
    monkeypatch.setattr(segmentation.subprocess, "run", lambda *_, **__: None)
    scan = segmentation.Scan("scan", tmp_path / "dwi.nii.gz")
    for difference, refused in ((1e-6, False), (1e-3, True), (float("nan"), True)):
        found = replace(call, difference=difference)
        monkeypatch.setattr(segmentation, "in_own_process", lambda *_, found=found, **__: found)
        if refused:
            with pytest.raises(segmentation.NotMeasured, match=f"differs by {difference:g}"):
                segmentation.measure(scan, 1)
        else:
            assert segmentation.measure(scan, 1) == found


def test_calls_are_kept_and_shown(
    segmentation: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(segmentation, "KEPT", tmp_path / "kept")
    call = segmentation.Call("b", 1234, 13, True, "EPYC", 1, 2.0, 1.0, 1e-6, {"imports": 1.0})
    other = replace(call, scan="a", mask=False, stages={"layers": 0.5})
    for each in (call, other):
        segmentation.keep(each)
    assert segmentation.stored() == [other, call]
    table = segmentation.table(segmentation.stored())
    assert table[0] == ["", "a", "b"]
    assert ["voxels", "1,234", "1,234"] in table
    assert ["imports", "0.0 s", "1.0 s"] in table
    assert ["goal", "at most 18.0 s", "at most 8.0 s"] in table  # the mask of "a" is computed
