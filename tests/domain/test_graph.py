"""The 6D domain: its edges against all pairs, and the ways to write it down against each other."""

from __future__ import annotations

import tracemalloc
from dataclasses import fields, is_dataclass
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import (
    FORMS,
    RADIUS,
    Grid,
    Nodes,
    Points,
    affine_of,
    affines,
    domains,
    features,
    layers,
    masks,
    relative_error,
    rotation_of,
    seeds,
    table_of,
    tables,
)
from tripq import PQGraph, PQTensorFieldLayer
from tripq.domain.qspace import QSpace

radii = st.sampled_from((0.0, 1.5, 2.5, 4.0))


def scan_of(graph):
    (scan,) = graph.scans
    return scan


def pair_list(dst, src):
    return sorted(zip(dst.tolist(), src.tolist(), strict=True))


def all_pairs(p, radius):
    lengths = np.linalg.norm(p[:, None] - p[None], axis=-1)
    joined = (lengths < radius) | (lengths == 0)
    return [tuple(pair) for pair in np.argwhere(joined).tolist()]


# -- p-edges -------------------------------------------------------------------------------------


@given(mask=masks(4), affine=affines(), radius=radii)
def test_edges_of_a_grid_are_all_pairs_closer_than_the_radius(mask, affine, radius):
    scan = scan_of(PQGraph.from_grid(mask, affine, table_of(0, 2), radius))
    centres = np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
    np.testing.assert_allclose(scan.p, centres, atol=1e-12)
    edges = scan.edges
    assert pair_list(edges.dst, edges.src) == all_pairs(centres, radius)
    offsets = scan.p[edges.dst] - scan.p[edges.src]
    torch.testing.assert_close(edges.offsets[edges.type], offsets, rtol=0, atol=1e-11)


@given(seed=seeds, n=st.integers(0, 8), radius=radii)
def test_edges_of_points_are_all_pairs_closer_than_the_radius(seed, n, radius):
    p = np.random.default_rng(seed).uniform(-3, 3, (n, 3))
    scan = scan_of(PQGraph.from_points(p, table_of(0, 2), radius))
    edges = scan.edges
    assert pair_list(edges.dst, edges.src) == all_pairs(p, radius)
    torch.testing.assert_close(edges.offsets[edges.type], scan.p[edges.dst] - scan.p[edges.src])


@given(mask=masks(), affine=affines(), radius=radii)
def test_equal_offsets_share_an_edge_type_and_its_row_in_the_table(mask, affine, radius):
    scan = scan_of(PQGraph.from_grid(mask, affine, None, radius))
    edges, n = scan.edges, scan.n_voxels
    rounded = edges.offsets.numpy().round(6)
    assert len(np.unique(rounded, axis=0)) == len(edges.offsets)
    for table, a, b in (
        (edges.table, edges.dst, edges.src),
        (edges.transposed_table, edges.src, edges.dst),
    ):
        expected = torch.full((n, len(edges.offsets)), n)
        expected[a, edges.type] = b
        assert table.equal(expected)


@pytest.mark.parametrize("form", ["grid", "points"])
@settings(max_examples=10)
@given(data=st.data())
def test_edges_are_listed_by_both_ends(form, data):
    scan = scan_of(data.draw(domains(form)).graph())
    edges = scan.edges
    for csr, sign in ((edges.adjacency.by_output, 1), (edges.adjacency.by_input, -1)):
        here = torch.arange(scan.n_voxels).repeat_interleave(csr.starts.diff())
        assert pair_list(here, csr.other) == pair_list(edges.dst, edges.src)
        offsets = sign * (scan.p[here] - scan.p[csr.other])
        torch.testing.assert_close(edges.offsets[csr.type], offsets, rtol=0, atol=1e-11)


@given(mask=masks(4).filter(np.any))
def test_voxels_stand_in_the_smallest_boxes_around_them(mask):
    first = PQGraph.from_grid(mask, np.eye(4), None, 1.0)
    grid = scan_of(PQGraph.merge([first, PQGraph.from_grid(mask[::-1], np.eye(4), None, 1.0)])).grid
    shape, places = grid.cropped
    box = np.zeros(shape)
    box.flat[places.numpy()] = 1
    both = np.stack([mask, mask[::-1]])
    lows_highs = [(axis.min(), axis.max() + 1) for axis in np.nonzero(both)]
    np.testing.assert_array_equal(box, both[tuple(slice(*ends) for ends in lows_highs)])


def test_what_a_graph_keeps_may_serve_a_backward_pass_later():
    graph = PQGraph.from_grid(np.ones((2, 2, 1)), np.eye(4), table_of(0, 2), 1.5)
    edges, grid = scan_of(graph).edges, scan_of(graph).grid
    with torch.inference_mode():
        kept = (
            edges.edge_list,
            edges.transposed_table,
            *edges.adjacency.by_type,
            grid.cropped[1],
            *tensors_of(scan_of(graph.within(1.0)).edges),
        )
    assert not any(tensor.is_inference() for tensor in kept)


@pytest.mark.parametrize("form", FORMS)
def test_a_graph_made_in_inference_mode_has_ordinary_tensors(form):
    with torch.inference_mode():
        q = torch.tensor(table_of(0, 2))
        p = torch.arange(6.0, dtype=torch.float64).view(2, 3)
        graph = {
            "grid": lambda: PQGraph.from_grid(np.ones((2, 1, 1)), np.eye(4), q, 6.0, q_out=q),
            "points": lambda: PQGraph.from_points(p, q, 6.0, q_weights=q[:, 0]),
            "nodes": lambda: PQGraph.from_nodes(p, q, 6.0),
        }[form]()
        merged = PQGraph.merge([graph, graph])
        made = [graph, merged, merged.within(1.0), graph.to("meta"), graph.to("cpu")]
        assert q.is_inference()
    tensors = [t for each in made for scan in each.scans for t in tensors_of(scan)]
    assert len(tensors) > 5 * len(made)
    assert not any(t.is_inference() for t in tensors)


def test_a_graph_that_is_on_a_device_already_is_itself_there():
    graph = PQGraph.from_grid(np.ones((2, 2, 1)), np.eye(4), table_of(0, 2), 1.5)
    narrow = graph.within(1.0)
    assert graph.to("cpu") is graph
    assert graph.to(torch.device("cpu")).within(1.0) is narrow
    moved = graph.to("meta")
    assert moved is not graph
    assert moved.to("meta") is moved


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=10)
@given(data=st.data(), radius=st.sampled_from((0.0, 1.5, 2.5)))
def test_a_wide_graph_cut_to_a_radius_is_the_narrow_graph(form, data, radius):
    domain = data.draw(domains(form))
    cut, narrow = (scan_of(g) for g in (domain.graph(4.0).within(radius), domain.graph(radius)))
    assert cut.radius == narrow.radius == radius
    assert pair_list(cut.edges.dst, cut.edges.src) == pair_list(narrow.edges.dst, narrow.edges.src)
    torch.testing.assert_close(
        cut.edges.offsets[cut.edges.type], narrow.edges.offsets[narrow.edges.type]
    )
    if form == "grid":
        assert cut.edges.table.equal(narrow.edges.table)
    if form == "nodes":
        for a, b in ((cut.q.edges, narrow.q.edges), (cut.q.reduction, narrow.q.reduction)):
            assert all(getattr(a, f.name).equal(getattr(b, f.name)) for f in fields(a))


def test_a_graph_is_cut_once_and_never_widened():
    graph = PQGraph.from_points(np.zeros((2, 3)), None, 3.0)
    assert graph.within(3.0) is graph
    assert graph.within(2.0) is graph.within(2.0)
    for rounded in (3.0 * (1 - 1e-7), 3.0 * (1 + 1e-7)):
        assert graph.within(rounded).radius == rounded
    with pytest.raises(ValueError, match="build the graph with radius=5 or more"):
        graph.within(5.0)


@given(seed=seeds)
def test_a_voxel_at_the_radius_is_no_neighbour_however_the_scan_lies(seed):
    affine = affine_of(2.5 * rotation_of(seed), (-90, 120, 60))
    mask, q = np.ones((3, 3, 3)), table_of(0, 1)
    centres = np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
    for radius, n_types in ((2.5, 1), (2.5 * np.sqrt(2), 7), (2.5 * np.sqrt(3), 19)):
        grid, points = (
            scan_of(PQGraph.from_grid(mask, affine, q, radius)),
            scan_of(PQGraph.from_points(centres, q, radius)),
        )
        assert len(grid.edges.offsets) == n_types
        assert pair_list(grid.edges.dst, grid.edges.src) == pair_list(
            points.edges.dst, points.edges.src
        )


# -- q-edges -------------------------------------------------------------------------------------

SHELLS = np.array([[0, 0, 0], [1.0, 0, 0], [0, 1.02, 0], [0, 0, 1.7], [1.68, 0, 0]])


def q_space(**options):
    return scan_of(PQGraph.from_points(np.zeros((1, 3)), SHELLS, 1.0, **options)).q


def test_every_direction_is_joined_with_every_direction():
    q = q_space()
    assert q.weights.equal(torch.full((5, 5), 0.2, dtype=torch.float64))
    assert q.reduction.equal(torch.full((1, 5), 0.2, dtype=torch.float64))
    assert q.q_in is q.q_out
    assert not q.resampled


def test_shells_are_complete_within_themselves():
    blocks = [torch.ones(1, 1), torch.full((2, 2), 0.5), torch.full((2, 2), 0.5)]
    q = q_space(q_edges="shell")
    assert q.weights.equal(torch.block_diag(*blocks).double())
    assert q.reduction.equal(q_space().reduction), "a reduction joins all shells"


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_shells_do_not_depend_on_the_unit_of_q(factor):
    scaled = PQGraph.from_points(np.zeros((1, 3)), factor * SHELLS, 1.0, q_edges="shell")
    assert scan_of(scaled).q.weights.equal(q_space(q_edges="shell").weights)


@pytest.mark.parametrize(("longer", "joined"), [(1.074, 4), (1.077, 2)])
def test_a_shell_is_as_wide_as_a_share_of_its_longer_vector(longer, joined):
    q = np.diag([1.0, longer, 0.0])[:2]
    scan = scan_of(PQGraph.from_points(np.zeros((1, 3)), q, 1.0, q_edges="shell"))
    assert int((scan.q.weights > 0).sum()) == joined


@pytest.mark.parametrize("as_given", [list, np.array, torch.tensor])
def test_given_q_edges(as_given):
    q = q_space(q_edges=as_given([[0, 0, 3], [1, 2, 3]]))
    expected = torch.zeros(5, 5).double()
    expected[0, [1, 2]] = 0.5
    expected[3, 3] = 1.0
    assert q.weights.equal(expected)


def test_another_output_sampling():
    q = q_space(q_out=SHELLS[3:] / 1.7, q_edges="shell")
    assert q.resampled
    expected = torch.zeros(2, 5).double()
    expected[:, [1, 2]] = 0.5
    assert q.weights.equal(expected)


def test_given_quadrature_weights_are_not_normalised():
    q = q_space(q_edges="shell", q_weights=[1.0, 2.0, 3.0, 4.0, 5.0])
    given = torch.tensor([1.0, 2, 3, 4, 5]).double()
    assert q.reduction.equal(given[None])
    assert q.weights.equal(given * (q_space(q_edges="shell").weights > 0))


def test_a_map_without_q_space_has_one_direction_of_length_0_and_weight_1():
    q = QSpace.none(torch.device("cpu"))
    assert q.q_in.equal(torch.zeros(1, 3).double())
    assert q.q_in is q.q_out
    assert not q.resampled
    for weights in (q.weights, q.reduction):
        assert weights.dtype == torch.float64
        assert weights.tolist() == [[1.0]]


def test_a_reduced_q_space_has_one_output_at_the_origin():
    q = q_space(q_edges="shell")
    assert q.reduced.q_out.equal(torch.zeros(1, 3).double())
    assert q.reduced.q_in is q.q_in
    assert q.reduced.weights.equal(q.reduction)
    assert q.q_max == pytest.approx(1.7)
    assert q_space(q_out=0.5 * SHELLS).q_max == pytest.approx(1.7)
    assert q_space(q_out=2 * SHELLS).q_max == pytest.approx(3.4)


# -- nodes ---------------------------------------------------------------------------------------


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
    layer = PQTensorFieldLayer("1x0e", "2x0e + 1x1o", RADIUS).double()
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
    layer = PQTensorFieldLayer("1x0e", "2x0e + 1x1o", RADIUS).double()
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


# -- the same domain, made in other ways ---------------------------------------------------------


@settings(max_examples=10)
@given(data=st.data())
def test_a_grid_is_a_cloud_of_its_centres(data):
    grid = data.draw(domains("grid"))
    layer = data.draw(layers(domain=grid))
    x = features(layer, grid)
    points = Points(grid.centres(), grid.q, grid.q_out, grid.q_edges)
    assert relative_error(layer(x, points.graph()), layer(x, grid.graph())) < 1e-12


@settings(max_examples=10)
@given(data=st.data())
def test_a_cloud_is_the_list_of_its_nodes(data):
    points = data.draw(domains("points"))
    layer = data.draw(layers(domain=points))
    n_q = len(points.q)
    nodes = Nodes(
        points.p, np.tile(points.q, (len(points.p), 1)), (n_q,) * len(points.p),
        points.q_out, points.q_edges,
    )  # fmt: skip
    x = features(layer, points)
    expected = layer(x, points.graph())
    found = layer(x.flatten(0, 1), nodes.graph())
    assert relative_error(found.view_as(expected), expected) < 1e-12


@settings(max_examples=10)
@given(affine=affines(), q=tables(), seed=seeds)
def test_patches_of_one_scan_merge_into_one_part(affine, q, seed):
    patches = np.random.default_rng(seed).random((2, 3, 3, 2)) < 0.6
    one, two = (PQGraph.from_grid(patch, affine, q, RADIUS) for patch in patches)
    merged = PQGraph.merge([one, two])
    assert len(merged.scans) == 1
    assert merged.n_voxels == len(merged) == one.n_voxels + two.n_voxels
    a, b, joined = (scan_of(g).edges for g in (one, two, merged))
    shifted = [(i + one.n_voxels, j + one.n_voxels) for i, j in pair_list(b.dst, b.src)]
    assert pair_list(joined.dst, joined.src) == pair_list(a.dst, a.src) + shifted
    grid = scan_of(merged).grid
    assert grid.shapes == ((3, 3, 2), (3, 3, 2))
    assert patches[tuple(grid.voxels.numpy().T)].all()
    assert len(grid.voxels) == patches.sum()
    assert torch.cat([one.p, two.p]).equal(merged.p)


def test_scans_that_differ_stay_apart():
    mask, affine, q = np.ones((2, 1, 1)), 2 * np.eye(4), table_of(0, 3)
    first = PQGraph.from_grid(mask, affine, q, RADIUS)
    others = [
        PQGraph.from_grid(mask, affine, q, 2 * RADIUS),
        PQGraph.from_grid(mask, affine, q, 1.01 * RADIUS),  # with the same edges
        PQGraph.from_grid(mask, 1.5 * affine, q, RADIUS),
        PQGraph.from_grid(mask, affine, 0.9 * q, RADIUS),
        PQGraph.from_grid(mask, affine, q[:2], RADIUS),
        PQGraph.from_grid(mask, affine, q, RADIUS, q_edges="shell"),
        PQGraph.from_grid(mask, affine, q, RADIUS, q_weights=[1, 2, 3]),
        PQGraph.from_points(scan_of(first).p, q, RADIUS),
    ]
    for other in others:
        merged = PQGraph.merge([first, other, first])
        assert len(merged.scans) == 3
        assert merged.radius == RADIUS
    assert len(PQGraph.merge([PQGraph.merge([first, first]), first]).scans) == 1


def test_rows_of_a_batch_end_in_zeros():
    q = table_of(0, 3)
    graph = PQGraph.merge(
        [PQGraph.from_points(np.zeros((n, 3)), q[:k], RADIUS) for n, k in ((2, 3), (1, 2))]
    )
    x = graph.stack([torch.ones(2, 3, 4), torch.ones(1, 2, 4)])
    assert x.shape == (3, 3, 4)
    assert x.sum(-1).tolist() == [[4.0] * 3, [4.0] * 3, [4.0, 4.0, 0.0]]
    assert graph.filled(x).tolist() == [[True] * 3, [True] * 3, [True, True, False]]
    assert graph.filled(x[:, 0]) is None
    assert PQGraph(graph.scans[:1]).filled(x[:2]) is None
    (_, a), (_, b) = graph.by_scan(x, [2, 1])
    assert (len(a), len(b)) == (2, 1)
    with pytest.raises(ValueError, match="the features have 3 rows, but the graph has 4"):
        graph.by_scan(x, [2, 2])


def test_rows_of_a_batch_are_filled_up_to_the_output_directions():
    q = table_of(0, 3)
    graph = PQGraph.merge(
        [PQGraph.from_points(np.zeros((n, 3)), q, 1.0, q_out=q[:k]) for n, k in ((2, 2), (1, 1))]
    )
    assert graph.filled(torch.ones(3, 2, 4)).tolist() == [[True] * 2, [True] * 2, [True, False]]
    assert graph.filled(torch.ones(3, 3, 4)) is None, "those of the input, which are as many"
    with pytest.raises(ValueError, match="the features have 4 directions, but the graph has 3"):
        graph.filled(torch.ones(3, 4, 4))


# -- moving, printing, size ----------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_graph_on_a_device_is_the_same_graph(form):
    domain = {
        "grid": Grid(np.ones((2, 2, 1), bool), affine_of(2 * np.eye(3)), table_of(0, 2)),
        "points": Points(np.eye(3), table_of(0, 2)),
        "nodes": Nodes(np.eye(3), table_of(0, 5), (2, 2, 1)),
    }[form]
    graph = domain.graph()
    moved = graph.to("cpu")
    assert repr(moved) == repr(graph)
    assert moved.device == torch.device("cpu")
    layer = PQTensorFieldLayer("1x0e", "1x1o", RADIUS, lmax_q=1)
    x = features(layer, domain, torch.float32)
    assert layer(x, moved).equal(layer(x, graph))
    assert graph.to("meta").device == torch.device("meta")
    assert {t.device.type for t in tensors_of(scan_of(graph.to("meta")))} == {"meta"}


def tensors_of(value):
    """All tensors in a (nested) dataclass."""
    if isinstance(value, torch.Tensor):
        return [value]
    return (
        [t for part in vars(value).values() for t in tensors_of(part)]
        if is_dataclass(value)
        else []
    )


def test_repr_counts():
    mask, q = np.ones((3, 1, 1)), table_of(0, 4)
    grid = PQGraph.from_grid(mask, 2 * np.eye(4), q, 2.5)
    assert repr(grid) == (
        "PQGraph(3 voxels, 7 p-edges, 7 edge types, 4 directions, 16 q-edges, radius 2.5 mm)"
    )
    assert repr(PQGraph.from_points(np.eye(3), q, 1.0, q_out=q[:2])) == (
        "PQGraph(3 voxels, 3 p-edges, 4 directions to 2, 8 q-edges, radius 1 mm)"
    )
    assert repr(PQGraph.from_points(np.eye(3), None, 2)) == (
        "PQGraph(3 voxels, 9 p-edges, radius 2 mm)"
    )
    assert repr(PQGraph.from_nodes(np.eye(3), q[:3], 2)) == (
        "PQGraph(3 voxels, 9 p-edges, 3 nodes, 9 edges, radius 2 mm)"
    )
    points = PQGraph.from_points(np.eye(3), q, 1.0)
    assert repr(PQGraph.merge([grid, points])).startswith(
        "PQGraph(6 voxels of 2 scans: ScanGraph(3"
    )


def test_edges_of_product_domains_take_the_room_of_the_two_sets():
    mask, q = np.ones((16, 16, 16)), table_of(0, 64)
    PQGraph.from_grid(mask[:2], 2 * np.eye(4), q, 3.5)
    tracemalloc.start()
    graph = PQGraph.from_grid(mask, 2 * np.eye(4), q, 3.5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    n_edges = len(scan_of(graph).edges.dst)
    stored = sum(
        value.numel() * value.element_size()
        for part in (scan_of(graph).edges, scan_of(graph).q)
        for value in vars(part).values()
        if isinstance(value, torch.Tensor)
    )
    product = n_edges * 64 * 64
    assert product > 3e8
    assert peak < product / 40, "bytes: less than a bit for each edge of the product"
    assert stored < product / 40


# -- gradients -----------------------------------------------------------------------------------


def test_the_geometry_keeps_its_gradient():
    p = torch.rand(3, 3, requires_grad=True)
    q = torch.rand(2, 3, requires_grad=True)
    scan = scan_of(PQGraph.from_points(p, q, RADIUS))
    for leaf, tensor in ((p, scan.p), (p, scan.edges.offsets), (q, scan.q.q_in)):
        (grad,) = torch.autograd.grad(tensor.square().sum(), leaf, retain_graph=True)
        assert grad.abs().sum() > 0
    nodes = scan_of(PQGraph.from_nodes(p, q[[0, 1, 0]], RADIUS))
    for leaf, tensor in ((p, nodes.p), (p, nodes.edges.offsets), (q, nodes.q.q)):
        (grad,) = torch.autograd.grad(tensor.square().sum(), leaf, retain_graph=True)
        assert grad.abs().sum() > 0


# -- what does not fit is refused ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": np.ones((2, 2))}, r"the mask must be 3D, not of shape \(2, 2\)"),
        ({"mask": np.full((2, 2, 2), np.nan)}, "the mask holds values that are not finite"),
        ({"mask": np.diag([np.nan, 1.0])[None]}, "the mask holds values that are not finite"),
        ({"affine": np.diag([1.0, 1, np.nan, 1])}, "the affine must be a finite matrix"),
        ({"q": np.ones((0, 3))}, "q holds no directions"),
        ({"affine": np.eye(3)}, r"finite matrix of shape \(4, 4\)"),
        ({"affine": np.full((4, 4), np.nan)}, "the affine must be a finite matrix"),
        ({"affine": np.diag([2.0, 2, 0, 1])}, "the affine is singular"),
        ({"radius": -1.0}, "the radius must be a length in mm, not -1.0"),
        ({"radius": float("nan")}, "the radius must be a length in mm"),
        ({"q": np.ones((3, 4))}, r"q must have the shape \(n, 3\), not \(3, 4\)"),
        ({"q": np.full((3, 3), np.inf)}, "q holds values that are not finite"),
        ({"q": None, "q_out": np.eye(3)}, "this graph has no q-space"),
        ({"q": None, "q_weights": [1.0]}, "this graph has no q-space"),
        ({"q_out": np.ones(3)}, r"q_out must have the shape \(n, 3\)"),
        ({"q_edges": "all"}, 'q_edges must be "full", "shell" or pairs of indices'),
        ({"q_edges": [[0, 1]]}, r"integers of shape \(2, M\)"),
        ({"q_edges": [[0.0], [1.0]]}, r"integers of shape \(2, M\)"),
        ({"q_edges": [[3], [0]]}, r"q_edges names an output outside 0\.\.2"),
        ({"q_edges": [[0], [-1]]}, r"q_edges names an input outside 0\.\.2"),
        ({"q_weights": [1.0, 2.0]}, r"q_weights must be 3 finite numbers, not of shape \(2,\)"),
        ({"q_weights": [1.0, np.nan, 1.0]}, "q_weights must be 3 finite numbers"),
    ],
)
def test_grids_that_make_no_sense_are_refused(change, message):
    arguments = {"mask": np.ones((2, 2, 2)), "affine": np.eye(4), "q": np.eye(3), "radius": 1.5}
    with pytest.raises(ValueError, match=message):
        PQGraph.from_grid(**(arguments | change))


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
        ({"voxel": [0, 3, 1]}, "none left out, but 3 numbers from 0 to 3 are given"),
        ({"voxel": [-1, 0, 1]}, "but 3 numbers from -1 to 1 are given"),
        ({"voxel_out": [0, 1, 2]}, "voxel_out says of which voxels p_out are"),
        ({"voxel": [0, 1, 2], "p_out": np.eye(3), "q_out": np.eye(3)}, "give it if voxel is given"),
    ],
)
def test_nodes_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        PQGraph.from_nodes(**({"p": np.eye(3), "q": np.eye(3), "radius": 1.5} | change))


def test_graphs_of_different_kinds_are_not_merged():
    p, q, mask = np.eye(3), np.eye(3), np.ones((2, 1, 1))
    kinds = [
        PQGraph.from_points(p, q, 1.0),
        PQGraph.from_points(p, None, 1.0),
        PQGraph.from_nodes(p, q, 1.0),
    ]
    grids = [PQGraph.from_grid(mask, np.eye(4), table, 1.0) for table in (q, None)]
    for pair in (*permutations(kinds, 2), *permutations(grids)):
        with pytest.raises(ValueError, match="cannot be merged with each other"):
            PQGraph.merge(pair)
    with pytest.raises(ValueError, match="a graph needs at least one scan"):
        PQGraph.merge([])
