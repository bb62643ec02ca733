"""The network: at first a deconvolution, always equivariant, for any table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tasks.fibres.conftest import scaled_head
from tripq import PQGraph
from tripq.networks import load_network, save_network
from tripq.networks.blocks import predict_blocks
from tripq.tasks.fibres.network import FibreNetwork
from tripq.tasks.fibres.task import FibreTask, angular_correlation, white_matter
from tripq.testing import assert_equivariant

SMALL = "4x0e + 2x2e + 1x4e"


def small(seed: int = 0, **arguments: object) -> FibreNetwork:
    """A network of which no part is 0."""
    torch.manual_seed(seed)
    options: dict[str, object] = {"p_features": SMALL, "p_radius": 5.0, **arguments}
    network = FibreNetwork(**options).eval()  # type: ignore[arg-type]
    for weight in (*network.head.parameters(), *network.start, network.bias):
        torch.nn.init.normal_(weight, std=0.3)
    return network


@pytest.mark.parametrize("domain", ["points", "grid"])
def test_the_distributions_turn_with_the_head(domain: str) -> None:
    assert_equivariant(small(), domain=domain, seeds=2)  # type: ignore[arg-type]


def test_order_and_signs_of_directions_do_not_matter() -> None:
    dwi, network = scaled_head(0).dwi, small()
    rng = np.random.default_rng(0)
    columns = np.concatenate([[0], 1 + rng.permutation(len(dwi.q) - 1)])
    signs = rng.choice([-1.0, 1.0], size=(len(columns), 1))
    found = []
    for order, sign in ((slice(None), 1.0), (columns, signs)):
        graph = PQGraph.from_grid(dwi.mask, dwi.affine, sign * dwi.q[order], 5.0)
        found.append(network(torch.from_numpy(dwi.signal[:, order]), graph))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


def test_blocks_do_not_matter() -> None:
    dwi, network = scaled_head(0).dwi, small()
    whole, parts = (predict_blocks(network, dwi, max_voxels=n) for n in (100_000, 300))
    np.testing.assert_allclose(parts, whole, atol=1e-5 * np.abs(whole).max())


def test_the_linear_part_is_a_deconvolution() -> None:
    """Solved on one head, it knows shapes of another one."""
    network = FibreNetwork(p_features=SMALL, p_radius=5.0).eval()
    scans = [scaled_head(seed) for seed in (1, 2)]
    graphs = [PQGraph.from_grid(s.dwi.mask, s.dwi.affine, s.dwi.q, 5.0) for s in scans]
    signals = [torch.from_numpy(scan.dwi.signal) for scan in scans]
    known = [torch.from_numpy(FibreTask().target(scan)) for scan in scans]
    network.measure(signals[0], graphs[0])
    network.solve(signals[0], graphs[0], known[0])
    with torch.no_grad():
        found = network(signals[1], graphs[1])
    white = white_matter(known[1])
    correlation = angular_correlation(found[white], known[1][white])
    assert float(correlation.mean()) > 0.6
    white_matter_error = (found[:, 0] - known[1][:, 0]).square().mean().sqrt()
    assert float(white_matter_error) < 0.7 * float(known[1][:, 0].std())
    # the scales are those of the errors
    with torch.no_grad():
        residual = network(signals[0], graphs[0]) - known[0]
    assert float(network.error[1]) == pytest.approx(
        float(residual[:, 1:6].square().mean().sqrt()), rel=1e-4
    )


def test_no_smaller_error_is_linear() -> None:
    network = FibreNetwork(p_features=SMALL, p_radius=5.0).eval()
    scan = scaled_head(1)
    graph = PQGraph.from_grid(scan.dwi.mask, scan.dwi.affine, scan.dwi.q, 5.0)
    signal, known = torch.from_numpy(scan.dwi.signal), torch.from_numpy(scan.fodf)
    network.measure(signal, graph)
    network.solve(signal, graph, known)
    least = FibreTask().loss(network(signal, graph), known)
    least.backward()
    for weight in (network.bias, *network.start):
        step = 1e-3 * torch.sign(weight.grad)  # type: ignore[arg-type]
        with torch.no_grad():
            weight += step
            assert FibreTask().loss(network(signal, graph), known) > least
            weight -= step


def test_the_largest_shell_is_used() -> None:
    dwi, network = scaled_head(0).dwi, small()
    few = np.sqrt(2) * dwi.q[1:4]
    signal = torch.from_numpy(dwi.signal)
    both = torch.cat([signal, torch.rand(len(signal), 3)], dim=1)
    graphs = (
        PQGraph.from_grid(dwi.mask, dwi.affine, q, 5.0)
        for q in (dwi.q, np.concatenate([dwi.q, few]))
    )
    one, other = (network(x, graph) for x, graph in zip((signal, both), graphs, strict=True))
    torch.testing.assert_close(one, other)


def test_numbers_out_of_range_are_refused() -> None:
    for arguments in ({"order": 3}, {"order": 10}, {"fit_order": 5}, {"smoothing": 0.0}):
        with pytest.raises(ValueError, match="must be"):
            FibreNetwork(**arguments)  # type: ignore[arg-type]


def test_it_is_kept_in_a_file(tmp_path: Path) -> None:
    network, dwi = small(order=6, fit_order=2), scaled_head(0).dwi
    network.error.fill_(0.3)
    save_network(network, tmp_path / "fibres.safetensors")
    again = load_network(tmp_path / "fibres.safetensors")
    np.testing.assert_array_equal(predict_blocks(again, dwi), predict_blocks(network, dwi))


def test_boxes_are_placed_on_white_matter() -> None:
    scan = scaled_head(1)
    focus = FibreTask().focus(scan)
    assert 0 < focus.mean() < 1
    assert focus[scan.peaks[:, 0].any(axis=1)].all()  # type: ignore[attr-defined]


def test_layers_on_voxels_take_orders_of_the_fit() -> None:
    network = small(fit_order=4)
    taken = [network.irreps_features.slices()[i] for i in range(len(network.irreps_features))]
    kept = set(network._taken.tolist())
    for (_, ir), columns in zip(network.irreps_features, taken, strict=True):
        assert (columns.start in kept) == (ir.l <= 4)
    assert network.blocks[0].layer.irreps_in.lmax == 4
