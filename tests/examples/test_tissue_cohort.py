"""The dataset of simulated heads is one that the task reads."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from tripq.simulate import default_anatomy
from tripq.tasks.datasets import describe_dataset
from tripq.tasks.tissue.scans import LabelledFiles, common_classes, read_labelled

EXAMPLE = Path(__file__).parents[2] / "examples" / "tissue_cohort.py"


def test_heads_have_labels_and_tables_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("tissue_cohort", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    slab = default_anatomy(5.0).within((-60, -40, 0), (60, 40, 30))
    monkeypatch.setattr(program, "default_anatomy", lambda edge: slab)
    given = ["--heads", "2", "--voxel-size", "5", "--directions", "6", "9", "--max-rotation", "180"]
    monkeypatch.setattr("sys.argv", [str(EXAMPLE), str(tmp_path), *given])
    program.main()
    assert describe_dataset(tmp_path) == ("Simulated heads with tissue labels", True)
    found = LabelledFiles.find(tmp_path, tmp_path / "derivatives" / "truth")
    classes = common_classes(found.files)
    assert classes.labels == ("WM", "GM", "CSF", "L")
    scans = [read_labelled(item, classes, "fsl") for item in found.files]
    assert not found.left_out
    assert [len(scan.dwi.b_values) - 1 for scan in scans] == [6, 9]
    for scan in scans:
        shares = np.bincount(scan.labels, minlength=4) / len(scan.labels)
        assert shares[:3].min() > 0.01
        assert 0 < shares[3] < 0.05
        mean = [scan.dwi.signal[scan.labels == number, 1:].mean() for number in range(3)]
        assert mean[2] < min(mean[:2])  # fluid
