"""`perf/many_scans.py` measures what it says."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import typer
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def many_scans(perf_modules: None) -> ModuleType:
    return import_module("many_scans")


@pytest.mark.exhaustive
def test_tables_and_files(many_scans: ModuleType, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(many_scans.main)
    few = ("--processes", "1", "--new-scans", "1", "--rounds", "1")
    done = CliRunner().invoke(app, ["--scans", "3", *few, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    kept = json.loads((tmp_path / "many_scans.json").read_text())
    (dataset,) = kept["datasets"]
    assert dataset["scans"] == 3
    assert 0 < dataset["find_cpu_seconds"] < dataset["call_cpu_seconds"]
    assert dataset["call_bytes"] > 1e8  # torch alone takes more
    assert [training["in_files"] for training in kept["trainings"]] == [False, True]
    assert all(training["batch_cpu_seconds"] > 0 for training in kept["trainings"])
    (division,) = kept["divisions"]
    assert (division["processes"], division["scans"]) == (1, 1)
    assert division["cpu_seconds"] > 0.5  # the import of torch alone takes more
    assert division["wall_seconds"] > 0
    assert (tmp_path / "many_scans.png").stat().st_size > 1e4
    assert "segment-bids, with nothing left to do" in done.output


def test_every_scan_of_the_dataset_is_done(many_scans: ModuleType, tmp_path: Path) -> None:
    many_scans.write_dataset(tmp_path, 3)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "done").rglob("sub-*.nii.gz")}
    assert len(before) == 2 * 3
    many_scans.measure_dataset(tmp_path, 3)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    statuses = (tmp_path / "done/summary.tsv").read_text().count("there already")
    assert statuses == 3
