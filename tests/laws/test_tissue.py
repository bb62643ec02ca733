"""The maps of several classes turn with the head, exactly for turns of the grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation

from tests.laws.conftest import ROUNDING, Head, Map, assert_same, make_head, tripq
from tests.laws.test_rotations import on_the_grid
from tests.strategies import CUBE
from tripq import PQGraph
from tripq.networks import VoxelNetwork, save_network
from tripq.networks.blocks import graph_radius, predict_blocks
from tripq.nn import fill_last_bias, scale_initial_weights
from tripq.scans import read_dwi
from tripq.tasks.tissue.classes import Classes
from tripq.tasks.tissue.command import TissueCommands

CLASSES = Classes(("white", "grey", "fluid"), ("WM", "GM", "CSF"))

Maps = dict[str, np.ndarray]


def make_network(head: Head, folder: Path) -> VoxelNetwork:
    """A network with random weights to which every class is the most probable one somewhere."""
    torch.manual_seed(3)
    network = VoxelNetwork("3x0e", q_features="4x0e + 3x2e", p_features="4x0e + 2x1o", n_p_layers=1)
    dwi = read_dwi(head.write(folder), mask=folder / "mask.nii.gz")
    graph = PQGraph.from_grid(dwi.mask, dwi.affine, dwi.q, graph_radius(network))
    scale_initial_weights(network, torch.from_numpy(dwi.signal), graph)
    logits = predict_blocks(network.eval(), dwi)
    fill_last_bias(network, torch.from_numpy(-logits.mean(axis=0)))
    return network


@pytest.fixture(scope="module")
def predict(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Head], Maps]:
    """All maps that ``tripq predict`` writes of a head."""
    network = make_network(make_head("oblique"), tmp_path_factory.mktemp("first"))
    weights = tmp_path_factory.mktemp("weights") / "tissue.safetensors"
    notes = {"task": "tissue", "voxel_size_mm": "2", "b_values": "1000 2000"}
    save_network(network, weights, {**notes, **CLASSES.notes})

    @cache
    def write(head: Head) -> Maps:
        folder = tmp_path_factory.mktemp("head")
        mask = ("--mask", folder / "mask.nii.gz")
        options = ("--weights", weights, "-o", folder, "--device", "cpu")
        tripq("predict", head.write(folder), *mask, *options)
        endings = ("dseg", *(f"label-{label}_probseg" for label in CLASSES.labels))
        return {ending: Map.read(folder / f"dwi_{ending}.nii.gz").volume for ending in endings}

    return write


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages take longer than all else."""
    monkeypatch.setattr(
        TissueCommands, "write_page", lambda self, path, *_: path.write_text("page")
    )


@pytest.mark.parametrize("number", [7, 18])
def test_a_head_turned_on_the_grid_has_the_turned_maps(
    number: int, predict: Callable[[Head], Maps]
) -> None:
    head, matrix = make_head("oblique"), CUBE["SO3"][number]
    to = np.abs(matrix).argmax(axis=0)
    orientation = np.stack([to, matrix[to, range(3)]], axis=1)

    def turn(volume: np.ndarray) -> np.ndarray:
        return apply_orientation(volume, orientation)

    turned = on_the_grid(head, matrix, turn)
    still = replace(turned, scan=replace(turned.scan, directions=head.scan.directions))
    found, expected = dict(predict(turned)), predict(head)
    assert len(np.unique(expected["dseg"])) == 4  # outside, and every class
    np.testing.assert_array_equal(found.pop("dseg"), turn(expected["dseg"]))
    for ending, volume in found.items():
        assert_same(volume, turn(expected[ending]))
        # so that the law is about something: the directions have to turn with the head
        assert np.abs(predict(still)[ending] - volume).max() > 1000 * ROUNDING
