"""Networks come back from files as they were, and bad files are told apart from good ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tripq import PQGraph
from tripq.checkpoint import CheckpointError, load_network, read_notes, save_network
from tripq.models import ConvSegmenter, LesionSegmenter, PaperSegmenter

Q = np.concatenate([np.zeros((1, 3)), np.eye(3)])
GRAPH = PQGraph.from_grid(np.ones((4, 4, 4)), np.diag([2.0, 2, 2, 1]), Q, radius=5.0)


@pytest.mark.parametrize(
    "network",
    [
        LesionSegmenter(
            p_radius=2.5, q_features="3x0e+2x2e", p_features="2x0e+1x1o", n_p_layers=1, q_max=1.5
        ),
        PaperSegmenter(p_radius=3.0, q_reduction="mean", q_max=1.2),
        ConvSegmenter(4, widths=(3, 2), kernel_size=5),
    ],
    ids=lambda network: type(network).__name__,
)
def test_a_network_comes_back_as_it_was(network: nn.Module, tmp_path: Path) -> None:
    save_network(network, tmp_path / "network.safetensors", {"trained on": "nothing"})
    loaded = load_network(tmp_path / "network.safetensors")

    assert repr(loaded) == repr(network)
    assert read_notes(tmp_path / "network.safetensors")["trained on"] == "nothing"
    signal = torch.rand(64, 4)
    torch.testing.assert_close(loaded(signal, GRAPH), network.eval()(signal, GRAPH), rtol=0, atol=0)


def test_only_known_networks_are_saved(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a Linear cannot be saved, only LesionSegmenter"):
        save_network(nn.Linear(1, 1), tmp_path / "network.safetensors")


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({}, "network"),
        ({"network": "Other", "arguments": "{}"}, "'Other' is unknown"),
        ({"network": "ConvSegmenter", "arguments": "{"}, "property name"),
        ({"network": "ConvSegmenter", "arguments": '{"depth": 3}'}, "depth"),
        (
            {"network": "ConvSegmenter", "arguments": '{"n_directions": 4}'},
            r"layers\.0\.bias is missing",
        ),
    ],
)
def test_another_file_is_refused(metadata: dict[str, str], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata)
    with pytest.raises(CheckpointError, match=rf"other\.safetensors: holds no network.*{reason}"):
        load_network(path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    with pytest.raises(CheckpointError, match=r"network\.safetensors: no such file"):
        load_network(path)
    save_network(ConvSegmenter(4, widths=(2,)), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"network\.safetensors: not a whole"):
        load_network(path)
