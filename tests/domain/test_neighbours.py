"""Neighbours found by index arithmetic and by search, against all pairs."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import affines, rotation_of, seeds
from tripq.domain.neighbours import closer_than, grid_offsets, point_neighbours

radii = st.sampled_from((0.0, 1.0, 2.5, 4.0))


def all_pairs(p, radius):
    """Every (out, in) closer than the radius, by distance."""
    lengths = np.linalg.norm(p[:, None] - p[None], axis=-1)
    return np.argwhere((lengths < radius) | np.eye(len(p), dtype=bool)).tolist()


def pairs(dst, src):
    return np.stack([dst, src], axis=1).tolist()


@given(affine=affines(), radius=radii)
def test_offsets_are_all_that_are_shorter_than_the_radius(affine, radius):
    linear = affine[:3, :3]
    box = np.stack(np.meshgrid(*[np.arange(-6, 7)] * 3, indexing="ij"), -1).reshape(-1, 3)
    lengths = np.linalg.norm(box @ linear.T, axis=1)
    expected = box[(lengths < radius) | (lengths == 0)]
    assert np.abs(expected).max(initial=0) < 6, "the box holds them all"
    np.testing.assert_array_equal(grid_offsets(linear, radius), expected)


@given(seed=seeds, n=st.integers(0, 12), radius=radii)
def test_point_neighbours_are_all_pairs_closer_than_the_radius(seed, n, radius):
    p = np.random.default_rng(seed).uniform(-3, 3, (n, 3))
    assert pairs(*point_neighbours(p, radius)) == all_pairs(p, radius)


def test_points_at_the_same_place_are_neighbours_at_any_radius():
    assert pairs(*point_neighbours(np.zeros((2, 3)), 0.0)) == [[0, 0], [0, 1], [1, 0], [1, 1]]


@given(seed=seeds)
def test_a_neighbour_at_the_radius_is_not_closer_however_the_scan_is_turned(seed):
    rotation = rotation_of(seed)
    linear = 2.0 * rotation
    p = np.array([[0, 0, 0], [1, 0, 0], [0, 0, 1]]) @ linear.T + 80.0
    assert len(grid_offsets(linear, 2.0)) == 1
    assert len(grid_offsets(linear, 2.001)) == 7
    assert len(grid_offsets(linear, np.sqrt(8.0))) == 7
    assert pairs(*point_neighbours(p, 2.0)) == [[0, 0], [1, 1], [2, 2]]
    assert len(point_neighbours(p, 2.001)[0]) == 7


def test_closer_than():
    lengths = np.array([0.0, 1.0, 1.9, 2.0 - 1e-6, 2.0, 3.0])
    assert closer_than(lengths, 2.0).tolist() == [True, True, True, False, False, False]
    assert closer_than(lengths, 0.0).tolist() == [True] + [False] * 5


def test_no_more_offsets_are_looked_at_than_allowed(monkeypatch):
    monkeypatch.setattr("tripq.domain.neighbours.MAX_OFFSETS", 5**3)
    assert len(grid_offsets(np.eye(3), 2.5)) == 81
    monkeypatch.setattr("tripq.domain.neighbours.MAX_OFFSETS", 5**3 - 1)
    with pytest.raises(ValueError, match=r"spans 2 voxels: too many neighbours"):
        grid_offsets(np.eye(3), 2.5)


class Cluster(SimpleNamespace):
    """torch-cluster's search, with its habits: float32, any order, a silent cap."""

    calls = 0

    def radius(self, x, y, r, max_num_neighbors=32):
        self.calls += 1
        near = torch.cdist(y.float(), x.float()) <= r
        capped = near & (near.cumsum(1) <= max_num_neighbors)
        return torch.nonzero(capped).flip(0).T


@given(seed=seeds, n=st.integers(1, 50))
def test_torch_cluster_only_proposes(seed, n):
    p = np.random.default_rng(seed).uniform(-2, 2, (n, 3))
    expected = pairs(*point_neighbours(p, 3.0))
    cluster = Cluster()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch_cluster", cluster)
        assert pairs(*point_neighbours(p, 3.0)) == expected
    assert cluster.calls == 1


def test_torch_cluster_and_the_tree_find_equal_edges(monkeypatch):
    pytest.importorskip("torch_cluster", reason="the extra `cluster` is not installed")
    p = np.random.default_rng(0).uniform(-4, 4, (300, 3)) + 90.0
    with_cluster = point_neighbours(p, 3.0)
    monkeypatch.setitem(sys.modules, "torch_cluster", None)  # importing it now fails
    assert pairs(*point_neighbours(p, 3.0)) == pairs(*with_cluster)
    assert np.bincount(with_cluster[0]).max() > 32, "more neighbours than torch-cluster's cap"
