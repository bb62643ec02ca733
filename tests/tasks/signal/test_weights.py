"""The network that comes with the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.commands.conftest import Call, call  # noqa: F401
from tests.tasks.signal.test_commands import write_subject
from tripq.networks import load_network, read_notes
from tripq.networks.blocks import predict_blocks
from tripq.networks.card import card_header
from tripq.networks.harmonics import HarmonicFit
from tripq.simulate import GradientTable, default_anatomy, simulate_scan
from tripq.tasks.signal.command import SignalCommands
from tripq.tasks.signal.network import SignalPredictor
from tripq.tasks.signal.task import SignalTask
from tripq.training.patches import hide

if TYPE_CHECKING:
    from numpy.typing import NDArray


@pytest.fixture(scope="module")
def weights() -> Path:
    return SignalCommands().included_weights()


def test_the_included_network_is_small_and_of_the_task(weights: Path) -> None:
    assert weights.stat().st_size < 5e6
    assert read_notes(weights)["task"] == "signal"


def test_the_included_network_is_better_than_its_fit_on_heads_of_the_simulator(
    weights: Path,
) -> None:
    anatomy = default_anatomy(2.5).within((-20, -20, 10), (20, 20, 30))
    scan = simulate_scan(anatomy, GradientTable.from_shells([1000.0], [30]), 1)
    network = load_network(weights).eval()
    assert isinstance(network, SignalPredictor)
    fit = HarmonicFit(network.order, network.smoothing).eval()
    for hidden in SignalTask().trials(scan):
        shown, known, q = hide(scan.dwi, scan.dwi.signal, hidden)

        def error(found: NDArray[np.float32], known: NDArray[np.float32] = known) -> float:
            return float(np.mean((found - known) ** 2))

        ours, theirs = (error(predict_blocks(one, shown, q_out=q)) for one in (network, fit))
        assert ours < theirs


def test_the_commands_use_it_where_no_other_is_given(
    call: Call,  # noqa: F811
    weights: Path,
    tmp_path: Path,
    plain_pages: None,
) -> None:
    scan = write_subject(tmp_path, 1)
    mask = next((tmp_path / "derivatives").rglob("*mask.nii.gz"))
    name = "sub-01_desc-denoised_dwi.nii.gz"
    for out, options in (("a", ()), ("b", ("--weights", weights)), ("c", ("--task", "signal"))):
        done = call("predict", scan, "--mask", mask, "--denoise", *options, "-o", tmp_path / out)
        assert done.status == 0, done.stderr
    assert len({(tmp_path / out / name).read_bytes() for out in "abc"}) == 1


def test_the_page_of_the_network_is_a_model_card(weights: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "signal-weights.md").read_text(encoding="utf-8")
    header = card_header(read_notes(weights), tags=["denoising", "angular-super-resolution"])
    assert page.startswith(header + "\n# ")
