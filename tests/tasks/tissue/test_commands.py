"""The task in the commands: train on real files, write maps with their tables, score them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.commands.conftest import Call, call  # noqa: F401
from tests.tasks.tissue.conftest import CLASSES, head
from tripq.networks import VoxelNetwork, load_network, read_notes, save_network
from tripq.networks.blocks import predict_blocks
from tripq.scans import read_dwi
from tripq.tasks.tissue.classes import Classes, read_classes
from tripq.tasks.tissue.config import TissueConfig
from tripq.tasks.tissue.scans import write_labelled
from tripq.training.config import example_config, parse_config

pytestmark = pytest.mark.usefixtures("plain_pages", "few_settling")

CONFIG = """
[network]
q_features = "4x0e + 2x2e"
p_features = "4x0e"
n_p_layers = 1

[training]
steps = 4
every = 2
box_size = 6

[split]
validation = ["02"]
"""


def write_weights(path: Path, n_classes: int = 4, **notes: str) -> Path:
    torch.manual_seed(0)
    network = VoxelNetwork(f"{n_classes}x0e", q_features="4x0e", p_features="4x0e", n_p_layers=1)
    save_network(network, path, {"task": "tissue", "voxel_size_mm": "2", **notes})
    return path


def mask_of(data: Path, name: str) -> Path:
    return data / "derivatives" / "truth" / name / "dwi" / f"{name}_desc-brain_mask.nii.gz"


def test_what_is_trained_segments_and_is_scored(call: Call, tmp_path: Path) -> None:  # noqa: F811
    data, out, config = tmp_path / "data", tmp_path / "out", tmp_path / "train.toml"
    for seed in (1, 2, 3):
        write_labelled(data, head(seed))
    config.write_text(CONFIG)
    options = ("--config", config, "-o", out, "--device", "cpu", "--memory", "20kB")
    done = call("train", data, "--task", "tissue", *options)
    assert done.status == 0, done.stderr
    assert "On 1 validation scans: mean Dice" in done.stdout
    assert any((out / "scans").iterdir()), "scans that do not fit into memory"
    file = out / "tissue-segmenter.safetensors"
    notes = read_notes(file)
    assert (notes["task"], json.loads(notes["classes"])["white matter"]) == ("tissue", "WM")
    scores = json.loads((out / "training.json").read_text())["validation_scores"]
    assert set(scores) == {"sub-02", "all"}

    scan = data / "sub-02" / "dwi" / "sub-02_dwi.nii.gz"
    maps = tmp_path / "maps" / "sub-02" / "dwi"
    given = (scan, "--mask", mask_of(data, "sub-02"), "--weights", file)
    done = call("predict", *given, "-o", maps)
    assert done.status == 0, done.stderr
    dwi = read_dwi(scan, mask=mask_of(data, "sub-02"))
    logits = torch.from_numpy(predict_blocks(load_network(file), dwi))
    image = nib.load(maps / "sub-02_dseg.nii.gz")
    assert image.get_data_dtype() == np.uint8
    found = np.asarray(image.dataobj)
    np.testing.assert_array_equal(found[dwi.mask], logits.argmax(dim=1).numpy() + 1)
    assert not found[~dwi.mask].any()
    table = read_classes(maps / "sub-02_dseg.tsv")
    assert (table.classes, table.indices) == (CLASSES, (1, 2, 3, 4))
    for number, label in enumerate(CLASSES.labels):
        probability = nib.load(maps / f"sub-02_label-{label}_probseg.nii.gz").get_fdata()
        expected = logits.softmax(dim=1)[:, number].numpy()
        np.testing.assert_allclose(probability[dwi.mask], expected, atol=1e-5)
        about = json.loads((maps / f"sub-02_label-{label}_probseg.json").read_text())
        assert CLASSES.names[number] in about["Description"]
    about = json.loads((maps / "sub-02_dseg.json").read_text())
    assert (about["Manual"], about["GeneratedBy"][0]["Name"]) == (False, "tripq")
    again = call("predict", *given, "-o", maps)
    assert "exists already" in again.error

    truth = data / "derivatives" / "truth"
    done = call("evaluate", "--task", "tissue", tmp_path / "maps", truth, "-o", tmp_path / "scores")
    assert done.status == 0, done.stderr
    for name in CLASSES.names:
        assert f"sub-02, {name}" in done.stdout
    (row,) = json.loads((tmp_path / "scores" / "scores.json").read_text())["scans"]
    for key, value in scores["sub-02"].items():
        assert row[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


def test_a_class_that_no_scan_has_is_a_warning(call: Call, tmp_path: Path) -> None:  # noqa: F811
    data, config = tmp_path / "data", tmp_path / "train.toml"
    classes = Classes((*CLASSES.names, "bone"), (*CLASSES.labels, "bone"))
    for seed in (1, 2):
        write_labelled(data, replace(head(seed), classes=classes))
    config.write_text(CONFIG)
    options = ("--config", config, "-o", tmp_path / "out", "--device", "cpu")
    done = call("train", data, "--task", "tissue", *options)
    assert done.status == 0, done.stderr
    assert "is of the class bone: it cannot be learned" in done.stderr
    scores = json.loads((tmp_path / "out" / "training.json").read_text())
    assert np.isfinite(scores["record"]["losses"]).all()


@pytest.mark.parametrize(
    ("notes", "reason"),
    [
        ({}, "its classes: missing"),
        (CLASSES.notes, r"4 classes, but the network gives \(3,\) values"),
        ({"classes": '{"a": "a", "b": "../b", "c": "c"}'}, "is not a label of the class 'b'"),
    ],
)
def test_a_checkpoint_without_its_classes_is_refused(
    call: Call,  # noqa: F811
    notes: dict[str, str],
    reason: str,
    tmp_path: Path,
) -> None:
    write_labelled(tmp_path, head(1))
    weights = write_weights(tmp_path / "tissue.safetensors", 3, **notes)
    scan = tmp_path / "sub-01" / "dwi" / "sub-01_dwi.nii.gz"
    given = (scan, "--mask", mask_of(tmp_path, "sub-01"), "--weights", weights)
    done = call("predict", *given, "-o", tmp_path / "maps")
    assert done.status == 1
    assert re.search(reason, done.error)
    assert not (tmp_path / "maps").exists()


def test_limits_of_lesions_are_no_limits_of_classes(call: Call, tmp_path: Path) -> None:  # noqa: F811
    for name in ("maps", "truth"):
        (tmp_path / name).mkdir()
    given = ("evaluate", "--task", "tissue", tmp_path / "maps", tmp_path / "truth")
    for option in ("--threshold", "--min-volume"):
        done = call(*given, "-o", tmp_path / "out", option, "0.5")
        assert done.error.startswith(f"error: {option}: ")


def test_the_settings_are_those_of_the_constructors() -> None:
    text = example_config(TissueConfig)
    assert parse_config(text, "example", TissueConfig) == TissueConfig()
    network = VoxelNetwork()
    for name, value in vars(TissueConfig().network).items():
        assert value == (None if name == "p_radius" else getattr(network, name))
