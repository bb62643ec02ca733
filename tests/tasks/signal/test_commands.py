"""The task in the commands: train on real files, predict another table, score it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.commands.conftest import Call, Outcome, call  # noqa: F401
from tests.tasks.signal.conftest import fibres
from tripq.networks import Encoder, load_network, read_notes, save_network
from tripq.networks.blocks import predict_blocks
from tripq.scans import read_dwi, write_dwi, write_map
from tripq.scans.tensor import tensor_maps
from tripq.tasks.signal.denoise import Denoiser
from tripq.tasks.signal.names import FA, MD
from tripq.tasks.signal.network import SignalPredictor
from tripq.tasks.signal.scans import MeasuredFiles
from tripq.training.config import example_config, parse_config

pytestmark = pytest.mark.usefixtures("plain_pages")

CONFIG = """
[network]
p_radius = 2.6
p_features = "3x0e + 1x2e"

[training]
steps = 4
every = 2
box_size = 5
n_boxes = 1

[split]
validation = ["02"]
"""


def write_subject(root: Path, seed: int, number: int = 14) -> Path:
    dwi = fibres(seed, (number,)).dwi
    name = f"sub-{seed:02}"
    scan = root / name / "dwi" / f"{name}_dwi.nii.gz"
    scan.parent.mkdir(parents=True)
    write_dwi(dwi, scan)
    mask = root / "derivatives/truth" / name / "dwi" / f"{name}_desc-brain_mask.nii.gz"
    mask.parent.mkdir(parents=True)
    write_map(np.ones(len(dwi.b0), bool), dwi, mask)
    return scan


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = SignalPredictor(p_radius=2.6, p_features="3x0e + 1x2e")
    torch.nn.init.normal_(network.head.bias, std=0.1)
    path = tmp_path / "signal.safetensors"
    save_network(network, path, {"task": "signal", "voxel_size_mm": "2 2.5", "b_values": "1000"})
    return path


def write_table(path: Path, number: int) -> np.ndarray:
    directions = np.random.default_rng(3).normal(size=(number, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    np.savetxt(path, directions.T)
    return directions


def test_what_is_trained_predicts_and_is_scored(call: Call, tmp_path: Path) -> None:  # noqa: F811
    data, out, config = tmp_path / "data", tmp_path / "out", tmp_path / "train.toml"
    scans = [write_subject(data, seed) for seed in (1, 2, 3)]
    config.write_text(CONFIG)
    options = ("--config", config, "-o", out, "--device", "cpu")
    done = call("train", data, "--task", "signal", *options)
    assert done.status == 0, done.stderr
    assert "On 1 validation scans: RMS error" in done.stdout
    file = out / "signal-predictor.safetensors"
    notes = read_notes(file)
    assert (notes["task"], notes["b_values"], notes["voxel_size_mm"]) == ("signal", "1000", "2 2.5")
    scores = json.loads((out / "training.json").read_text())["validation_scores"]
    assert set(scores) == {"sub-02, 6 directions", "sub-02, 12 directions", "all"}
    assert "harmonics alone" in (out / "validation.html").read_text()

    maps = tmp_path / "maps" / "sub-02" / "dwi"
    table = scans[1].with_name("sub-02_dwi.bvec")
    mask = next((data / "derivatives").rglob("sub-02_*mask.nii.gz"))
    given = (scans[1], "--mask", mask, "--weights", file, "--directions", table)
    done = call("predict", *given, "-o", maps)
    assert done.status == 0, done.stderr
    done = call("evaluate", "--task", "signal", tmp_path / "maps", data, "-o", tmp_path / "scores")
    assert done.status == 0, done.stderr
    (row,) = json.loads((tmp_path / "scores" / "scores.json").read_text())["scans"]
    predicted = read_dwi(maps / "sub-02_desc-predicted_dwi.nii.gz")
    measured = read_dwi(scans[1])
    error = np.sqrt(np.mean((predicted.signal - measured.signal)[:, 1:] ** 2))
    assert row["rms_error"] == pytest.approx(error, rel=1e-3)
    assert row["directions"] == 14
    assert row["fa_error"] < 0.3


def test_a_sum_refuses_voxels_that_are_no_cubes_of_one_size(
    call: Call,  # noqa: F811
    tmp_path: Path,
) -> None:
    data, config = tmp_path / "data", tmp_path / "train.toml"
    for seed in (1, 2):
        write_subject(data, seed)
    config.write_text(CONFIG.replace("[network]", '[network]\nquadrature = "sum"'))
    done = call("train", data, "--task", "signal", "--config", config, "-o", tmp_path / "out")
    assert done.status == 1
    assert 'voxels of 2 x 2 x 2.5 mm, but quadrature = "sum" needs cubic voxels' in done.error


def test_a_scan_is_predicted_along_other_directions(
    call: Call,  # noqa: F811
    weights: Path,
    tmp_path: Path,
) -> None:
    scan = write_subject(tmp_path / "data", 1)
    directions = write_table(tmp_path / "other.bvec", 8)
    given = (scan, "--weights", weights, "--mask", next(tmp_path.rglob("*mask.nii.gz")))
    done = call("predict", *given, "--directions", tmp_path / "other.bvec", "-o", tmp_path / "out")
    assert done.status == 0, done.stderr
    found = read_dwi(tmp_path / "out" / "sub-01_desc-predicted_dwi.nii.gz")
    dwi = read_dwi(scan)
    flip = np.array([-1, 1, 1])  # FSL's rule: the determinant of the affine is positive
    q_out = np.concatenate([np.zeros((1, 3)), directions * flip])
    np.testing.assert_allclose(found.q, q_out, atol=1e-6)
    expected = predict_blocks(load_network(weights), dwi, q_out=q_out)
    np.testing.assert_allclose(found.signal, expected, atol=1e-4)
    about = json.loads((tmp_path / "out" / "sub-01_maps.json").read_text())
    assert about["Scans"] == ["sub-01_desc-predicted_dwi.nii.gz"]
    assert about["Directions"] == "other.bvec"
    assert about["Maps"] == [
        "sub-01_mean.nii.gz",
        *(f"sub-01_{ending}.nii.gz" for ending in (FA, MD)),
    ]
    names = {path.name for path in (tmp_path / "out").glob("*_dwimap.*")}
    assert len(names) == 4
    assert "sub-01_model-tensor_param-fa_dwimap.json" in names
    for ending, values in zip((FA, MD), tensor_maps(found), strict=True):
        image = nib.load(tmp_path / "out" / f"sub-01_{ending}.nii.gz").get_fdata()[dwi.mask]
        np.testing.assert_allclose(image, values, rtol=1e-2, atol=1e-6)
    md = json.loads((tmp_path / "out" / f"sub-01_{MD}.json").read_text())
    assert (md["Model"]["Parameters"]["FitMethod"], md["Units"]) == ("ols", "mm^2/s")
    again = call("predict", *given, "-o", tmp_path / "out")
    assert "exists already" in again.error


def test_without_directions_the_scan_is_predicted_along_its_own(
    call: Call,  # noqa: F811
    weights: Path,
    tmp_path: Path,
) -> None:
    scan = write_subject(tmp_path / "data", 1)
    mask = next(tmp_path.rglob("*mask.nii.gz"))
    done = call("predict", scan, "--weights", weights, "--mask", mask, "-o", tmp_path / "out")
    assert done.status == 0, done.stderr
    found, dwi = read_dwi(tmp_path / "out" / "sub-01_desc-predicted_dwi.nii.gz"), read_dwi(scan)
    np.testing.assert_allclose(found.q, dwi.q, atol=1e-6)


def test_a_scan_is_denoised_and_written_again(
    call: Call,  # noqa: F811
    weights: Path,
    tmp_path: Path,
) -> None:
    scan = write_subject(tmp_path / "data", 1)
    mask, out = next(tmp_path.rglob("*mask.nii.gz")), tmp_path / "out"
    given = ("predict", scan, "--weights", weights, "--mask", mask, "--denoise", "-o", out)
    done = call(*given)
    assert done.status == 0, done.stderr
    name = "sub-01_desc-denoised_dwi"
    found, dwi = read_dwi(out / f"{name}.nii.gz"), read_dwi(scan)
    np.testing.assert_allclose(found.q, dwi.q, atol=1e-6)
    np.testing.assert_allclose(found.b0, dwi.b0)
    network = load_network(weights)
    assert isinstance(network, SignalPredictor)
    expected = predict_blocks(Denoiser(network).eval(), dwi)
    np.testing.assert_allclose(found.signal, expected, atol=1e-4)
    about = json.loads((out / "sub-01_maps.json").read_text())
    assert about["Scans"] == [f"{name}.nii.gz"]
    assert about["Maps"][-1] == "sub-01_residual.nii.gz"
    removed = np.sqrt(np.square((dwi.signal - found.signal)[:, 1:]).mean(axis=1))
    residual = nib.load(out / "sub-01_residual.nii.gz").get_fdata()[dwi.mask]
    np.testing.assert_allclose(residual, removed, atol=1e-4)
    sidecar = json.loads((out / f"{name}.json").read_text())
    assert sidecar["SkullStripped"] is True
    assert "b0 is written as measured" in sidecar["Notes"][-2]
    assert "predicted from other directions" in sidecar["Notes"][-1]
    (out / "sub-01_maps.json").unlink()
    assert "exists already" in call(*given).error


def test_what_cannot_be_denoised_is_refused(
    call: Call,  # noqa: F811
    weights: Path,
    tmp_path: Path,
) -> None:
    scan = write_subject(tmp_path / "data", 1, number=6)
    mask, table = next(tmp_path.rglob("*mask.nii.gz")), tmp_path / "other.bvec"
    given = ("predict", scan, "--weights", weights, "--mask", mask, "-o", tmp_path / "out")
    assert "b = 1000 s/mm2 has 6 directions" in failure(call(*given, "--denoise"))
    write_table(table, 6)
    done = call(*given, "--denoise", "--directions", table)
    assert done.status == 2
    assert "omit --directions" in done.stderr
    save_network(Encoder(p_radius=2.6), weights, {"task": "signal"})
    assert "Encoder: only a SignalPredictor can denoise" in failure(call(*given, "--denoise"))
    assert not (tmp_path / "out").exists()


def failure(done: Outcome) -> str:
    assert done.status == 1
    return done.error


def test_directions_that_cannot_be_predicted_are_named(
    call: Call,  # noqa: F811
    weights: Path,
    tmp_path: Path,
) -> None:
    scan = write_subject(tmp_path / "data", 1)
    mask, table = next(tmp_path.rglob("*mask.nii.gz")), tmp_path / "other.bvec"
    given = ("predict", scan, "--mask", mask, "--weights", weights, "-o", tmp_path / "out")
    write_table(table, 3)
    (tmp_path / "other.bval").write_text("1000 1000 3000\n")
    assert "no shell near b=3000" in failure(call(*given, "--directions", table))
    (tmp_path / "other.bval").write_text("1000 1000\n")
    assert "3 directions, but 2 b-values" in failure(call(*given, "--directions", table))
    (tmp_path / "other.bval").write_text("0 0 0\n")
    assert "no direction" in failure(call(*given, "--directions", table))
    assert not (tmp_path / "out").exists()


def test_other_tasks_take_no_directions(call: Call, tmp_path: Path) -> None:  # noqa: F811
    from tests.commands.conftest import write_weights

    scan = write_subject(tmp_path / "data", 1)
    weights = write_weights(tmp_path / "lesions.safetensors")
    write_table(tmp_path / "other.bvec", 6)
    given = ("predict", scan, "--weights", weights, "-o", tmp_path / "out")
    for option in (("--directions", tmp_path / "other.bvec"), ("--denoise",)):
        expected = f"{option[0]}: {weights} is of the task lesions, which does not predict signal"
        assert expected in failure(call(*given, *option))


def test_too_little_memory_is_refused(call: Call, tmp_path: Path) -> None:  # noqa: F811
    for seed in (1, 2):
        write_subject(tmp_path / "data", seed)
    given = ("train", tmp_path / "data", "--task", "signal", "-o", tmp_path / "out")
    assert "more than --memory" in failure(call(*given, "--memory", "10kB"))


def test_the_settings_are_those_of_the_constructors() -> None:
    from tripq.tasks.signal.config import SignalConfig

    settings = SignalConfig()
    network = SignalPredictor()
    for name, value in vars(settings.network).items():
        assert getattr(network, name) == value
    text = example_config(SignalConfig)
    assert parse_config(text, "example", SignalConfig) == settings


def test_grids_must_agree(call: Call, tmp_path: Path) -> None:  # noqa: F811
    scan = write_subject(tmp_path / "data", 1)
    dwi = read_dwi(scan)
    moved = replace(dwi, affine=np.diag([1.5, 1.5, 1.5, 1]) @ dwi.affine, path=None, header=None)
    path = tmp_path / "maps/sub-01/dwi/sub-01_desc-predicted_dwi.nii.gz"
    path.parent.mkdir(parents=True)
    write_dwi(moved, path)
    assert nib.load(path).shape[3] == 15
    given = ("evaluate", "--task", "signal", tmp_path / "maps", tmp_path / "data")
    assert "another grid" in call(*given, "-o", tmp_path / "out").stderr


def test_scans_that_share_a_name_are_left_out(tmp_path: Path) -> None:
    scan = write_subject(tmp_path / "data", 1)
    for order in ("acq-a_run-1", "run-1_acq-a"):
        for path in sorted(scan.parent.glob("sub-01_dwi.*")):
            path.with_name(path.name.replace("_dwi", f"_{order}_dwi")).write_bytes(
                path.read_bytes()
            )
    found = MeasuredFiles.find(tmp_path / "data", tmp_path / "none")
    assert [item.name for item in found.files] == ["sub-01"]
    assert len(found.left_out) == 2
    assert all("has the same name as" in reason for reason in found.left_out.values())
