"""The newcomer's script on a tiny scan: it trains, tunes its rival, and prints both errors."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from tests.conftest import run_program
from tests.tasks.signal.conftest import fibres
from tripq.scans import write_dwi, write_map

EXAMPLE = Path(__file__).parents[2] / "examples" / "beat_harmonics.py"


def test_it_is_close_to_harmonics_from_the_start(few_settling: None, tmp_path: Path) -> None:
    dwi = fibres(0, (14,)).dwi
    write_dwi(dwi, tmp_path / "dwi.nii.gz")
    write_map(np.ones(len(dwi.b0), bool), dwi, tmp_path / "mask.nii.gz")
    files = [tmp_path / name for name in ("dwi.nii.gz", "dwi.bval", "dwi.bvec", "mask.nii.gz")]
    told = run_program(EXAMPLE, *files, "--seconds", 1)
    line = r"(\d+) directions: network (0\.\d{4}), harmonics (0\.\d{4})"
    rows = [tuple(map(float, row)) for row in re.findall(line, told)]
    assert [number for number, *_ in rows] == [6, 12]  # of 14
    for _, network, harmonics in rows:
        assert network < 1.5 * harmonics


def test_it_is_short() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 40
