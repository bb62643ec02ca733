"""The network that comes with the package."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.commands.conftest import Call, call  # noqa: F401
from tests.tasks.fibres.conftest import angle, fibre_head
from tripq.networks import load_network, read_notes
from tripq.networks.blocks import predict_blocks
from tripq.networks.card import card_header
from tripq.scans import write_dwi, write_map
from tripq.simulate import GradientTable, default_anatomy
from tripq.tasks.fibres.command import FibreCommands
from tripq.tasks.fibres.names import PEAKS
from tripq.tasks.fibres.peaks import find_peaks
from tripq.tasks.fibres.scoring import FibreMap, score_fibres
from tripq.tasks.fibres.simulate import simulate_fibres

TAGS = ["fibre-orientation-distribution", "fodf", "angular-super-resolution"]


@pytest.fixture(scope="module")
def weights() -> Path:
    found = FibreCommands().included_weights()
    assert found is not None
    return found


def test_the_included_network_is_small_and_of_the_task(weights: Path) -> None:
    assert weights.stat().st_size < 5e6
    assert read_notes(weights)["task"] == "fibres"


def test_the_included_network_finds_fibres_of_a_head_that_it_has_not_seen(weights: Path) -> None:
    anatomy = default_anatomy(2.5).within((-25, -25, 10), (25, 25, 30))
    table = GradientTable.from_shells([1000.0], [32])
    scan = simulate_fibres(anatomy, table, 12345, snr=20.0)
    known = scan.peaks[:, 0].any(axis=1)
    found = predict_blocks(load_network(weights).eval(), scan.dwi)[known]
    one = FibreMap("head", found, scan.peaks[known], scan.fodf[known])
    scores = score_fibres([one]).rows[-1].columns
    assert scores["single_error"] < 4
    assert scores["angular_correlation"] > 0.8


def test_the_command_uses_it_where_no_other_is_given(
    call: Call,  # noqa: F811
    weights: Path,
    tmp_path: Path,
    plain_pages: None,
) -> None:
    head = fibre_head(1, number=20)
    scan, mask = tmp_path / "sub-01_dwi.nii.gz", tmp_path / "mask.nii.gz"
    write_dwi(head.dwi, scan)
    write_map(np.ones(len(head.dwi.b0), bool), head.dwi, mask)
    name = f"sub-01_{PEAKS}.nii.gz"
    for out, options in (("a", ("--task", "fibres")), ("b", ("--weights", weights))):
        done = call("predict", scan, "--mask", mask, *options, "-o", tmp_path / out)
        assert done.status == 0, done.stderr
    assert len({(tmp_path / out / name).read_bytes() for out in "ab"}) == 1
    peaks = np.asarray(nib.load(tmp_path / "a" / name).dataobj)[head.dwi.mask].reshape(-1, 3, 3)
    lengths = np.linalg.norm(find_peaks(head.fodf), axis=-1)
    single = (lengths[:, 0] > 2) & (lengths[:, 1] < 0.2)
    assert np.median(angle(peaks[single, 0], find_peaks(head.fodf)[single, 0])) < 10


def test_the_page_of_the_network_is_a_model_card(weights: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "fibres-weights.md").read_text(encoding="utf-8")
    assert page.startswith(card_header(read_notes(weights), tags=TAGS) + "\n# ")
