"""A known estimate and its correction: where training starts, and in which units."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.tasks.signal.conftest import fibres
from tripq import PQGraph, PQTensorFieldLayer
from tripq.infra.e3nn import o3
from tripq.networks import Encoder, VoxelNetwork
from tripq.networks.harmonics import HarmonicFit
from tripq.nn import QMean, Residual, scale_initial_weights, start_at_zero
from tripq.nn.residual import size_by_irrep
from tripq.tasks.signal.task import SignalTask
from tripq.testing import assert_equivariant
from tripq.training import Batch, PatchDataModule

IRREPS = "1x0e + 1x1o"


def voxel_network(seed: int) -> VoxelNetwork:
    torch.manual_seed(seed)
    small = {"q_features": "2x0e + 2x2e", "p_features": "2x0e + 2x1o", "n_p_layers": 1}
    return VoxelNetwork(IRREPS, **small).eval()  # type: ignore[arg-type]


class AlongDirections(nn.Module):
    """The signal along the output directions of a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder(q_features="2x0e", p_features="2x0e + 2x2e", n_p_layers=1)
        self.head = PQTensorFieldLayer(
            self.encoder.irreps_out, "1x0e", 0.0, q_in=None, q_out="graph", filter="q", lmax_q=2
        )

    def forward(self, signal: Tensor, graph: PQGraph) -> Tensor:
        along: Tensor = self.head(self.encoder(signal, graph), graph)[..., 0]
        return along


@pytest.fixture
def residual() -> Residual:
    return Residual(voxel_network(0), voxel_network(1))


@pytest.fixture
def batch() -> Batch:
    dwi = fibres(0, (9,)).dwi
    graph = PQGraph.from_grid(dwi.mask, dwi.affine, dwi.q, 3.0)
    target = torch.randn(len(dwi.b0), 4, generator=torch.Generator().manual_seed(0))
    return Batch(torch.from_numpy(dwi.signal), graph, target)


def test_it_starts_at_the_estimate_and_learns(residual: Residual, batch: Batch) -> None:
    scale_initial_weights(residual, batch.signal, batch.graph)
    found = residual(batch.signal, batch.graph)
    torch.testing.assert_close(found, residual.estimate(batch.signal, batch.graph), rtol=0, atol=0)
    (found - batch.target).square().mean().backward()
    gradients = [weight.grad for weight in residual.network.head.parameters()]
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients)


def test_the_errors_of_the_estimate_are_the_size(residual: Residual, batch: Batch) -> None:
    estimate = residual.estimate(batch.signal, batch.graph).detach()
    noise = batch.target * torch.tensor([2.0, 0.1, 0.1, 0.1])
    residual.measure(batch.signal, batch.graph, estimate + noise)
    torch.testing.assert_close(residual.size, size_by_irrep(noise, o3.Irreps(IRREPS)))
    assert float(residual.size[0] / residual.size[1]) == pytest.approx(20, rel=0.2)


@pytest.mark.parametrize("domain", ["points", "grid"])
def test_it_turns_with_the_head(residual: Residual, domain: str) -> None:
    for weight in residual.network.head.parameters():
        nn.init.normal_(weight)
    residual.size.copy_(torch.tensor([2.0, 0.1]))
    assert_equivariant(residual, domain=domain, seeds=2)  # type: ignore[arg-type]


def test_a_training_measures_it_without_what_is_unknown() -> None:
    scans = [SimpleNamespace(dwi=fibres(0, (number,)).dwi) for number in (9, 30)]
    patches = PatchDataModule(scans, SignalTask(), radius=3.0, box_size=9, n_boxes=2, seed=1)
    batch = patches.first()
    assert bool(batch.target.isnan().any())  # the scans hide different numbers of directions
    residual = Residual(HarmonicFit(), AlongDirections())
    SignalTask().initialise(residual, batch)
    known = ~batch.target.isnan()
    error = (batch.target - HarmonicFit()(batch.signal, batch.graph))[known]
    assert float(residual.size) == pytest.approx(float(error.square().mean().sqrt()))


def test_only_the_last_layer_is_set_to_zero() -> None:
    network = start_at_zero(voxel_network(0))
    assert not any(bool(weight.any()) for weight in network.head.parameters())
    assert all(bool(weight.any()) for weight in network.blocks[0].parameters() if weight.ndim > 1)
    with pytest.raises(ValueError, match="QMean has no PQTensorFieldLayer to set to 0"):
        start_at_zero(QMean())


def test_sizes_do_not_depend_on_rotations() -> None:
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turn = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0])
    one, other = (size_by_irrep(y, o3.Irreps("1x1o")) for y in (x, x @ turn))
    torch.testing.assert_close(one, other)
