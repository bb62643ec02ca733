"""Voxels and p-edges, against all pairs of voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.domain.parts import all_pairs, pair_list, scan_of
from tests.strategies import affine_of, affines, domains, masks, rotation_of, seeds, table_of
from tripq import PQGraph
from tripq.domain.neighbours import grid_offsets, point_neighbours
from tripq.domain.voxels import VoxelGrid

radii = st.sampled_from((0.0, 1.5, 2.5, 4.0))


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


@given(mask=masks(4), other=masks(4), affine=affines(), radius=radii)
def test_neighbours_on_a_grid_are_the_voxels_at_the_steps_in_a_volume(mask, other, affine, radius):
    steps = grid_offsets(affine[:3, :3], radius)
    voxels = np.array([(i, *v) for i, m in enumerate((mask, other)) for v in np.argwhere(m)], int)
    grid = VoxelGrid((mask.shape, other.shape), torch.from_numpy(voxels.reshape(-1, 4)))
    number = {tuple(voxel): i for i, voxel in enumerate(voxels.tolist())}
    expected = [
        [number.get((volume, *(np.array(place) - step)), len(number)) for step in steps]
        for volume, *place in number
    ]
    found = grid.neighbours(torch.from_numpy(steps))
    assert found.shape == (len(number), len(steps))
    assert found.tolist() == expected
    assert grid.n_pairs(torch.from_numpy(steps)) == int((found < len(number)).sum())


@given(mask=masks(), affine=affines(), radius=radii)
def test_grid_and_search_agree(mask, affine, radius):
    edges = scan_of(PQGraph.from_grid(mask, affine, None, radius)).edges
    centres = np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
    dst, src = point_neighbours(centres, radius)
    by_search = list(zip(dst.tolist(), src.tolist(), strict=True))
    assert by_search == pair_list(edges.dst, edges.src)


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
