"""The example writes what it promises, and tells in one line what is wrong with its input."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.conftest import FEW_SETTLING, run_program
from tripq.networks.checkpoint import load_network, save_network

EXAMPLE = Path(__file__).parents[2] / "examples" / "segment_ms.py"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and output of a tiny run."""
    out = tmp_path_factory.mktemp("example") / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "120")
        patch.setattr("tripq.training.module.N_SETTLING", FEW_SETTLING)
        shown = run_program(EXAMPLE, "--quick", "--out", out)
    return out, shown


def test_it_writes_what_it_promises(results: tuple[Path, str]) -> None:
    out, _ = results
    assert {path.name for path in out.iterdir()} == {
        "metrics.json",
        "comparison.png",
        "equivariant.safetensors",
        "cnn.safetensors",
        "small_64D_lesion_probability.nii.gz",
        "small_64D_lesion_probability.png",
    }
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["data"] == "simulated diffusion signal"
    assert set(metrics["networks"]) == set(metrics["training"]) == {"equivariant", "3D CNN"}
    for network in metrics["networks"].values():
        assert {"roc_auc", "average_precision", "dice"} < set(network["pooled"])


def test_it_says_that_the_data_is_simulated(results: tuple[Path, str]) -> None:
    _, output = results
    assert "held-out subjects: 1, simulated diffusion signal" in " ".join(output.split())
    assert "trained on simulated diffusion signal; for research only" in " ".join(output.split())


def test_the_map_lies_on_the_grid_of_the_scan(results: tuple[Path, str]) -> None:
    from dipy.data import get_fnames

    out, _ = results
    scan = nib.load(get_fnames(name="small_64D")[0])
    written = nib.load(out / "small_64D_lesion_probability.nii.gz")
    assert written.shape == scan.shape[:3]
    np.testing.assert_array_equal(written.affine, scan.affine)
    probability = np.asarray(written.dataobj)
    assert probability.dtype == np.float32
    assert 0 <= probability.min() < probability.max() <= 1


def call(*arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the example in this process; it ends with SystemExit."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # handlers stay those of the tests
    spec = importlib.util.spec_from_file_location("segment_ms", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "segment_ms", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *map(str, arguments)])
    module.start(module.app)


def test_a_checkpoint_is_applied_without_training(
    results: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = results
    with pytest.raises(SystemExit) as exit_:
        call(
            *("--network", out / "equivariant.safetensors", "--out", tmp_path),
            monkeypatch=monkeypatch,
        )
    assert exit_.value.code == 0
    first, second = (
        np.asarray(nib.load(folder / "small_64D_lesion_probability.nii.gz").dataobj)
        for folder in (out, tmp_path)
    )
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert not (tmp_path / "metrics.json").exists()


def test_a_checkpoint_for_other_voxels_is_refused(
    results: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = results
    network = load_network(out / "equivariant.safetensors")
    save_network(network, tmp_path / "other.safetensors", {"voxel_size_mm": "2.5"})
    with pytest.raises(SystemExit) as exit_:
        call(
            *("--network", tmp_path / "other.safetensors", "--out", tmp_path),
            monkeypatch=monkeypatch,
        )
    assert "other.safetensors: trained on voxels of 2.5 mm, but" in str(exit_.value.code)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--scan", "nowhere.nii.gz"], "nowhere.nii.gz"),
        (["--scan", "text.nii.gz"], "text.nii.gz"),
        (["--network", "nowhere.safetensors"], "nowhere.safetensors: no such file"),
        (["--network", "text.nii.gz"], "text.nii.gz: not a complete safetensors file"),
        (["--out", "text.nii.gz"], "text.nii.gz: File exists"),
    ],
)
def test_bad_input_is_told_in_one_line(
    arguments: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.nii.gz").write_text("this is no image")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        call(*arguments, monkeypatch=monkeypatch)
    # sys.exit with a text prints it and exits with 1.
    message = exit_.value.code
    assert isinstance(message, str)
    assert message.startswith("error: ")
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "arguments", [["--minutes", "0"], ["--mask", "mask.nii.gz"], ["--frame", "head"], ["--nothing"]]
)
def test_wrong_usage_exits_with_2(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        call(*arguments, monkeypatch=monkeypatch)
    assert exit_.value.code == 2
    assert "Usage" in capsys.readouterr().err


def test_help_names_every_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as exit_:
        call("--help", monkeypatch=monkeypatch)
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    for option in ("--out", "--seed", "--minutes", "--subjects", "--scan", "--frame", "--quick"):
        assert option in shown
