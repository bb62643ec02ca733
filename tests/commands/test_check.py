"""The advice about a gradient table."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.commands.conftest import Call
from tests.scans.test_coherence import make_rods
from tripq.commands.check import UNCLEAR, Verdict, weigh
from tripq.scans import read_dwi
from tripq.scans.coherence import CHANGES, Change, Coherence
from tripq.scans.order import Order

GOOD = Order(explained=0.8, usual=0.4, chance=0.001, n_directions=12)


def found(best: Change, lead: float = 0.2, n_voxels: int = 9000) -> Coherence:
    others = [change for change in CHANGES if change != best]
    return Coherence(((best, 0.5), *((change, 0.5 * (1 - lead)) for change in others)), n_voxels)


def test_advice_names_the_frame_or_what_is_wrong(scan: Path) -> None:
    dwi = read_dwi(scan)  # det(affine) < 0, x runs from right to left

    def verdict(coherence: Coherence, order: Order = GOOD) -> Verdict:
        return weigh(coherence, order, dwi, "fsl")

    fits = verdict(found(CHANGES[0]))
    assert (fits.table, fits.frame, fits.status) == ("fits", "fsl", 0)
    assert fits.advice == "the table fits: keep --frame fsl."
    flipped, exchanged = Change((0, 1, 2), 0), Change((1, 0, 2), 2)
    other = verdict(found(flipped))
    assert (other.table, other.frame, other.status) == ("other frame", "world", 1)
    assert other.advice.endswith("use --frame world.")
    axes = verdict(found(exchanged))
    assert (axes.table, axes.frame, axes.status) == ("other axes", None, 1)
    assert "x y z must become y x -z" in axes.advice
    for unclear in (found(flipped, lead=0.02), found(flipped, n_voxels=100)):
        assert verdict(unclear).advice.startswith("cannot tell: ")
        assert verdict(unclear).status == UNCLEAR


@pytest.mark.parametrize("lead", [0.02, 0.2])
@pytest.mark.parametrize("best", [CHANGES[0], Change((2, 0, 1))])
def test_in_the_wrong_order_no_table_fits(best: Change, lead: float, scan: Path) -> None:
    """Whatever the fibres seem to say."""
    wrong = Order(explained=0.42, usual=0.4, chance=0.4, n_directions=32)
    verdict = weigh(found(best, lead), wrong, read_dwi(scan), "fsl")
    assert (verdict.table, verdict.frame, verdict.status) == ("wrong order", None, 1)
    assert verdict.advice.startswith("no table fits, with any flip or permutation of its axes: ")
    assert "explain 42% of the variation between volumes, and in random order 40%" in verdict.advice


def write_rods(folder: Path, b_value: float = 1000.0) -> tuple[Path, Path]:
    """A scan of fibres and its mask; the table is written along the image axes."""
    rods = make_rods(np.diag([2.0, 2.0, 2.0, 1.0]), n_directions=16, b_value=b_value)
    scan, mask = folder / "rods.nii.gz", folder / "whole.nii"
    nib.Nifti1Image(1000 * rods.volume(rods.signal), rods.affine).to_filename(scan)
    nib.Nifti1Image(rods.mask.astype(np.uint8), rods.affine).to_filename(mask)
    np.savetxt(folder / "rods.bval", rods.b_values[None])
    np.savetxt(folder / "rods.bvec", (rods.q / np.sqrt(b_value / 1000)).T)
    return scan, mask


@pytest.mark.parametrize("b_value", [1000, 2000, 3000])
def test_the_exit_status_and_the_json_say_whether_it_fits(
    b_value: float, call: Call, tmp_path: Path
) -> None:
    scan, mask = write_rods(tmp_path, b_value)
    common = ("check", scan, "--mask", mask)
    expected = {"voxel": ("fits", "voxel", 0), "fsl": ("other frame", "voxel", 1)}
    for frame, (table, better, status) in expected.items():
        done = call(*common, "--frame", frame, "--json")
        about = json.loads(done.stdout)
        assert (about["table"], about["frame"], done.status) == (table, better, status)
        assert about["read_as"] == frame
        assert len(about["coherence"]) == 24
        assert call(*common, "--frame", frame).stdout.splitlines()[-1] == about["advice"]
    table = np.loadtxt(tmp_path / "rods.bvec")
    table[:, 1:] = table[:, 1 + np.random.default_rng(0).permutation(16)]
    np.savetxt(tmp_path / "rods.bvec", table)
    done = call(*common, "--frame", "voxel")
    assert done.status == 1
    assert done.stdout.splitlines()[-1].startswith("no table fits")


def test_noise_does_not_tell(call: Call, scan: Path, mask: Path) -> None:
    done = call("check", scan, "--mask", mask)
    assert done.status == UNCLEAR
    assert "cannot tell" in done.stdout
    assert "as given" in done.stdout


def test_a_scan_that_cannot_be_judged_is_an_error(call: Call, scan: Path, tmp_path: Path) -> None:
    (tmp_path / "dwi.bvec").write_text("0 1 1 0 0 1 1 0\n0 0 0 1 1 0 0 1\n" + 8 * "0 ")
    done = call("check", scan)
    assert done.status == 1
    assert "dwi.nii.gz: 2 different directions; the tensor fit needs 6" in done.error


@pytest.mark.parametrize(
    ("name", "frame", "advice"),
    [
        ("nlsam_invivo_1p8mm/dwi_1_8.nii.gz", "voxel", "the table fits: keep --frame voxel."),
        pytest.param(
            "nlsam_invivo_1p8mm/dwi_1_8.nii.gz",
            "fsl",
            "use --frame voxel.",
            marks=pytest.mark.exhaustive,
        ),
        ("tractseg_example/Diffusion.nii.gz", "fsl", "the table fits: keep --frame fsl."),
        (
            "philips/ph_601_WIP_dti_ax.nii.gz",
            "fsl",
            "the table fits: keep --frame fsl.",
        ),  # b = 2000
    ],
)
def test_real_scans_are_judged(
    name: str, frame: str, advice: str, call: Call, shared_data: Path
) -> None:
    done = call("check", shared_data / "real_dwi" / name, "--frame", frame)
    assert done.status == (0 if "fits" in advice else 1)
    assert done.stdout.splitlines()[-1].endswith(advice)


def test_the_ranking_has_the_given_table_once(call: Call, scan: Path) -> None:
    lines = call("check", scan).stdout.splitlines()
    values = [float(line.split()[-1]) for line in lines[1:5] if "as given" not in line]
    assert values == sorted(values, reverse=True)
    assert np.count_nonzero(["as given" in line for line in lines]) == 1
