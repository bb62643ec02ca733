"""The advice about a gradient table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.commands.conftest import Call
from tripq.commands.check import advise
from tripq.dwi import read_dwi
from tripq.dwi.coherence import CHANGES, Change, Coherence


def found(best: Change, lead: float = 0.2, n_voxels: int = 9000) -> Coherence:
    others = [change for change in CHANGES if change != best]
    return Coherence(((best, 0.5), *((change, 0.5 * (1 - lead)) for change in others)), n_voxels)


def test_advice_names_the_frame_or_what_is_wrong(scan: Path) -> None:
    dwi = read_dwi(scan)  # det(affine) < 0, x runs from right to left
    assert advise(found(CHANGES[0]), dwi, "fsl") == "the table fits: keep --frame fsl."
    flipped, exchanged = Change((0, 1, 2), 0), Change((1, 0, 2), 2)
    assert advise(found(flipped), dwi, "fsl").endswith("use --frame world.")
    assert "x y z must become y x -z" in advise(found(exchanged), dwi, "fsl")
    assert advise(found(flipped, lead=0.02), dwi, "fsl").startswith("cannot tell: ")
    assert advise(found(flipped, n_voxels=100), dwi, "fsl").startswith("cannot tell: ")


def test_noise_does_not_tell(call: Call, scan: Path, mask: Path) -> None:
    done = call("check", scan, "--mask", mask)
    assert done.status == 0
    assert "cannot tell" in done.stdout
    assert "as given" in done.stdout


def test_a_scan_that_cannot_be_judged_is_an_error(call: Call, scan: Path, tmp_path: Path) -> None:
    (tmp_path / "dwi.bval").write_text("0 " + 7 * "3000 ")
    done = call("check", scan)
    assert done.status == 1
    assert "0 directions up to b = 1600 s/mm2" in done.error


@pytest.mark.parametrize(
    ("name", "frame", "advice"),
    [
        ("nlsam_invivo_1p8mm/dwi_1_8.nii.gz", "voxel", "the table fits: keep --frame voxel."),
        ("nlsam_invivo_1p8mm/dwi_1_8.nii.gz", "fsl", "use --frame voxel."),
        ("tractseg_example/Diffusion.nii.gz", "fsl", "the table fits: keep --frame fsl."),
    ],
)
def test_real_scans_are_judged(
    name: str, frame: str, advice: str, call: Call, shared_data: Path
) -> None:
    done = call("check", shared_data / "real_dwi" / name, "--frame", frame)
    assert done.status == 0
    assert done.stdout.splitlines()[-1].endswith(advice)


def test_the_ranking_has_the_given_table_once(call: Call, scan: Path) -> None:
    lines = call("check", scan).stdout.splitlines()
    values = [float(line.split()[-1]) for line in lines[1:5] if "as given" not in line]
    assert values == sorted(values, reverse=True)
    assert np.count_nonzero(["as given" in line for line in lines]) == 1
