"""Maps of a network of any task: for lesions those of `tripq segment`."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.commands.conftest import Call, write_weights
from tripq.commands import applying
from tripq.networks import VoxelNetwork, save_network
from tripq.networks.blocks import predict_blocks
from tripq.scans import read_dwi
from tripq.tasks.lesions import segmentation
from tripq.tasks.tissue.command import TissueCommands


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


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "Give --weights FILE or --task NAME"),
        (
            ("--task", "none"),
            "unknown task 'none'; known: fibres, lesions, pretraining, signal, tissue",
        ),
        (("--task", "lesions", "--weights", "a.safetensors"), "omit --task"),
    ],
)
def test_a_network_is_named_by_its_file_or_by_its_task(
    call: Call, scan: Path, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    done = call("predict", scan, *options, "-o", tmp_path / "maps")
    assert done.status == 2
    assert says in " ".join(done.stderr.replace("│", " ").split())
    assert not (tmp_path / "maps").exists()


def test_a_task_without_a_trained_network_is_refused_by_name(
    call: Call, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TissueCommands, "weights", "none.safetensors")
    done = call("predict", scan, "--task", "tissue", "-o", tmp_path / "maps")
    assert done.status == 1
    assert "has no trained network of the task tissue. Give a checkpoint: --weights" in done.error
    assert not (tmp_path / "maps").exists()


def test_a_network_of_an_unknown_task_is_refused_by_name(
    call: Call, scan: Path, mask: Path, tmp_path: Path
) -> None:
    weights = write_weights(tmp_path / "other.safetensors", task="os.system")
    done = call("predict", scan, "--mask", mask, "--weights", weights, "-o", tmp_path / "maps")
    assert done.status == 1
    assert done.error.startswith(f"error: {weights}: the task 'os.system' is unknown; there are: ")
    assert not (tmp_path / "maps").exists()


def test_a_task_of_another_package_has_maps_and_a_page(
    call: Call, scan: Path, mask: Path, own_task: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = VoxelNetwork("1x0e", p_radius=2.9, q_features="4x0e", p_features="3x0e", n_p_layers=1)
    weights = tmp_path / "diffusivity.safetensors"
    save_network(network, weights, {"task": own_task, "voxel_size_mm": "2"})
    out = tmp_path / "maps"
    done = call("predict", scan, "--mask", mask, "--weights", weights, "-o", out)
    assert done.status == 0, done.stderr
    dwi = read_dwi(scan, mask=mask)
    expected = predict_blocks(network.eval(), dwi)[:, 0]
    found = nib.load(out / "dwi_md.nii.gz").get_fdata()[dwi.mask]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    about = json.loads((out / "dwi_maps.json").read_text())
    assert (about["Task"], about["Maps"]) == (own_task, ["dwi_md.nii.gz", "dwi_positive.nii.gz"])
    assert set(about["Inputs"]) == {"Scan", "BVal", "BVec", "BrainMask"}
    page = (out / "dwi_maps.html").read_text()
    for words in ("mean-diffusivity maps", "µm²/ms", "VoxelNetwork", "p_radius", "2.9"):
        assert words in page


def test_a_doubtful_table_is_a_caution_as_for_segment(
    call: Call,
    scan: Path,
    mask: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    doubt = "Gradient table: try --frame voxel."
    monkeypatch.setattr(applying, "check_table", lambda dwi, frame: (doubt,))
    out = tmp_path / "maps"
    given = (scan, "--mask", mask, "--weights", weights, "--shell", 1000)
    done = call("predict", *given, "-o", out)
    assert f"caution: {scan}: {doubt}" in done.stderr
    about = json.loads((out / "dwi_maps.json").read_text())
    assert about["Cautions"][0] == doubt
    assert about["Shells"] == [1000]
    assert f"<strong>Caution:</strong> {doubt}" in (out / "dwi_maps.html").read_text()


def test_errors_name_the_quantity_of_the_task(
    call: Call,
    scan: Path,
    mask: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nowhere = np.full(int(nib.load(mask).get_fdata().sum()), np.nan, np.float32)
    monkeypatch.setattr(segmentation, "segment", lambda network, dwi, **how: nowhere)
    done = call("predict", scan, "--mask", mask, "--weights", weights, "-o", tmp_path / "maps")
    assert "of the probabilities that" in done.error
    assert not (tmp_path / "maps").exists()
