"""What a file holds is shown, or why it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands.conftest import Call, write_scan, write_weights
from tripq.infra.files import sha256


def shown(stdout: str) -> dict[str, str]:
    return {line[:13].strip(): line[13:].strip() for line in stdout.splitlines()}


def test_a_scan_is_described(call: Call, tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "dwi.nii.gz", 2.5, (0, 1000, 1000, 2000, 2000, 2000))
    done = call("info", scan)
    assert done.status == 0
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "grid 20 x 19 x 18" in lines
    assert "voxel size 2.5 x 2.5 x 2.5 mm" in lines
    assert "voxels 6,840 of 6,840 usable" in lines
    assert "volumes 6, 1 of them b0" in lines
    assert "orientation LAS, determinant of the affine negative" in lines
    assert "shell b = 1000 s/mm2, 2 directions" in lines
    assert "shell b = 2000 s/mm2, 3 directions" in lines
    assert any(line.startswith("table read in the frame 'fsl'") for line in lines)
    assert any("No mask was given" in line for line in lines)


def test_a_checkpoint_is_described(call: Call, weights: Path) -> None:
    done = call("info", weights)
    assert done.status == 0
    assert "LesionSegmenter" in done.stdout
    assert sha256(weights) in done.stdout
    assert shown(done.stdout)["threshold"] == "0.5"
    assert shown(done.stdout)["voxel_size_mm"] == "2"
    assert '"p_radius": 2.9' in done.stdout


def test_what_a_checkpoint_says_of_candidates_is_shown(call: Call, tmp_path: Path) -> None:
    sentence = "On 15 scans it marked a median of 0.05 ml."
    weights = write_weights(
        tmp_path / "w.safetensors", min_volume_ml="0.02", healthy_heads=f"{sentence}\x1b[2J"
    )
    notes = shown(call("info", weights).stdout)
    assert notes["min_volume_ml"] == "0.02"
    assert notes["healthy_heads"] == sentence + r"\x1b[2J"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere.safetensors", "no such file"),
        ("nowhere.nii", "there is no such file"),
        ("notes.txt", "not the name of a NIfTI file"),
    ],
)
def test_what_cannot_be_described_is_told(
    name: str, reason: str, call: Call, tmp_path: Path
) -> None:
    done = call("info", tmp_path / name)
    assert done.status == 1
    assert name in done.error
    assert reason in done.error
