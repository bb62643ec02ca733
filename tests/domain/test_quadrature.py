"""The rules of quadrature: what points in a voxel and shares of directions integrate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import affines, rotation_of, rotations, seeds
from tripq import PQGraph
from tripq.domain.quadrature import REFERENCE_VOLUME, exact_order, shell_shares, voxel_points
from tripq.domain.voxels import inside
from tripq.simulate import GradientTable
from tripq.so3.harmonics import spherical_harmonics

RADIUS = 3.0  # mm


def directions_of(number: int):
    return GradientTable.from_shells([1000.0], [number]).directions[1:]


def random_directions(seed: int, number: int):
    v = np.random.default_rng(seed).normal(size=(number, 3))
    return v / np.linalg.norm(v, axis=1, keepdims=True)


# -- points in a voxel ---------------------------------------------------------------------------


@given(affine=affines())
@settings(max_examples=20)
def test_points_integrate_polynomials_over_the_voxel(affine):
    """Moments of a parallelepiped: its edges carry independent uniform shares."""
    steps = affine[:3, :3]
    points, shares = voxel_points(steps, RADIUS)
    assert shares.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(shares @ points, 0, atol=1e-12)
    second = np.einsum("s,si,sj->ij", shares, points, points)
    np.testing.assert_allclose(second, steps @ steps.T / 12, atol=1e-12)


def integral_over_space(affine, radius, function):
    """The sum over the voxels that meet a ball of the averages of a function of the distance."""
    graph = PQGraph.from_grid(np.ones((1, 1, 1)), affine, None, radius)
    (scan,) = graph.integrated(radius).scans
    edges = scan.edges
    lengths = (edges.offsets[:, None] + edges.rule.points).norm(dim=-1)
    values = (edges.rule.shares * inside(lengths, radius) * function(lengths)).sum(dim=1)
    return REFERENCE_VOLUME * float(edges.weights @ values)


@given(affine=affines())
@settings(max_examples=20)
def test_a_ball_has_its_integral_on_every_grid(affine):
    """Of 1 - r / R, which vanishes at the radius: pi R^3 / 3."""
    found = integral_over_space(affine, RADIUS, lambda r: 1 - r / RADIUS)
    assert found == pytest.approx(np.pi * RADIUS**3 / 3, rel=0.02)


def test_finer_voxels_integrate_better():
    """Of a function with a kink, at first order or better, on average over poses."""

    def error(size):
        found = [
            integral_over_space(
                np.block([[size * rotation_of(i), np.zeros((3, 1))], [0, 0, 0, 1]]),
                RADIUS,
                lambda r: 1 - r / RADIUS,
            )
            for i in range(6)
        ]
        return np.abs(np.array(found) / (np.pi * RADIUS**3 / 3) - 1).mean()

    coarse, middle, fine = (error(size) for size in (2.4, 1.2, 0.6))
    assert fine < middle < coarse
    assert coarse < 1e-3
    assert coarse / fine > 2**2, "two halvings"


def test_neighbours_are_the_voxels_that_meet_the_ball():
    grid = np.diag([2.0, 2.0, 4.0, 1.0])
    (scan,) = PQGraph.from_grid(np.ones((7, 7, 7)), grid, None, RADIUS).integrated(RADIUS).scans
    steps = {tuple(step) for step in scan.edges.steps.tolist()}
    low = np.maximum(np.abs(np.array(list(np.ndindex(9, 9, 9))) - 4) - 0.5, 0) * [2, 2, 4]
    met = {
        tuple(np.array(i) - 4)
        for i, nearest in zip(np.ndindex(9, 9, 9), low, strict=True)
        if np.linalg.norm(nearest) < RADIUS - 0.2
    }
    assert met <= steps, "all whose nearest point is well inside"
    assert all(
        np.linalg.norm(low[np.ravel_multi_index(np.array(s) + 4, (9, 9, 9))]) < RADIUS
        for s in steps
    )
    table = scan.edges.table
    middle = int(np.ravel_multi_index((3, 3, 3), (7, 7, 7)))
    found = np.argwhere(np.ones((7, 7, 7)))[table[middle]]
    np.testing.assert_array_equal(np.array([3, 3, 3]) - found, scan.edges.steps)


def test_patches_of_a_scan_have_the_edges_of_each():
    affine = np.diag([2.0, 2, 2, 1])
    masks = [np.random.default_rng(i).random((4, 3, 5)) < 0.7 for i in range(2)]
    graphs = [PQGraph.from_grid(mask, affine, np.eye(3), RADIUS) for mask in masks]
    (both,) = PQGraph.merge(graphs).integrated(RADIUS).scans
    first, second = (graph.integrated(RADIUS).scans[0] for graph in graphs)
    n = first.n_voxels
    table = both.edges.table
    total = both.n_voxels
    assert torch.equal(torch.where(table[:n] == total, n, table[:n]), first.edges.table)
    shifted = torch.where(table[n:] == total, second.n_voxels, table[n:] - n)
    assert torch.equal(shifted, second.edges.table)


def test_volumes_of_points_are_their_weights():
    p = np.random.default_rng(0).uniform(-2, 2, (6, 3))
    volumes = np.arange(1.0, 7.0)
    graph = PQGraph.from_points(p, None, RADIUS, volumes=volumes).integrated(RADIUS)
    (scan,) = graph.scans
    expected = volumes[scan.edges.src] / REFERENCE_VOLUME
    np.testing.assert_allclose(scan.edges.weights[scan.edges.type], expected)
    assert scan.edges.rule is None


@pytest.mark.parametrize("volumes", [np.ones(5), -np.ones(6), np.full(6, np.nan)])
def test_volumes_that_make_no_sense_are_refused(volumes):
    with pytest.raises(ValueError, match="volumes must be 6"):
        PQGraph.from_points(np.zeros((6, 3)), None, RADIUS, volumes=volumes)


# -- shares of directions ------------------------------------------------------------------------


@given(seed=seeds, number=st.integers(1, 70))
@settings(max_examples=20)
def test_shares_are_positive_and_sum_to_one(seed, number):
    shares = shell_shares(random_directions(seed, number))
    assert shares.min() >= 0
    assert shares.sum() == pytest.approx(1, abs=1e-12)


@given(seed=seeds, rotation=rotations("O3"))
@settings(max_examples=10)
def test_shares_turn_with_the_table(seed, rotation):
    """And do not depend on the signs, lengths and order of the directions."""
    rng = np.random.default_rng(seed)
    directions = random_directions(seed, 20)
    order = rng.permutation(20)
    moved = (directions @ rotation.T * rng.choice([-1.1, 1.0], (20, 1)))[order]
    np.testing.assert_allclose(shell_shares(moved), shell_shares(directions)[order], atol=1e-7)


@pytest.mark.parametrize("number", [12, 32, 64])
def test_a_direction_listed_twice_shares_its_part(number):
    directions = directions_of(number)
    once = shell_shares(directions)
    twice = shell_shares(np.concatenate([directions, directions[:5]]))
    np.testing.assert_allclose(twice[:5], twice[number:], atol=1e-9)
    together = twice[:number].copy()
    together[:5] += twice[number:]
    np.testing.assert_allclose(together, once, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_shares_integrate_low_orders_better_than_a_mean(seed):
    directions = random_directions(seed, 64)
    mean, shares = np.full(64, 1 / 64), shell_shares(directions)
    for l, y in spherical_harmonics((2, 4), torch.from_numpy(directions)).items():
        by_mean, by_shares = (np.linalg.norm(w @ y.numpy()) for w in (mean, shares))
        assert by_shares < by_mean / 2, l
    assert exact_order(directions, mean) == 0
    assert exact_order(directions, shares) >= 2
    noise = np.sqrt(64 * (shares**2).sum())
    assert noise < 1.6, "times that of a mean"


@pytest.mark.parametrize("dropped", range(0, 64, 16))
def test_other_directions_stand_in_for_a_dropped_one(dropped):
    directions = np.delete(directions_of(64), dropped, axis=0)
    shares = shell_shares(directions)
    for l, y in spherical_harmonics((2, 4), torch.from_numpy(directions)).items():
        assert np.linalg.norm(shares @ y.numpy()) / np.sqrt(2 * l + 1) < 1e-3, l
    noise = np.sqrt(63 * (shares**2).sum())
    assert noise < 1.03, "times that of a mean"


def test_the_order_of_a_shell_is_known():
    """Six axes of an icosahedron integrate order 4, 15 directions can no more than order 4."""
    golden = (1 + 5**0.5) / 2
    icosahedron = np.array([[0, 1, golden], [0, 1, -golden]])
    axes = np.concatenate([np.roll(icosahedron, shift, axis=1) for shift in range(3)])
    shares = shell_shares(axes)
    np.testing.assert_allclose(shares, 1 / 6, atol=1e-9)
    assert exact_order(axes, shares) == 4
    assert exact_order(np.eye(3), np.full(3, 1 / 3)) == 2
    assert exact_order(np.eye(3)[:1], np.ones(1)) == 0
