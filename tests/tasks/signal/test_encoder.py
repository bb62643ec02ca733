"""The network of pretraining: at first the fit, equivariant, and learning from neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tasks.signal.conftest import fibres
from tripq import PQGraph
from tripq.networks.blocks import graph_radius, predict_blocks
from tripq.networks.harmonics import HarmonicFit
from tripq.tasks.signal.config import PretrainingConfig
from tripq.tasks.signal.encoder import SignalEncoder
from tripq.tasks.signal.task import SignalTask
from tripq.testing import assert_equivariant
from tripq.training import Budget, PatchDataModule, score_scans, train
from tripq.training.config import example_config, parse_config

SMALL = {"q_features": "6x0e + 3x2e", "p_features": "6x0e + 3x2e", "n_p_layers": 1}


def small() -> SignalEncoder:
    """A network whose correction is not 0."""
    torch.manual_seed(0)
    network = SignalEncoder(**SMALL).eval()  # type: ignore[arg-type]
    for weight in network.head.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return network


def test_it_starts_at_the_fit() -> None:
    dwi, wanted = fibres(0, (12, 7)).dwi, fibres(1, (20, 15)).dwi.q
    found, expected = (
        predict_blocks(network, dwi, q_out=wanted)
        for network in (SignalEncoder(**SMALL).eval(), HarmonicFit().eval())  # type: ignore[arg-type]
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("domain", ["points", "grid"])
def test_the_signal_turns_with_the_head(domain: str) -> None:
    assert_equivariant(small(), domain=domain, seeds=2)  # type: ignore[arg-type]


def test_b0_is_not_predicted() -> None:
    dwi = fibres(0).dwi
    found = predict_blocks(small(), dwi)
    np.testing.assert_array_equal(found[:, 0], 1)
    assert np.abs(found - predict_blocks(HarmonicFit().eval(), dwi)).max() > 0.1


def test_scans_of_a_batch_do_not_change_each_other() -> None:
    network = small()
    shown, wanted = (
        [fibres(seed, (number,)).dwi for seed, number in enumerate(numbers)]
        for numbers in ((12, 9), (5, 8))
    )
    graphs = [
        PQGraph.from_grid(dwi.mask, dwi.affine, dwi.q, 3.0, q_out=other.q)
        for dwi, other in zip(shown, wanted, strict=True)
    ]
    signals = [torch.from_numpy(dwi.signal) for dwi in shown]
    merged = PQGraph.merge(graphs)
    together = network(merged.stack(signals), merged).split([len(signal) for signal in signals])
    for found, signal, graph, other in zip(together, signals, graphs, wanted, strict=True):
        columns = len(other.q)
        expected = network(signal, graph)
        torch.testing.assert_close(found[:, :columns], expected, atol=1e-5, rtol=1e-4)
        assert not found[:, columns:].any()


def test_neighbours_help() -> None:
    torch.manual_seed(0)
    network = SignalEncoder(**SMALL, p_radius=3.5)  # type: ignore[arg-type]
    unseen, task = [fibres(9)], SignalTask()
    before = score_scans(network.eval(), task, unseen)
    patches = PatchDataModule(
        [fibres(i) for i in range(3)], task, radius=graph_radius(network), box_size=9
    )
    train(network, patches, Budget(steps=30), learning_rate=1e-2)
    noise = 0.05
    after = score_scans(network, task, unseen)
    assert after**2 - noise**2 < 0.8 * (before**2 - noise**2)


def test_the_settings_are_those_of_the_constructor() -> None:
    settings, network = PretrainingConfig(), SignalEncoder()
    for name, value in vars(settings.network).items():
        assert name == "p_radius" or getattr(network, name) == value
    text = example_config(PretrainingConfig)
    assert parse_config(text, "example", PretrainingConfig) == settings
