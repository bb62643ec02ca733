"""The dataset of simulated heads is one that the task reads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tripq.tasks.datasets import describe_dataset
from tripq.tasks.tissue.scans import common_classes, find_labelled, read_labelled

EXAMPLE = Path(__file__).parents[2] / "examples" / "tissue_cohort.py"


def test_heads_have_labels_and_tables_of_their_own(tmp_path: Path) -> None:
    given = ["--heads", "2", "--voxel-size", "5", "--directions", "6", "9", "--max-rotation", "180"]
    done = subprocess.run(
        [sys.executable, EXAMPLE, tmp_path, *given],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert describe_dataset(tmp_path) == ("Simulated heads with tissue labels", True)
    files, left_out = find_labelled(tmp_path, tmp_path / "derivatives" / "truth", "fsl")
    classes = common_classes(files)
    assert classes.labels == ("WM", "GM", "CSF", "L")
    scans = [read_labelled(item, classes, "fsl") for item in files]
    assert not left_out
    assert [len(scan.dwi.b_values) - 1 for scan in scans] == [6, 9]
    for scan in scans:
        shares = np.bincount(scan.labels, minlength=4) / len(scan.labels)
        assert shares[:3].min() > 0.1
        assert 0 < shares[3] < 0.05
        mean = [scan.dwi.signal[scan.labels == number, 1:].mean() for number in range(3)]
        assert mean[2] < min(mean[:2])  # fluid
