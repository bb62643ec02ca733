"""Means over the surroundings of voxels: of definition, on every kind of graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tripq import PQGraph
from tripq.domain.window import GridWindow, ShearedWindow, windows_of

MASK = np.random.default_rng(0).random((6, 5, 4)) < 0.8
AXES = Rotation.random(random_state=1).as_matrix() @ np.diag([2.0, 1.5, 4.0])
SHEARED = AXES @ [[1.0, 0.2, 0], [0, 1, 0], [0, 0, 1]]


def grid(axes: NDArray[np.float64] = AXES, mask: NDArray[np.bool_] = MASK) -> PQGraph:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes, (5.0, -80.0, 30.0)
    return PQGraph.from_grid(mask, affine, None, radius=0.0)


def values(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    sums = torch.randn(number, 3, generator=rng, dtype=torch.float64)
    return sums, torch.randint(1, 5, (number,), generator=rng).double()


def by_definition(
    p: torch.Tensor, volumes: torch.Tensor, sums: torch.Tensor, numbers: torch.Tensor, sigma: float
) -> torch.Tensor:
    squared = (p[:, None] - p).square().sum(dim=-1)
    weights = torch.exp(-squared / (2 * sigma**2)) * volumes
    return (weights @ sums) / (weights @ numbers)[:, None]


def test_rounded_directions_count_as_orthogonal() -> None:
    """Sheared grids are slower; the rounding of directions in files must not make them so."""
    rounded = AXES + 1e-5 * np.array([[1.0, -1, 1], [-1, 1, 1], [1, 1, -1]])
    (window,) = windows_of(grid(rounded).scans[0], 6.0)
    assert isinstance(window, GridWindow)
    (window,) = windows_of(grid(SHEARED).scans[0], 6.0)
    assert isinstance(window, ShearedWindow)


def test_a_graph_without_voxels_has_no_means() -> None:
    for graph in (
        PQGraph.from_grid(np.zeros((2, 2, 2)), np.eye(4), None, radius=0.0),
        PQGraph.from_points(np.empty((0, 3)), None, 1.0),
    ):
        assert graph.means_around(torch.empty(0, 3), torch.empty(0), 5.0).shape == (0, 3)


@pytest.mark.parametrize("sigma", [0.5, 3.0, 18.0, 1e3, np.inf])
@pytest.mark.parametrize("axes", [AXES, SHEARED], ids=["orthogonal", "sheared"])
def test_a_grid_has_the_means_of_the_definition(axes: NDArray[np.float64], sigma: float) -> None:
    graph = grid(axes)
    sums, numbers = values(graph.n_voxels)
    expected = by_definition(graph.p, torch.ones(graph.n_voxels), sums, numbers, sigma)
    found = graph.means_around(sums, numbers, sigma)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_points_count_by_their_volumes() -> None:
    p = torch.from_numpy(np.random.default_rng(2).uniform(0, 20, (40, 3)))
    volumes = torch.linspace(1.0, 9.0, 40, dtype=torch.float64)
    graph = PQGraph.from_points(p, None, 3.0, volumes=volumes)
    sums, numbers = values(40)
    expected = by_definition(p, volumes, sums, numbers, 6.0)
    found = graph.means_around(sums, numbers, 6.0)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("memory", [1, 1 << 12])
def test_means_do_not_depend_on_the_memory(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for graph in (grid(), grid(SHEARED)):
        sums, numbers = values(graph.n_voxels)
        expected = graph.means_around(sums, numbers, 5.0)
        with monkeypatch.context() as patched:
            patched.setattr("tripq.domain.window._BYTES", memory)
            found = graph.means_around(sums, numbers, 5.0)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_patches_and_scans_do_not_see_each_other() -> None:
    """Whether patches merge into one scan graph, or scans of other grids stay apart."""
    graphs = [grid(), grid(mask=~MASK), grid(SHEARED), grid(SHEARED, ~MASK), grid(2 * AXES)]
    merged = PQGraph.merge(graphs)
    assert len(merged.scans) < len(graphs)
    sums, numbers = values(merged.n_voxels)
    counts = [graph.n_voxels for graph in graphs]
    alone = [
        graph.means_around(part, number, 5.0)
        for graph, part, number in zip(
            graphs, sums.split(counts), numbers.split(counts), strict=True
        )
    ]
    found = merged.means_around(sums, numbers, 5.0)
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-12, atol=1e-12)


def test_the_mean_on_a_finer_grid_is_the_same_integral() -> None:
    """Of a smooth function, at the voxels in the middle of grids that cover the same box."""
    found = []
    for fineness in (1, 3):
        edge = 3.0 / fineness
        affine = np.diag([edge, edge, edge, 1.0])
        affine[:3, 3] = edge / 2
        graph = PQGraph.from_grid(np.ones(3 * [9 * fineness]), affine, None, radius=0.0)
        f = torch.sin(graph.p / 7).sum(dim=1, keepdim=True)
        middle = (graph.p - 13.5).abs().sum(dim=1).argmin()
        found.append(graph.means_around(f, torch.ones(len(f)), 6.0)[middle])
    torch.testing.assert_close(*found, rtol=3e-3, atol=0)


@pytest.mark.parametrize("axes", [AXES, SHEARED], ids=["orthogonal", "sheared"])
def test_gradients_of_a_grid(axes: NDArray[np.float64]) -> None:
    graph = grid(axes, MASK[:3, :2, :2])
    sums, numbers = values(graph.n_voxels)
    assert torch.autograd.gradcheck(
        lambda s: graph.means_around(s, numbers, 4.0), sums.requires_grad_()
    )


def test_gradients_of_points_are_those_of_the_definition() -> None:
    p = torch.from_numpy(np.random.default_rng(3).uniform(0, 8, (7, 3))).requires_grad_()
    sums, numbers = values(7)
    graph = PQGraph.from_points(p, None, 3.0)
    assert torch.autograd.gradcheck(
        lambda s: graph.means_around(s, numbers, 4.0), sums.requires_grad_()
    )
    expected, found = (
        torch.autograd.grad(m.square().sum(), [p, sums])
        for m in (
            by_definition(p, torch.ones(7), sums, numbers, 4.0),
            graph.means_around(sums, numbers, 4.0),
        )
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
