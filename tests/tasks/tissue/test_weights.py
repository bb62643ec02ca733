"""The network that comes with the package."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.commands.conftest import Call, call  # noqa: F401
from tripq.networks import load_network, read_notes
from tripq.networks.apply import load_model
from tripq.networks.blocks import predict_blocks
from tripq.networks.card import card_header
from tripq.simulate import GradientTable, default_anatomy, random_rotation, simulate_scan
from tripq.tasks.tissue.classes import Classes
from tripq.tasks.tissue.command import TissueCommands
from tripq.tasks.tissue.scans import LabelledScan, write_labelled
from tripq.tasks.tissue.scoring import class_dice
from tripq.tasks.tissue.simulated import label_scan


@pytest.fixture(scope="module")
def weights() -> Path:
    return TissueCommands().included_weights()


@pytest.fixture(scope="module")
def scan() -> LabelledScan:
    """A slab of a head in an unusual pose with few directions."""
    anatomy = default_anatomy(3.0).within((-80, -110, -5), (80, 80, 40))
    turn = random_rotation(np.random.default_rng(5))
    table = GradientTable.from_shells([1000.0], [20])
    return label_scan(simulate_scan(anatomy, table, 77, rotation=turn), "sub-01")


@pytest.fixture(scope="module")
def scores(weights: Path, scan: LabelledScan) -> NDArray[np.float32]:
    return predict_blocks(load_network(weights).eval(), scan.dwi)


def test_the_included_network_is_small_and_of_the_task(weights: Path) -> None:
    assert weights.stat().st_size < 5e6
    assert read_notes(weights)["task"] == "tissue"
    assert Classes.of(load_model(weights)).labels == ("WM", "GM", "CSF")


def test_the_included_network_labels_a_head_of_the_simulator(
    scores: NDArray[np.float32], scan: LabelledScan
) -> None:
    found = scores.argmax(axis=1)
    dice = [class_dice(found == number, scan.labels == number) for number in range(3)]
    assert min(dice) > 0.7


def test_labels_do_not_depend_on_the_order_and_the_signs_of_directions(
    weights: Path, scores: NDArray[np.float32], scan: LabelledScan
) -> None:
    order = np.concatenate([[0], np.random.default_rng(0).permutation(np.arange(1, 21))])
    other = scan.dwi.with_samples(order)
    found = predict_blocks(load_network(weights).eval(), replace(other, q=-other.q))
    np.testing.assert_allclose(found, scores, atol=1e-3)


def test_the_command_uses_it_where_no_other_is_given(
    call: Call,  # noqa: F811
    weights: Path,
    scan: LabelledScan,
    tmp_path: Path,
    plain_pages: None,
) -> None:
    height = scan.dwi.mask.shape[2]
    slab = scan.dwi.mask & (np.abs(np.arange(height) - height // 2) < 4)
    inside = slab[scan.dwi.mask]
    small = replace(scan, dwi=scan.dwi.with_voxels(slab), labels=scan.labels[inside])
    write_labelled(tmp_path, small)
    dwi = next(tmp_path.rglob("*_dwi.nii.gz"))
    mask = next(tmp_path.rglob("*mask.nii.gz"))
    for out, options in (("a", ("--task", "tissue")), ("b", ("--weights", weights))):
        done = call("predict", dwi, "--mask", mask, *options, "-o", tmp_path / out)
        assert done.status == 0, done.stderr
    maps = [next((tmp_path / out).rglob("*_dseg.nii.gz")).read_bytes() for out in "ab"]
    assert maps[0] == maps[1]


def test_the_page_of_the_network_is_a_model_card(weights: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "tissue-weights.md").read_text(encoding="utf-8")
    assert page.startswith(card_header(read_notes(weights), tags=["image-segmentation"]) + "\n# ")
