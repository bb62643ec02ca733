"""The graph of one scan: cut to a radius, joined with patches of the same scan, differentiated."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.domain.parts import pair_list, scan_of
from tests.strategies import FORMS, RADIUS, affines, domains, seeds, table_of, tables
from tripq import PQGraph


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
