from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from tripq.scans import DWIError, find_shells
from tripq.simulate import GradientTable, SimulationError, random_rotation, spread_directions


def energy(directions: np.ndarray) -> float:
    """Coulomb energy of charges at both ends of every direction, without the pairs of one axis."""
    near, far = cdist(directions, directions), cdist(directions, -directions)
    off = ~np.eye(len(directions), dtype=bool)
    return float((1 / near[off] + 1 / far[off]).sum() / 2)


@pytest.mark.parametrize("n", [6, 20, 32, 64, 150])
def test_directions_are_unit_vectors_spread_better_than_at_random(n: int) -> None:
    directions = spread_directions(n)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, atol=1e-12)
    rng = np.random.default_rng(0)
    random = rng.standard_normal((20, n, 3))
    random /= np.linalg.norm(random, axis=-1, keepdims=True)
    assert energy(directions) < min(energy(sample) for sample in random)
    # n double caps of angular radius t cover a share n (1 - cos t) of the sphere; the densest
    # packing of caps covers some 0.9 of it, and spread directions come close
    closest = np.sort(np.abs(directions @ directions.T), axis=1)[:, -2].max()
    assert n * (1 - np.cos(np.arccos(closest) / 2)) > 0.6


def test_six_directions_are_the_axes_of_an_icosahedron() -> None:
    cosines = np.abs(spread_directions(6) @ spread_directions(6).T)
    np.testing.assert_allclose(cosines[~np.eye(6, dtype=bool)], 1 / np.sqrt(5), atol=1e-3)


def test_one_direction_is_possible() -> None:
    np.testing.assert_allclose(np.linalg.norm(spread_directions(1)), 1, atol=1e-12)


def test_shells_follow_the_b0_volumes() -> None:
    table = GradientTable.from_shells([1000.0, 2000.0], [12, 20], n_b0=3)
    assert table.b0.tolist() == [True] * 3 + [False] * 32
    assert [(shell.b_value, len(shell)) for shell in find_shells(table.b_values)] == [
        (1000.0, 12),
        (2000.0, 20),
    ]


def test_shells_with_equal_counts_have_directions_of_their_own() -> None:
    table = GradientTable.from_shells([1000.0, 2000.0], [15, 15])
    first, second = table.directions[1:16], table.directions[16:]
    assert np.abs(first @ second.T).max(axis=1).mean() < 0.99


@given(st.integers(0, 2**32 - 1))
def test_a_rotation_turns_every_direction(seed: int) -> None:
    table = GradientTable.from_shells([700.0], [6])
    rotation = random_rotation(np.random.default_rng(seed))
    turned = table.rotated(rotation)
    np.testing.assert_allclose(turned.directions, [rotation @ g for g in table.directions])
    assert turned.b_values is table.b_values


def test_random_signs_reverse_about_half_the_directions() -> None:
    table = GradientTable.from_shells([1000.0], [200])
    signed = table.with_random_signs(np.random.default_rng(0))
    signs = np.sum(table.directions * signed.directions, axis=1)[1:]
    np.testing.assert_allclose(np.abs(signs), 1, atol=1e-12)
    assert 70 < np.count_nonzero(signs < 0) < 130


def test_table_of_q_vectors_is_the_table_they_came_from() -> None:
    table = GradientTable.from_shells([700.0, 2800.0], [6, 9])
    q = table.directions * np.sqrt(table.b_values / 1000)[:, None]
    back = GradientTable.from_q(q)
    np.testing.assert_allclose(back.b_values, table.b_values, rtol=1e-12)
    np.testing.assert_allclose(back.directions, table.directions, atol=1e-12)


def test_bad_tables_are_refused() -> None:
    with pytest.raises(DWIError, match="no b0 volume"):
        GradientTable(np.array([1000.0]), np.array([[1.0, 0.0, 0.0]]))
    with pytest.raises(DWIError, match=r"length 0\.5"):
        GradientTable(np.array([0.0, 1000.0]), np.array([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0]]))
    with pytest.raises(SimulationError, match=r"directions \(N, 3\)"):
        GradientTable(np.zeros(2), np.zeros((3, 3)))
    with pytest.raises(SimulationError, match="one count of directions"):
        GradientTable.from_shells([1000.0], [6, 6])
