"""Lists of nodes: their voxels, edges and weights, against all pairs of nodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.domain.parts import pair_list, scan_of
from tests.strategies import RADIUS, relative_error, seeds, table_of
from tripq import PQGraph, PQTensorFieldLayer

radii = st.sampled_from((0.0, 1.5, 2.5, 4.0))


def test_nodes_of_one_place_are_of_one_voxel():
    p = np.array([[1.0, 0, 0], [0, 0, 0], [1, 0, 0], [0, -0.0, 0]])
    scan = scan_of(PQGraph.from_nodes(p, table_of(0, 4), 0.5))
    assert scan.q.voxel.tolist() == [0, 1, 0, 1]
    assert scan.p.tolist() == [[1.0, 0, 0], [0, 0, 0]]
    assert pair_list(scan.q.edges.dst, scan.q.edges.src) == [
        (0, 0), (0, 2), (1, 1), (1, 3), (2, 0), (2, 2), (3, 1), (3, 3),
    ]  # fmt: skip


@given(seed=seeds, shell=st.booleans(), radius=radii)
def test_nodes_are_joined_where_their_voxels_are(seed, shell, radius):
    rng = np.random.default_rng(seed)
    centres, voxel = rng.uniform(-2, 2, (3, 3)), rng.integers(0, 3, 7)
    p, q = centres[voxel], table_of(seed, 7)
    scan = scan_of(PQGraph.from_nodes(p, q, radius, q_edges="shell" if shell else "full"))
    length = np.linalg.norm(q, axis=1)

    def joined(i, j):
        near = voxel[i] == voxel[j] or np.linalg.norm(p[i] - p[j]) < radius
        return near and (not shell or abs(length[i] - length[j]) < 0.1)

    expected = {
        (i, j): 1 / sum(joined(i, k) for k in range(7) if voxel[k] == voxel[j])
        for i in range(7)
        for j in range(7)
        if joined(i, j)
    }
    edges, p_edges = scan.q.edges, scan.edges
    pairs = list(zip(edges.dst.tolist(), edges.src.tolist(), strict=True))
    found = dict(zip(pairs, edges.weights.tolist(), strict=True))
    assert len(found) == len(pairs)
    assert found == pytest.approx(expected)
    assert scan.q.voxel[edges.dst].equal(p_edges.dst[edges.p_edge])
    assert scan.q.voxel[edges.src].equal(p_edges.src[edges.p_edge])


@given(seed=seeds, n=st.integers(0, 6), n_out=st.integers(0, 6), radius=radii)
def test_output_nodes_may_be_elsewhere(seed, n, n_out, radius):
    rng = np.random.default_rng(seed)
    centres = rng.uniform(-2, 2, (4, 3))
    p, p_out = (centres[rng.integers(0, 4, number)] for number in (n, n_out))
    scan = scan_of(
        PQGraph.from_nodes(
            p, table_of(seed, n), radius, p_out=p_out, q_out=table_of(seed + 1, n_out)
        )
    )

    def expected(ends):
        """Weights of all pairs whose places are near: a mean over the nodes of one place."""
        return {
            (i, j): 1 / (p == p[j]).all(axis=1).sum()
            for i, j in np.ndindex(len(ends), n)
            if (ends[i] == p[j]).all() or np.linalg.norm(ends[i] - p[j]) < radius
        }

    q = scan.q
    assert q.resampled
    assert len(scan.p) == len(np.unique(np.concatenate([p, p_out]), axis=0))
    for edges, ends, voxel in (
        (q.edges, p_out, q.voxel_out),
        (q.reduction, scan.p.numpy(), torch.arange(len(scan.p))),
    ):
        pairs = list(zip(edges.dst.tolist(), edges.src.tolist(), strict=True))
        found = dict(zip(pairs, edges.weights.tolist(), strict=True))
        assert len(found) == len(pairs)
        assert found == pytest.approx(expected(ends))
        assert voxel[edges.dst].equal(scan.edges.dst[edges.p_edge])
        assert q.voxel[edges.src].equal(scan.edges.src[edges.p_edge])


def jittered(p, size, seed=0):
    return p + np.random.default_rng(seed).uniform(-1, 1, p.shape) * size


def nodes_of_voxels(seed=0):
    """Centres and q-vectors of the nodes of four voxels, and the voxel of each."""
    rng = np.random.default_rng(seed)
    voxel = np.array([2, 0, 1, 1, 3, 0, 2, 2])
    return rng.uniform(-2, 2, (4, 3))[voxel], table_of(seed, 8), voxel


@pytest.mark.parametrize("given", [False, True])
def test_rounding_of_positions_changes_no_more_than_rounding(given):
    """A node that is 1e-9 mm from the others of its voxel is still of that voxel."""
    p, q, voxel = nodes_of_voxels()
    layer = PQTensorFieldLayer("1x0e", "2x0e + 1x1o", RADIUS, quadrature="sum").double()
    x = torch.rand(8, 1).double()
    expected = layer(x, PQGraph.from_nodes(p, q, RADIUS))
    graph = PQGraph.from_nodes(jittered(p, 1e-9), q, RADIUS, voxel=voxel if given else None)
    assert len(graph) == 4
    assert relative_error(layer(x, graph), expected) < 1e-8


def test_given_voxels_are_the_rows_of_a_map_and_their_centres_are_means():
    p, q, voxel = nodes_of_voxels()
    moved = jittered(p, 0.2)
    scan = scan_of(PQGraph.from_nodes(moved, q, RADIUS, voxel=voxel))
    assert scan.q.voxel.tolist() == voxel.tolist()
    for i in range(4):
        np.testing.assert_allclose(scan.p[i], moved[voxel == i].mean(axis=0), rtol=1e-14)
    to, q_to = np.array([4, 1]), table_of(1, 2)
    p_to = np.array([[0.1, 0, 0], moved[2] + 0.3])
    scan = scan_of(
        PQGraph.from_nodes(moved, q, RADIUS, voxel=voxel, p_out=p_to, q_out=q_to, voxel_out=to)
    )
    assert (len(scan.p), scan.q.voxel_out.tolist()) == (5, [4, 1])
    mean = np.mean([moved[2], moved[3], p_to[1]], axis=0)
    np.testing.assert_allclose(scan.p[1], mean, rtol=1e-14)


def test_gradients_of_positions_reach_every_node_of_a_voxel():
    """Each by its share: to move all nodes of a voxel is to move the voxel."""
    p, q, voxel = nodes_of_voxels()
    layer = PQTensorFieldLayer("1x0e", "2x0e + 1x1o", RADIUS, quadrature="sum").double()
    x, leaf = torch.rand(8, 1).double(), torch.from_numpy(p).requires_grad_()
    (grad,) = torch.autograd.grad(layer(x, PQGraph.from_nodes(leaf, q, RADIUS)).sum(), leaf)
    assert (grad.norm(dim=1) > 0).all()
    for i in range(4):
        same = grad[voxel == i]
        assert relative_error(same, same[:1].expand_as(same)) < 1e-12
    step = 1e-6 * np.random.default_rng(1).normal(size=(4, 3))[voxel]
    up, down = (layer(x, PQGraph.from_nodes(p + s, q, RADIUS)).sum() for s in (step, -step))
    assert (up - down).item() / 2 == pytest.approx((grad.numpy() * step).sum(), rel=1e-6)


def test_the_centre_of_nodes_at_one_place_is_that_place():
    p = np.random.default_rng(0).uniform(-100, 100, (5, 3))
    scan = scan_of(PQGraph.from_nodes(np.repeat(p, 7, axis=0), table_of(0, 35), 1.0))
    assert (scan.p.numpy() == p).all()


def test_nodes_that_lie_in_a_chain_are_not_guessed_to_be_of_one_voxel():
    p = np.zeros((3, 3))
    p[:, 0] = [0, 0.8e-3, 1.6e-3]
    with pytest.raises(ValueError, match=r"nodes near \(.*\) mm form a chain.* voxel="):
        PQGraph.from_nodes(p, table_of(0, 3), 1.0)
    assert len(PQGraph.from_nodes(p, table_of(0, 3), 1.0, voxel=[0, 0, 1])) == 2
    p[:, 0] = [0, 0.4e-3, 0.8e-3]
    assert len(PQGraph.from_nodes(p, table_of(0, 3), 1.0)) == 1
    p[:, 0] = [0, 0.01, 0.02]
    assert len(PQGraph.from_nodes(p, table_of(0, 3), 1.0)) == 3


def test_given_edges_of_nodes_and_given_weights():
    p = np.array([[0.0, 0, 0], [1, 0, 0], [5, 0, 0]])
    q_edges, weights = [[0, 0, 2], [0, 1, 2]], [0.5, 2.0, 3.0]
    edges = scan_of(
        PQGraph.from_nodes(p, table_of(0, 3), 2.0, q_edges=q_edges, q_weights=weights)
    ).q.edges
    assert [edges.dst.tolist(), edges.src.tolist()] == q_edges
    assert edges.weights.tolist() == weights
    with pytest.raises(ValueError, match="joins 1 pairs of nodes that are beyond the radius"):
        PQGraph.from_nodes(p, table_of(0, 3), 2.0, q_edges=[[0], [2]])


def test_given_edges_number_output_nodes_and_input_nodes():
    p, p_out = np.zeros((2, 3)), np.zeros((3, 3))
    q, q_out = table_of(0, 2), table_of(1, 3)

    def graph(q_edges):
        return PQGraph.from_nodes(p, q, 1.0, q_edges=q_edges, p_out=p_out, q_out=q_out)

    edges = scan_of(graph([[2, 0], [1, 0]])).q.edges
    assert [edges.dst.tolist(), edges.src.tolist()] == [[2, 0], [1, 0]]
    with pytest.raises(ValueError, match=r"names an output outside 0\.\.2"):
        graph([[3], [0]])
    with pytest.raises(ValueError, match=r"names an input outside 0\.\.1"):
        graph([[0], [2]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p": np.eye(3)[:2]}, "2 voxel centres but 3 q-vectors"),
        ({"p": np.ones((3, 2))}, r"p must have the shape \(n, 3\)"),
        ({"p_out": np.eye(3)}, "give both p_out and q_out, or neither"),
        ({"p_out": np.eye(3), "q_out": np.eye(3)[:1]}, "3 output centres but 1 output q-vectors"),
        ({"q_edges": "all"}, 'q_edges must be "full", "shell" or pairs of indices'),
        ({"q_weights": [1.0]}, "q_weights must be 3 finite numbers"),
        ({"voxel": [0, 1]}, r"voxel must be 3 integers.* not torch.int64 of shape \(2,\)"),
        ({"voxel": [0.0, 1.0, 2.0]}, "voxel must be 3 integers, one for each node"),
        ({"voxel": [0, 3, 1]}, "without gaps, but 3 numbers from 0 to 3 are given"),
        ({"voxel": [-1, 0, 1]}, "but 3 numbers from -1 to 1 are given"),
        ({"voxel_out": [0, 1, 2]}, "voxel_out, the voxels of p_out, must be given"),
        ({"voxel": [0, 1, 2], "p_out": np.eye(3), "q_out": np.eye(3)}, "must be given"),
    ],
)
def test_nodes_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        PQGraph.from_nodes(**({"p": np.eye(3), "q": np.eye(3), "radius": 1.5} | change))
