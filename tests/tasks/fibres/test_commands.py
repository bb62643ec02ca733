"""The task in the commands: train on a simulated cohort, predict, and score, through files."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from dipy.core.sphere import Sphere
from dipy.reconst.shm import sh_to_sf

from tests.commands.conftest import Call, Outcome, call  # noqa: F401
from tests.tasks.fibres.conftest import angle, fibre_head
from tripq.networks import load_network, read_notes, save_network
from tripq.networks.blocks import predict_blocks
from tripq.scans import read_dwi
from tripq.scans.response import scale_by_response
from tripq.so3.fit import harmonics_at
from tripq.so3.mrtrix import ORTHONORMAL
from tripq.tasks.fibres.network import FibreNetwork
from tripq.tasks.fibres.simulate import write_cohort
from tripq.tasks.layout import TRUTH
from tripq.training.config import example_config, parse_config

pytestmark = pytest.mark.usefixtures("plain_pages")

CONFIG = """
[network]
p_radius = 5.0
p_features = "3x0e + 1x2e"

[training]
steps = 4
every = 2
box_size = 6
n_boxes = 1

[split]
validation = ["02"]
"""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of three heads."""
    from dataclasses import replace

    folder = tmp_path_factory.mktemp("cohort")
    write_cohort((replace(fibre_head(i), name=f"sub-{i:02}") for i in (1, 2, 3)), folder)
    return folder


def test_what_is_trained_predicts_and_is_scored(
    call: Call,  # noqa: F811
    cohort: Path,
    tmp_path: Path,
) -> None:
    out, config = tmp_path / "out", tmp_path / "train.toml"
    config.write_text(CONFIG)
    done = call("train", cohort, "--task", "fibres", "--config", config, "-o", out)
    assert done.status == 0, done.stderr
    assert "On 1 validation scans: angular correlation" in done.stdout
    file = out / "fibres.safetensors"
    notes = read_notes(file)
    assert (notes["task"], notes["b_values"], notes["voxel_size_mm"]) == ("fibres", "1000", "4")
    scores = json.loads((out / "training.json").read_text())["validation_scores"]
    assert scores["sub-02"] == scores["all"]
    assert "crossings" in (out / "validation.html").read_text()

    maps = tmp_path / "maps" / "sub-02" / "dwi"
    scan = cohort / "sub-02/dwi/sub-02_dwi.nii.gz"
    mask = cohort / TRUTH / "sub-02/dwi/sub-02_desc-brain_mask.nii.gz"
    done = call("predict", scan, "--mask", mask, "--weights", file, "-o", maps)
    assert done.status == 0, done.stderr
    done = call(
        *("evaluate", "--task", "fibres", tmp_path / "maps", cohort / TRUTH),
        *("-o", tmp_path / "scores"),
    )
    assert done.status == 0, done.stderr
    (row,) = json.loads((tmp_path / "scores" / "scores.json").read_text())["scans"]
    validated = scores["all"]["angular_correlation"]
    assert row["angular_correlation"] == pytest.approx(validated, abs=1e-3)
    assert row["single_voxels"] > 20
    assert row["crossing_voxels"] > 20


def test_the_maps_are_those_of_mrtrix(
    call: Call,  # noqa: F811
    cohort: Path,
    tmp_path: Path,
) -> None:
    """Read by dipy, they have the values of the network, in world axes."""
    torch.manual_seed(2)
    network = FibreNetwork(p_radius=5.0, p_features="3x0e + 1x2e").eval()
    for weight in (network.bias, *network.start):
        torch.nn.init.normal_(weight, std=8.0)
    weights = tmp_path / "fibres.safetensors"
    save_network(network, weights, {"task": "fibres", "voxel_size_mm": "4", "b_values": "1000"})
    scan = cohort / "sub-01/dwi/sub-01_dwi.nii.gz"
    mask = cohort / TRUTH / "sub-01/dwi/sub-01_desc-brain_mask.nii.gz"
    done = call("predict", scan, "--mask", mask, "--weights", weights, "-o", tmp_path / "out")
    assert done.status == 0, done.stderr
    dwi = read_dwi(scan, mask=mask)
    expected = predict_blocks(load_network(weights), scale_by_response(dwi))
    image = nib.load(tmp_path / "out/sub-01_model-fibres_param-fodf_dwimap.nii.gz")
    rng = np.random.default_rng(0)
    v = rng.normal(size=(20, 3))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    values = sh_to_sf(
        image.get_fdata()[dwi.mask],
        Sphere(xyz=v),
        sh_order_max=8,
        basis_type="tournier07",
        legacy=False,
    )
    at = harmonics_at(torch.from_numpy(v), 8).numpy() / ORTHONORMAL
    np.testing.assert_allclose(values, expected @ at.T, atol=1e-4)
    peaks = (
        nib.load(tmp_path / "out/sub-01_model-fibres_param-peaks_dwimap.nii.gz")
        .get_fdata()[dwi.mask]
        .reshape(-1, 3, 3)
    )
    there = peaks[:, 0].any(axis=1)
    assert there.mean() > 0.1
    first = peaks[there, 0] / np.linalg.norm(peaks[there, 0], axis=1, keepdims=True)
    along = harmonics_at(torch.from_numpy(first), 8).numpy() / ORTHONORMAL
    np.testing.assert_allclose(
        (expected[there] * along).sum(axis=1), np.linalg.norm(peaks[there, 0], axis=1), rtol=1e-3
    )
    about = json.loads((tmp_path / "out/sub-01_model-fibres_param-fodf_dwimap.json").read_text())[
        "OrientationEncoding"
    ]
    assert (about["SphericalHarmonicBasis"], about["SphericalHarmonicDegree"]) == ("mrtrix3", 8)
    sidecar = json.loads((tmp_path / "out/sub-01_model-fibres_param-peaks_dwimap.json").read_text())
    assert sidecar["Model"]["Parameters"]["Shells"] == [1000]


def test_the_truth_has_no_error(call: Call, cohort: Path, tmp_path: Path) -> None:  # noqa: F811
    copy = tmp_path / "maps"
    for path in (cohort / TRUTH).rglob("*_model-fibres_param-fodf_dwimap.nii.gz"):
        target = copy / path.relative_to(cohort / TRUTH)
        target.parent.mkdir(parents=True)
        target.write_bytes(path.read_bytes())
    done = call("evaluate", "--task", "fibres", copy, cohort / TRUTH, "-o", tmp_path / "scores")
    assert done.status == 0, done.stderr
    pooled = json.loads((tmp_path / "scores" / "scores.json").read_text())["pooled"]
    assert pooled["angular_correlation"] == pytest.approx(1, abs=1e-6)
    assert pooled["single_error"] < 1.0
    assert pooled["crossing_error"] < 3.0  # order 8 moves peaks that are near to each other
    assert pooled["crossings_found"] > 0.99


def failure(done: Outcome) -> str:
    assert done.status == 1
    return done.error


def test_maps_without_known_fibres_are_named(
    call: Call,  # noqa: F811
    cohort: Path,
    tmp_path: Path,
) -> None:
    wrong = tmp_path / "maps/sub-01/dwi/sub-01_model-fibres_param-fodf_dwimap.nii.gz"
    wrong.parent.mkdir(parents=True)
    truth = nib.load(cohort / TRUTH / "sub-01/dwi/sub-01_model-fibres_param-fodf_dwimap.nii.gz")
    truth.slicer[..., :7].to_filename(wrong)
    given = (
        "evaluate",
        "--task",
        "fibres",
        tmp_path / "maps",
        cohort / TRUTH,
        "-o",
        tmp_path / "s",
    )
    assert "7 coefficients do not match an even order" in call(*given).stderr
    truth.slicer[:-1].to_filename(wrong)
    assert "grid" in call(*given).stderr
    assert "have none" in failure(call(*given, "--threshold", "0.5"))
    assert "have none" in failure(call(*given, "--choose-limits"))


def test_scans_without_known_fibres_cannot_be_trained_on(
    call: Call,  # noqa: F811
    cohort: Path,
    tmp_path: Path,
) -> None:
    empty = tmp_path / "truth"
    (empty / "sub-01").mkdir(parents=True)
    done = call(
        *("train", cohort, "--task", "fibres", "--truth", empty, "-o", tmp_path / "out"),
    )
    assert "none of its 3 scans is suitable for training" in failure(done)


def test_the_settings_are_those_of_the_constructors() -> None:
    from tripq.tasks.fibres.config import FibreConfig

    settings = FibreConfig()
    network = FibreNetwork()
    for name, value in vars(settings.network).items():
        assert getattr(network, name) == value
    text = example_config(FibreConfig)
    assert parse_config(text, "example", FibreConfig) == settings


def test_directions_of_the_truth_are_in_world_axes(cohort: Path) -> None:
    """Where a single fibre fills a voxel, the tensor of the scan has it as its first axis."""
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dti import TensorModel

    dwi = read_dwi(cohort / "sub-01/dwi/sub-01_dwi.nii.gz")
    truth = cohort / TRUTH / "sub-01/dwi/sub-01_model-fibres_param-peaks_dwimap.nii.gz"
    peaks = nib.load(truth).get_fdata()[dwi.mask].reshape(-1, 3, 3)
    lengths = np.linalg.norm(peaks, axis=-1)
    single = (lengths[:, 0] > 0.6) & (lengths[:, 1] < 0.1)
    assert single.sum() > 20
    unit = dwi.q / np.maximum(np.linalg.norm(dwi.q, axis=1, keepdims=True), 1e-9)
    table = gradient_table(dwi.b_values, bvecs=unit, b0_threshold=10)
    axes = TensorModel(table).fit(dwi.signal[single].astype(float)).evecs[:, :, 0]
    assert np.median(angle(axes, peaks[single, 0])) < 8
