"""The network that comes with the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.commands.conftest import Call, call  # noqa: F401
from tests.tasks.fibres.conftest import fibre_head
from tripq.networks import load_network, read_notes
from tripq.networks.blocks import predict_blocks
from tripq.networks.card import card_header
from tripq.scans import write_dwi, write_map
from tripq.simulate import GradientTable, default_anatomy
from tripq.so3.deconvolution import Deconvolution
from tripq.tasks.fibres.command import FibreCommands
from tripq.tasks.fibres.names import FODF
from tripq.tasks.fibres.network import RIDGES, FibreNetwork
from tripq.tasks.fibres.scoring import FibreMap, score_fibres
from tripq.tasks.fibres.simulate import simulate_fibres

SCORES = ("angular_correlation", "single_error", "crossing_error")

pytestmark = pytest.mark.usefixtures("plain_pages")


@pytest.fixture(scope="module")
def weights() -> Path:
    return FibreCommands().included_weights()


def test_the_included_network_is_small_and_of_the_task(weights: Path) -> None:
    assert weights.stat().st_size < 5e6
    assert read_notes(weights)["task"] == "fibres"


@pytest.mark.parametrize("number", [12, 32])
def test_the_included_network_is_better_than_its_deconvolutions(weights: Path, number: int) -> None:
    """On a head of the simulator that it was not trained on."""
    anatomy = default_anatomy(2.5).within((-30, -30, 14), (30, 20, 28))
    table = GradientTable.from_shells([1000.0], [number])
    head = simulate_fibres(anatomy, table, seed=7, snr=20.0).scaled()
    network = load_network(weights).eval()
    assert isinstance(network, FibreNetwork)
    q, signal = torch.from_numpy(head.dwi.q[1:]), torch.from_numpy(head.dwi.signal[:, 1:])
    found = [Deconvolution.of(q, 8, ridge)(signal).numpy() for ridge in RIDGES]

    def scores(fodf: np.ndarray) -> dict[str, float]:
        columns = score_fibres([FibreMap("head", fodf, head.peaks, head.fodf)]).rows[-1].columns
        return {name: float(columns[name]) for name in SCORES}

    ours = scores(predict_blocks(network, head.dwi))
    for theirs in map(scores, found):
        assert ours["angular_correlation"] > theirs["angular_correlation"] + 0.1
        if number == 32:  # from 12 directions the errors of peaks are about the same
            assert ours["single_error"] < theirs["single_error"]
            assert ours["crossing_error"] < theirs["crossing_error"]


def test_the_commands_use_it_where_no_other_is_given(
    call: Call,  # noqa: F811
    weights: Path,
    tmp_path: Path,
) -> None:
    dwi = fibre_head(1).dwi
    scan, mask = tmp_path / "dwi.nii.gz", tmp_path / "mask.nii.gz"
    write_dwi(dwi, scan)
    write_map(np.ones(len(dwi.b0), bool), dwi, mask)
    for out, options in (("a", ("--task", "fibres")), ("b", ("--weights", weights))):
        done = call("predict", scan, "--mask", mask, *options, "-o", tmp_path / out)
        assert done.status == 0, done.stderr
    one, other = ((tmp_path / out / f"dwi_{FODF}.nii.gz").read_bytes() for out in "ab")
    assert one == other


def test_the_page_of_the_network_is_a_model_card(weights: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "fibres-weights.md").read_text(encoding="utf-8")
    tags = ["fibre-orientation-distribution", "fodf", "angular-super-resolution"]
    assert page.startswith(card_header(read_notes(weights), tags=tags) + "\n# ")
