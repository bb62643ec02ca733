"""The public check of equivariance passes what turns with the head, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tripq import PQGraph, PQTensorFieldLayer
from tripq.networks import ConvSegmenter, PaperSegmenter
from tripq.tasks.lesions.segmenter import LesionSegmenter
from tripq.testing import assert_equivariant, equivariance_error, representation


@pytest.mark.parametrize("domain", ["points", "grid"])
@pytest.mark.parametrize("group", ["SO3", "O3"])
def test_layers_pass(group, domain):
    layer = PQTensorFieldLayer(
        "1x0e + 1x1o", "2x0e + 1x1o + 1x2e", 3.0, group=group, lmax_p=2, quadrature="sum"
    )
    assert_equivariant(layer, domain=domain)
    assert_equivariant(layer, domain=domain, dtype=torch.float32)


@pytest.mark.parametrize("network", [LesionSegmenter(n_p_layers=1), PaperSegmenter(p_radius=3.0)])
def test_networks_pass(network):
    assert_equivariant(network, seeds=1)
    assert_equivariant(network, seeds=1, domain="grid")


class Leaning(nn.Module):
    """The mean signal, and a little of the first axis."""

    def __init__(self, lean: float) -> None:
        super().__init__()
        self.lean = lean

    def forward(self, signal: Tensor, graph: PQGraph) -> Tensor:
        q = graph.scans[0].q.q_in.to(signal)  # type: ignore[union-attr]
        return (signal * (1 + self.lean * q[:, 0].square())).mean(dim=1)


def test_a_small_fault_is_found():
    assert_equivariant(Leaning(0.0), radius=3.0)
    with pytest.raises(AssertionError, match="Leaning is not equivariant under SO3"):
        assert_equivariant(Leaning(1e-8), radius=3.0)
    with pytest.raises(AssertionError, match="ConvSegmenter"):
        assert_equivariant(ConvSegmenter(6, widths=(2,)), domain="grid", radius=2.0)


def test_reflections_are_asked_of_o3_alone():
    """The product of two vectors is a pseudovector: odd under SO(3)'s ignorance, even in O(3)."""
    layer = PQTensorFieldLayer(
        "1x1o", "1x1o", 3.0, group="SO3", lmax_p=2, lmax_q=2, quadrature="sum"
    )
    assert equivariance_error(layer, group="SO3") < 1e-12
    assert max(equivariance_error(layer, group="O3", seed=seed) for seed in range(4)) > 1e-3


def test_representations_multiply():
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    tilt = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    d = [representation("1x0e + 1x1o + 2x3o", r) for r in (turn, tilt, turn @ tilt)]
    torch.testing.assert_close(d[0] @ d[1], d[2], atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match="no reflections"):
        representation("1x1o", -np.eye(3))
