"""``tripq simulate``: the dataset is that of the library, and other commands read it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.commands.conftest import Call
from tripq import simulate as simulation
from tripq.infra.files import read_json
from tripq.scans import read_dwi
from tripq.simulate import GradientTable, Randomisation, default_anatomy
from tripq.tasks.lesions.datasets import DatasetError, find_labelled, read_labelled
from tripq.tasks.lesions.datasets.simulated import write_simulated

TABLE = GradientTable.from_shells([1000.0], [6])


def part(voxel_size: float = 5.0) -> simulation.Anatomy:
    """A part of the head, so that it is quick."""
    return default_anatomy(5.0).within((-40, -60, 0), (40, 40, 30))


@pytest.fixture
def quick_head(monkeypatch: pytest.MonkeyPatch) -> None:
    small = part()
    monkeypatch.setattr(simulation, "default_anatomy", lambda voxel_size: small)


@pytest.mark.usefixtures("quick_head")
def test_a_cohort_is_a_dataset_that_can_be_trained_on(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "data"
    arguments = ("--subjects", 2, "--shell", 1000, "--shell", 2000, "--directions", 6)
    done = call("simulate", out, *arguments)
    assert (done.status, done.stdout.splitlines()[0]) == (
        0,
        "2 simulated subjects, with known lesions:",
    )
    found = find_labelled(out, out / "derivatives/truth")
    assert found.participants == ("001", "002")
    assert not found.left_out
    for files in found.files:
        subject = read_labelled(files)
        assert [(shell.b_value, len(shell)) for shell in subject.dwi.shells] == [
            (1000, 6),
            (2000, 6),
        ]
    listed = (out / "participants.tsv").read_text(encoding="utf-8").splitlines()
    assert listed[0] == "participant_id\tsnr\tlesion_ml"
    assert [line.split("\t")[0] for line in listed[1:]] == ["sub-001", "sub-002"]
    again = call("simulate", out, *arguments, "--seed", 1)
    assert "Seed is 0, not 1" in again.error


def test_a_second_call_completes_a_cohort(tmp_path: Path) -> None:
    """Two calls give the files of one, and keep what is finished."""
    short, whole = tmp_path / "short", tmp_path / "whole"
    write_simulated(short, 1, TABLE, anatomy=part())
    first = short / "sub-001/dwi/sub-001_dwi.nii.gz"
    written = first.stat().st_mtime_ns
    assert write_simulated(short, 2, TABLE, anatomy=part()) == ["sub-001", "sub-002"]
    assert first.stat().st_mtime_ns == written
    write_simulated(whole, 2, TABLE, anatomy=part())
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert len(files) == 5 + 2 * 7  # descriptions; scan with table and sidecar, three masks
    for file in files:
        assert (short / file).read_bytes() == (whole / file).read_bytes(), file


def test_randomised_scans_have_noise_of_their_own(tmp_path: Path) -> None:
    out = tmp_path / "data"
    write_simulated(out, 2, TABLE, anatomy=part(), randomisation=Randomisation())
    scans = [read_dwi(path) for path in sorted(out.glob("sub-*/dwi/*.nii.gz"))]
    levels = [
        float(read_json(path)["snr"]) for path in sorted(out.glob("sub-*/dwi/sub-*_dwi.json"))
    ]
    assert len(scans) == len(set(levels)) == 2
    assert all(8 <= level <= 40 for level in levels)
    assert all(np.isfinite(scan.signal).all() for scan in scans)
    with pytest.raises(DatasetError, match="other settings"):
        write_simulated(out, 2, TABLE, anatomy=part())


def test_a_cohort_has_a_subject(tmp_path: Path) -> None:
    with pytest.raises(simulation.SimulationError, match="1 subject or more, not 0"):
        write_simulated(tmp_path, 0, TABLE, anatomy=part())
