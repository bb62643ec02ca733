"""Maps of a network of any task: for lesions those of `tripq segment`."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np

from tests.commands.conftest import Call, write_weights


def test_maps_of_lesions_are_those_of_segment(
    call: Call, scan: Path, mask: Path, weights: Path, tmp_path: Path
) -> None:
    given = (scan, "--mask", mask, "--weights", weights)
    for command, out in (("predict", "maps"), ("segment", "results")):
        done = call(command, *given, "-o", tmp_path / out)
        assert done.status == 0, done.stderr
    about = json.loads((tmp_path / "maps/dwi_maps.json").read_text())
    assert about["Task"] == "lesions"
    assert about["Maps"] == ["dwi_label-lesion_probseg.nii.gz", "dwi_label-lesion_mask.nii.gz"]
    for name in about["Maps"]:
        mine, theirs = (nib.load(tmp_path / out / name) for out in ("maps", "results"))
        np.testing.assert_array_equal(mine.get_fdata(), theirs.get_fdata())
        np.testing.assert_array_equal(mine.affine, theirs.affine)
    again = call("predict", *given, "-o", tmp_path / "maps")
    assert "exists already" in again.error
    before = (tmp_path / "results/dwi_label-lesion_probseg.nii.gz").read_bytes()
    over = call("predict", *given, "-o", tmp_path / "results")
    assert "dwi_label-lesion_probseg.nii.gz: exists already" in over.error
    assert (tmp_path / "results/dwi_label-lesion_probseg.nii.gz").read_bytes() == before
    assert not (tmp_path / "results/dwi_maps.json").exists()


def test_a_network_of_an_unknown_task_is_refused_by_name(
    call: Call, scan: Path, mask: Path, tmp_path: Path
) -> None:
    weights = write_weights(tmp_path / "other.safetensors", task="os.system")
    done = call("predict", scan, "--mask", mask, "--weights", weights, "-o", tmp_path / "maps")
    assert done.status == 1
    assert done.error.startswith(f"error: {weights}: the task 'os.system' is unknown; there are: ")
    assert not (tmp_path / "maps").exists()
