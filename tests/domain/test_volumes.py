"""Dense tensors and features: what one puts in, the other takes out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tripq import PQGraph

SHAPE = (3, 4, 2)
TABLES = (np.eye(3), np.concatenate([np.zeros((1, 3)), np.eye(3)]))


def mask(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < 0.5


def batch(tables: tuple[np.ndarray | None, ...], seeds: tuple[int, ...]) -> PQGraph:
    """A patch for each table and seed."""
    return PQGraph.merge(
        [
            PQGraph.from_grid(mask(seed), np.diag([2.0, 2, 2, 1]), table, 2.5)
            for table, seed in zip(tables, seeds, strict=True)
        ]
    )


#: Two patches of one scan, which fuse, and one of another scan, with one direction more.
FUSED = batch((TABLES[0], TABLES[0], TABLES[1]), (0, 1, 2))
MASKS = torch.from_numpy(np.stack([mask(seed) for seed in (0, 1, 2)]))


@pytest.mark.parametrize("directions", [(), (4,)])
def test_what_is_gathered_and_scattered_is_the_volume_within_the_masks(directions):
    volume = torch.rand(3, 5, *SHAPE, *directions)
    features = FUSED.gather(volume)
    assert len(FUSED.scans) == 2
    assert features.shape == (len(FUSED), *directions, 5)
    inside = MASKS[:, None].reshape(3, 1, *SHAPE, *(1 for _ in directions))
    assert torch.equal(FUSED.scatter(features), volume * inside)
    assert torch.equal(FUSED.gather(FUSED.scatter(features)), features)


def test_rows_are_the_voxels_of_the_graph_in_their_order():
    """The position of a voxel, gathered from a volume of positions."""
    graph = batch((None, None), (0, 1))
    indices = torch.from_numpy(np.indices(SHAPE)).double()
    assert torch.equal(graph.gather(2 * indices.expand(2, *indices.shape)), graph.p)


@pytest.mark.parametrize("directions", [(), (4,)])
def test_each_is_the_adjoint_of_the_other(directions):
    volume = torch.rand(3, 2, *SHAPE, *directions, dtype=torch.float64)
    features = torch.rand(len(FUSED), *directions, 2, dtype=torch.float64)
    volume.requires_grad_()
    features.requires_grad_()
    torch.testing.assert_close(
        (FUSED.scatter(features) * volume).sum(), (features * FUSED.gather(volume)).sum()
    )
    (gradient,) = torch.autograd.grad((FUSED.gather(volume) * features.detach()).sum(), volume)
    assert torch.equal(gradient, FUSED.scatter(features.detach()))
    (gradient,) = torch.autograd.grad((FUSED.scatter(features) * volume.detach()).sum(), features)
    assert torch.equal(gradient, FUSED.gather(volume.detach()))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 5, 3, 4, 2\) does not fit.*\(3, C, 3, 4, 2"):
        FUSED.gather(torch.rand(2, 5, *SHAPE))
    with pytest.raises(ValueError, match="does not fit"):
        FUSED.gather(torch.rand(3, *SHAPE))
    with pytest.raises(ValueError, match=r"it needs \(V, C\)"):
        FUSED.scatter(torch.rand(len(FUSED)))
    with pytest.raises(ValueError, match=r"it needs \(V, C\)"):
        FUSED.scatter(torch.rand(len(FUSED) + 1, 2))
    points = PQGraph.from_points(np.zeros((1, 3)), None, 1.0)
    with pytest.raises(ValueError, match="come from no volume"):
        points.gather(torch.rand(1, 1, 1, 1, 1))
    other = PQGraph.from_grid(np.ones((2, 2, 2)), np.diag([2.0, 2, 2, 1]), TABLES[0], 2.5)
    with pytest.raises(ValueError, match=r"shapes \(2, 2, 2\), \(3, 4, 2\)"):
        PQGraph.merge([FUSED, other]).scatter(torch.rand(len(FUSED) + 8, 1))


def test_a_gathered_signal_compiles():
    def through(volume: torch.Tensor) -> torch.Tensor:
        return FUSED.scatter(FUSED.gather(volume) ** 2)

    volume = torch.rand(3, 2, *SHAPE, 4)
    torch._dynamo.reset()
    compiled = torch.compile(through, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(volume), through(volume))


@pytest.mark.parametrize("kind", ["features", "maps"])
def test_split_undoes_stack(kind):
    """One tensor for each merged graph, though two of them are patches that fused."""
    counts = [int(mask(seed).sum()) for seed in (0, 1, 2)]
    rows = [(3,), (3,), (4,)] if kind == "features" else [()] * 3
    parts = [torch.rand(n, *row, 2) for n, row in zip(counts, rows, strict=True)]
    again = FUSED.split(FUSED.stack(parts))
    assert len(again) == 3
    assert all(torch.equal(a, b) for a, b in zip(again, parts, strict=True))
    assert all(
        torch.equal(a, b)
        for a, b in zip(FUSED.within(0.0).to("cpu").split(FUSED.stack(parts)), parts, strict=True)
    )


def test_split_gives_back_what_was_merged_last():
    both = PQGraph.merge([FUSED, FUSED])
    x = torch.rand(len(FUSED), 4, 2)
    assert [len(part) for part in both.split(torch.cat([x, x]))] == [len(FUSED)] * 2
    (alone,) = PQGraph.merge([FUSED]).split(x)
    assert torch.equal(alone, x)


def test_split_tells_output_directions_from_input_directions():
    q = np.random.default_rng(0).normal(size=(5, 3))
    graph = PQGraph.merge(
        [
            PQGraph.from_points(np.zeros((1, 3)), q[:n_in], 1.0, q_out=q[:n_out])
            for n_in, n_out in ((5, 2), (4, 1))
        ]
    )
    assert [part.shape[1] for part in graph.split(torch.rand(2, 5, 1))] == [5, 4]
    assert [part.shape[1] for part in graph.split(torch.rand(2, 2, 1))] == [2, 1]
    with pytest.raises(ValueError, match="the features have 3 directions, but the graph has 5"):
        graph.split(torch.rand(2, 3, 1))


def test_split_of_nodes_tells_nodes_from_voxels():
    q = np.random.default_rng(0).normal(size=(6, 3))
    p = np.array([[0.0, 0, 0], [0, 0, 0], [5, 0, 0]])
    graph = PQGraph.merge([PQGraph.from_nodes(p[:n], q[:n], 1.0) for n in (2, 3)])
    assert [len(part) for part in graph.split(torch.rand(5, 4))] == [2, 3]
    assert [len(part) for part in graph.split(torch.rand(3, 4))] == [1, 2]
    with pytest.raises(ValueError, match="4 rows, but the graph has 3 or 5"):
        graph.split(torch.rand(4, 4))


def test_split_does_not_guess():
    """Three nodes in, three voxels and nodes out, divided in two ways."""
    q = np.random.default_rng(0).normal(size=(2, 3))
    near, far = np.zeros((2, 3)), np.array([[0.0, 0, 0], [9, 0, 0]])
    graph = PQGraph.merge(
        [
            PQGraph.from_nodes(near, q, 1.0, p_out=near[:1], q_out=q[:1]),
            PQGraph.from_nodes(near[:1], q[:1], 1.0, p_out=far, q_out=q),
        ]
    )
    with pytest.raises(ValueError, match="divides differently"):
        graph.split(torch.rand(3, 4))
