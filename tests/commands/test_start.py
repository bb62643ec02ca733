"""`tripq train --start`: what is taken, what is said of it, and how an interrupted one goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.commands.conftest import Call, Outcome
from tests.commands.test_train import CONFIG, data, out, record, weights  # noqa: F401
from tripq.commands.train import Watch
from tripq.infra.files import sha256
from tripq.networks import load_network, read_notes, save_network
from tripq.networks.encoder import VoxelNetwork
from tripq.tasks.lesions.command import LesionCommands
from tripq.tasks.lesions.segmenter import LesionSegmenter
from tripq.tasks.signal.network import SignalPredictor

pytestmark = pytest.mark.usefixtures("few_settling")

#: The network is left to the start.
REST = CONFIG[CONFIG.index("[training]") :]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "train.toml"
    path.write_text(REST)
    return path


@pytest.fixture
def start(tmp_path: Path) -> Path:
    path = tmp_path / "earlier.safetensors"
    network = LesionSegmenter(
        p_radius=2.5, q_features="4x0e+2x2e", p_features="3x0e+1x1o", n_p_layers=2
    )
    notes = {"data": "other scans", "caution": "of one scanner; for research only"}
    save_network(network, path, notes)
    return path


@pytest.fixture
def fit(call: Call, data: Path, config: Path, out: Path):  # noqa: F811
    def run(*more: object) -> Outcome:
        return call("train", data, "--config", config, "-o", out, "--device", "cpu", *more)

    return run


def test_the_same_task_goes_on_with_all_weights(
    fit,
    start: Path,
    config: Path,
    out: Path,  # noqa: F811
) -> None:
    config.write_text(REST.replace("[training]", "[training]\nlearning_rate = 1e-30"))
    done = fit("--start", start)
    assert done.status == 0, done.stderr
    assert f"{start}: taken: all weights." in done.stderr
    found, expected = load_network(weights(out)), load_network(start)
    assert isinstance(found, LesionSegmenter)
    assert (found.n_p_layers, found.p_radius) == (2, 2.5)
    for name, values in expected.state_dict().items():
        np.testing.assert_allclose(found.state_dict()[name], values, rtol=0, atol=1e-20)
    notes = read_notes(weights(out))
    digest = sha256(start)
    assert notes["started_from"] == f"earlier.safetensors, SHA-256 {digest}: all weights"
    assert notes["data"].endswith("; started from a network trained on other scans")
    assert notes["caution"] == (
        "for research only, not for diagnosis; of one scanner; for research only"
    )
    about = record(out)
    assert about["start"]["SHA256"] == digest
    assert about["start"]["new"] == []
    assert about["settings"]["network"]["n_p_layers"] == 2


def test_the_encoder_of_another_task_is_taken(
    fit,
    start: Path,
    out: Path,  # noqa: F811
) -> None:
    save_network(
        VoxelNetwork("3x0e", p_radius=2.5, q_features="4x0e", p_features="3x0e", n_p_layers=1),
        start,
        {"task": "tissue"},
    )
    done = fit("--start", start)
    assert done.status == 0, done.stderr
    assert f"{start}: taken: the encoder; head starts anew." in done.stderr
    assert read_notes(weights(out))["data"].endswith("a network trained on unknown data")
    about = record(out)["start"]
    assert all(name.startswith("blocks.") for name in about["taken"])
    assert set(about["new"]) == {"head.filters.0.weight", "head.bias"}


def test_a_network_that_comes_with_tripq_is_named_by_its_task(
    fit,
    out: Path,  # noqa: F811
) -> None:
    done = fit("--start", "lesions")
    assert done.status == 0, done.stderr
    included = LesionCommands().included_weights()
    notes = read_notes(weights(out))
    assert notes["caution"].startswith("for research only, not for diagnosis; trained on modelled")
    assert sha256(included) in notes["started_from"]
    network = load_network(weights(out))
    assert str(network.q_features) == "16x0e + 8x2e + 4x4e"


def test_an_interrupted_training_goes_on_from_its_own_checkpoint(
    fit,
    start: Path,
    out: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert fit("--start", start).status == 0
    undisturbed = load_network(weights(out)).state_dict()
    report = Watch.__call__

    def interrupted(self, progress):
        report(self, progress)
        if progress.steps == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Watch, "__call__", interrupted)
    again = ("--start", start, "-o", tmp_path / "again")
    assert fit(*again).status == 130
    monkeypatch.setattr(Watch, "__call__", report)
    done = fit(*again)
    assert done.status == 0, done.stderr
    assert "training resumes" in done.stderr
    assert "taken:" not in done.stderr
    assert "step 2: " not in done.stderr
    for name, values in load_network(weights(tmp_path / "again")).state_dict().items():
        np.testing.assert_array_equal(values, undisturbed[name])
    assert "started_from" in read_notes(weights(tmp_path / "again"))


def test_another_start_is_another_training(
    fit,
    start: Path,
    out: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    assert fit("--start", start).status == 0
    renamed = tmp_path / "renamed.safetensors"
    shutil.copy(start, renamed)
    assert fit("--start", renamed).status == 0  # the same content
    save_network(load_network(start), renamed, {"data": "elsewhere"})
    assert "other settings (start)" in fit("--start", renamed).error
    assert "start" in fit().error


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("n_p_layers = 3", "[network] n_p_layers = 3, but the network of {start} has 2: omit"),
        ("q_features = '4x0e'", "[network] q_features = '4x0e', but the network of {start} has '4"),
    ],
)
def test_a_setting_that_contradicts_the_start_is_named(
    fit, start: Path, config: Path, network: str, message: str
) -> None:
    config.write_text(f"[network]\n{network}\n{REST}")
    error = fit("--start", start).error
    assert error.startswith(f"error: {config}: ")
    assert message.format(start=start) in error


def test_a_setting_that_agrees_is_none(fit, start: Path, config: Path) -> None:
    config.write_text(f"[network]\nn_p_layers = 2\nq_features = '4x0e + 2x2e'\n{REST}")
    assert fit("--start", start).status == 0


def test_an_encoder_of_another_kind_is_refused(fit, start: Path) -> None:
    save_network(SignalPredictor(p_features="3x0e"), start, {"task": "signal"})
    assert fit("--start", start).error == (
        f"error: {start}: the encoder of its SignalPredictor is of the kind ShellNetwork, and this "
        "network needs one of the kind Encoder."
    )
