"""The maps of several classes turn with the head, exactly for turns of the grid."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation

from tests.laws.conftest import Head, Map, assert_same, make_head, tripq
from tests.laws.test_rotations import on_the_grid
from tests.strategies import CUBE
from tripq.networks import VoxelNetwork, save_network
from tripq.tasks.tissue.classes import Classes
from tripq.tasks.tissue.command import TissueCommands

CLASSES = Classes(("white", "grey", "fluid"), ("WM", "GM", "CSF"))

Maps = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def predict(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Head], Maps]:
    """All maps that ``tripq predict`` writes of a head."""
    torch.manual_seed(3)
    network = VoxelNetwork("3x0e", q_features="4x0e + 3x2e", p_features="4x0e + 2x1o", n_p_layers=1)
    weights = tmp_path_factory.mktemp("weights") / "tissue.safetensors"
    notes = {"task": "tissue", "voxel_size_mm": "2", "b_values": "1000 2000"}
    with torch.no_grad():
        network.head.bias.zero_()
        for weight in network.head.parameters():
            weight.mul_(8)
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

    found, expected = predict(on_the_grid(head, matrix, turn)), predict(head)
    assert len(np.unique(expected["dseg"])) == 4  # outside, and every class
    np.testing.assert_array_equal(found.pop("dseg"), turn(expected["dseg"]))
    for ending, volume in found.items():
        assert_same(volume, turn(expected[ending]))
