"""The 6D domain: ways to make one against each other, what it keeps, prints and refuses."""

from __future__ import annotations

import tracemalloc
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.domain.parts import scan_of, tensors_of
from tests.strategies import (
    FORMS,
    RADIUS,
    Grid,
    Nodes,
    Points,
    affine_of,
    domains,
    features,
    layers,
    relative_error,
    table_of,
)
from tripq import PQGraph, PQTensorFieldLayer
from tripq.simulate import GradientTable


def test_what_a_graph_keeps_may_serve_a_backward_pass_later():
    graph = PQGraph.from_grid(np.ones((2, 2, 1)), np.eye(4), table_of(0, 2), 1.5)
    edges, grid = scan_of(graph).edges, scan_of(graph).grid
    with torch.inference_mode():
        kept = (
            edges.table,
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


def test_a_graph_is_cut_once_and_never_widened():
    graph = PQGraph.from_points(np.zeros((2, 3)), None, 3.0)
    assert graph.within(3.0) is graph
    assert graph.within(2.0) is graph.within(2.0)
    for rounded in (3.0 * (1 - 1e-7), 3.0 * (1 + 1e-7)):
        assert graph.within(rounded).radius == rounded
    with pytest.raises(ValueError, match="build the graph with radius=5 or more"):
        graph.within(5.0)


@settings(max_examples=10)
@given(data=st.data())
def test_a_grid_is_a_cloud_of_its_centres(data):
    grid = data.draw(domains("grid"))
    layer = data.draw(layers(domain=grid, quadrature="sum"))
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
    layer = PQTensorFieldLayer("1x0e", "1x1o", RADIUS, lmax_q=1, quadrature="sum")
    x = features(layer, domain, torch.float32)
    assert layer(x, moved).equal(layer(x, graph))
    assert graph.to("meta").device == torch.device("meta")
    assert {t.device.type for t in tensors_of(scan_of(graph.to("meta")))} == {"meta"}


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


def test_repr_says_to_which_order_a_shell_integrates() -> None:
    table = GradientTable.from_shells([1000.0, 2000.0], [12, 64])
    length = np.sqrt(table.b_values / 1000)[:, None]
    graph = PQGraph.from_points(np.eye(3), length * table.directions, 2.0)
    assert "exact to order 2 and 8, radius 2 mm" in repr(graph)


def test_edges_of_product_domains_take_the_room_of_the_two_sets():
    mask, q = np.ones((16, 16, 16)), table_of(0, 64)
    PQGraph.from_grid(mask[:2], 2 * np.eye(4), q, 3.5)
    tracemalloc.start()
    graph = PQGraph.from_grid(mask, 2 * np.eye(4), q, 3.5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    n_edges = len(scan_of(graph).edges.dst)
    assert scan_of(graph).edges.transposed_table is not None
    stored = sum(
        value.numel() * value.element_size()
        for part in (scan_of(graph).edges, scan_of(graph).q)
        for value in vars(part).values()
        if isinstance(value, torch.Tensor)
    )
    product = n_edges * 64 * 64
    assert product > 3e8
    assert peak < product / 40, "bytes, of NumPy alone"
    assert stored < product / 40, "bytes: less than a bit for each edge of the product"


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


def test_sizes_count_the_rows_of_each_graph_without_padding():
    points, q = np.zeros((1, 3)), np.eye(3)
    graphs = [PQGraph.from_points(np.arange(3 * n).reshape(n, 3), q[:n], 1.0) for n in (2, 3)]
    graph = PQGraph.merge(graphs)
    assert graph.sizes(torch.zeros(5, 3, 4)) == (2 * 2, 3 * 3)
    assert graph.sizes(torch.zeros(5, 4)) == (2, 3), "maps"
    again = PQGraph.merge([graph, PQGraph.from_points(points, q, 1.0)])
    assert again.sizes(torch.zeros(6, 3, 4)) == (13, 3)
    assert graphs[1].sizes(torch.zeros(3, 3, 4)) == (9,)
    with pytest.raises(ValueError, match="the features have 4 rows, but the graph has 5"):
        graph.sizes(torch.zeros(4, 4))
