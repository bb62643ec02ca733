"""The network: at first the fit, always equivariant, for any table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from tests.tasks.signal.conftest import fibres
from tripq import PQGraph
from tripq.networks import load_network, save_network
from tripq.networks.blocks import predict_blocks
from tripq.simulate import GradientTable
from tripq.so3.fit import ShellFit, harmonics_at
from tripq.tasks.signal.network import SignalPredictor
from tripq.testing import assert_equivariant, representation

SMALL = "4x0e + 2x2e + 1x4e"


def small(seed: int = 0, **arguments: object) -> SignalPredictor:
    """A network whose correction is not 0."""
    torch.manual_seed(seed)
    network = SignalPredictor(p_features=SMALL, p_radius=3.0, **arguments).eval()  # type: ignore[arg-type]
    for weight in network.head.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return network


def table(*numbers: int) -> np.ndarray:
    made = GradientTable.from_shells([1000.0 * (i + 1) for i in range(len(numbers))], numbers)
    lengths = np.sqrt(made.b_values / 1000)
    return np.where(made.b0, 0, lengths)[:, None] * made.directions


def test_it_starts_at_the_fit() -> None:
    dwi = fibres(0, (12, 7)).dwi
    wanted = table(20, 15)
    predicted = predict_blocks(SignalPredictor().eval(), dwi, q_out=wanted)
    for shell, columns in zip(dwi.shells, (slice(1, 21), slice(21, 36)), strict=True):
        fit = ShellFit.of(torch.from_numpy(dwi.q[shell.indices]), 4, SignalPredictor().smoothing)
        to = harmonics_at(torch.from_numpy(wanted[columns]), 4) @ fit.matrix
        expected = dwi.signal[:, shell.indices] @ to.numpy().T
        np.testing.assert_allclose(predicted[:, columns], expected, atol=1e-5)
    np.testing.assert_array_equal(predicted[:, 0], 1)


@pytest.mark.parametrize("domain", ["points", "grid"])
def test_the_signal_turns_with_the_head(domain: str) -> None:
    # without output directions the signal is that of the input directions, which turn
    assert_equivariant(small(), domain=domain, seeds=2)  # type: ignore[arg-type]


def test_so_do_the_coefficients_and_output_directions() -> None:
    network = small().double()
    rng = np.random.default_rng(1)
    rotation = Rotation.random(random_state=1).as_matrix()
    p, q, wanted = rng.uniform(-3, 3, (20, 3)), table(9)[1:], table(14)[1:]
    signal = torch.from_numpy(rng.uniform(0, 1, (20, 9)))
    found = []
    for turn in (np.eye(3), rotation):
        graph = PQGraph.from_points(p @ turn.T, q @ turn.T, 3.0, q_out=wanted @ turn.T)
        shell = network.coefficients(signal, torch.from_numpy(q @ turn.T), graph)
        found.append((shell, network(signal, graph)))
    (before, signal_before), (after, signal_after) = found
    turned = before @ representation(network.irreps_shell, rotation).T
    torch.testing.assert_close(after, turned, atol=1e-10, rtol=0)
    torch.testing.assert_close(signal_after, signal_before, atol=1e-10, rtol=0)


def test_signs_of_directions_do_not_matter() -> None:
    dwi, network = fibres(0, (9,)).dwi, small()
    q = dwi.q * np.where(np.arange(len(dwi.q)) % 2, 1, -1)[:, None]
    graphs = (PQGraph.from_grid(dwi.mask, dwi.affine, x, 3.0, q_out=dwi.q) for x in (dwi.q, q))
    one, other = (network(torch.from_numpy(dwi.signal), graph) for graph in graphs)
    torch.testing.assert_close(one, other)


def test_blocks_do_not_matter() -> None:
    dwi, network = fibres(0, (9,)).dwi, small()
    whole, parts = (predict_blocks(network, dwi, max_voxels=n) for n in (10_000, 250))
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_scans_of_a_batch_do_not_know_each_other() -> None:
    network = small()
    scans = [fibres(0, (9,)).dwi, fibres(1, (12, 8)).dwi]
    graphs = [PQGraph.from_grid(dwi.mask, dwi.affine, dwi.q, 3.0, q_out=table(4)) for dwi in scans]
    signals = [torch.from_numpy(dwi.signal) for dwi in scans]
    alone = [network(signal, graph) for signal, graph in zip(signals, graphs, strict=True)]
    graph = PQGraph.merge(graphs)
    together = network(graph.stack(signals), graph)
    torch.testing.assert_close(together, torch.cat(alone))


def test_a_shell_that_was_not_measured_cannot_be_predicted() -> None:
    dwi = fibres(0, (9,)).dwi
    with pytest.raises(ValueError, match=r"no direction was measured at b = \[2000\] s/mm2"):
        predict_blocks(small(), dwi, q_out=table(4, 3))
    nodes = PQGraph.from_nodes(np.zeros((2, 3)), table(2)[1:], 3.0)
    with pytest.raises(ValueError, match="share their directions"):
        small()(torch.ones(1, 2), nodes)


def test_numbers_out_of_range_are_refused() -> None:
    for arguments in ({"order": 3}, {"order": 10}, {"smoothing": 0.0}, {"n_p_layers": 0}):
        with pytest.raises(ValueError, match="must be"):
            SignalPredictor(**arguments)  # type: ignore[arg-type]


def test_scales_are_measured() -> None:
    dwi = fibres(0, (30,), noise=0.02).dwi
    network = small(smoothing=1e-3)
    graph = PQGraph.from_grid(dwi.mask, dwi.affine, dwi.q, 3.0)
    network.measure(torch.from_numpy(dwi.signal), graph)
    assert float(network.mean) == pytest.approx(dwi.signal[:, 1:].mean(), rel=0.02)
    assert float(network.noise) == pytest.approx(0.02, rel=0.1)
    assert (network.size > 0).all()


def test_it_is_kept_in_a_file(tmp_path: Path) -> None:
    network, dwi = small(n_p_layers=2, order=6), fibres(0, (9,)).dwi
    network.noise.fill_(0.03)
    save_network(network, tmp_path / "signal.safetensors")
    again = load_network(tmp_path / "signal.safetensors")
    np.testing.assert_array_equal(predict_blocks(again, dwi), predict_blocks(network, dwi))
