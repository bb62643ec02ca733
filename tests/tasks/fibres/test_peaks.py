"""Peaks are maxima, turn with the function, and are compared with fibres."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from tests.tasks.fibres.conftest import angle
from tripq.so3.fit import harmonics_at
from tripq.so3.mrtrix import ORTHONORMAL
from tripq.tasks.fibres.peaks import angles_between, crossing_angles, find_peaks
from tripq.testing import representation


def sharp(directions: np.ndarray, order: int = 8) -> np.ndarray:
    """Distributions (V, C) of one fibre each."""
    return harmonics_at(torch.from_numpy(directions), order).numpy() / ORTHONORMAL


def some_directions(n: int, seed: int = 0) -> np.ndarray:
    v = np.random.default_rng(seed).normal(size=(n, 3))
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def test_a_fibre_is_found_between_the_vertices() -> None:
    v = some_directions(200)
    peaks = find_peaks(sharp(v))
    assert angle(peaks[:, 0], v).max() < 0.01
    np.testing.assert_allclose(np.linalg.norm(peaks[:, 0], axis=1), 45 / (4 * np.pi), rtol=1e-5)
    assert not peaks[:, 1:].any()


def test_two_fibres_are_found_in_the_order_of_their_sizes() -> None:
    v, w = some_directions(50), some_directions(50, 1)
    w = np.cross(v, w)
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    peaks = find_peaks(0.4 * sharp(v) + 0.6 * sharp(w))
    assert angle(peaks[:, 0], w).max() < 1e-3
    assert angle(peaks[:, 1], v).max() < 1e-3
    np.testing.assert_allclose(crossing_angles(peaks), 90, atol=1e-3)


def test_peaks_turn_with_the_function() -> None:
    rng = np.random.default_rng(0)
    fodf = np.einsum("vk,vkc->vc", rng.uniform(0.3, 1, (40, 2)), sharp(rng.normal(size=(40, 2, 3))))
    rotation = Rotation.random(random_state=1).as_matrix()
    turn = representation("1x0e + 1x2e + 1x4e + 1x6e + 1x8e", rotation).numpy()
    before, after = find_peaks(fodf), find_peaks(fodf @ turn.T)
    there = before[:, 0].any(axis=-1)
    assert angle(after[there, 0], (before @ rotation.T)[there, 0]).max() < 1e-2


def test_without_fibres_there_is_no_peak() -> None:
    assert not find_peaks(np.zeros((3, 45))).any()
    isotropic = np.eye(1, 45) / ORTHONORMAL
    assert not find_peaks(isotropic)[0, 1:].any()


def test_more_peaks_than_fibres_do_not_help() -> None:
    x, y, z = np.eye(3)
    known = np.array([[x, 0 * x], [x, y], [x, y], [x, y]])
    found = np.array([[3 * y, 2 * x, z], [3 * y, 2 * x, z], [z, y, x], [x, 0 * x, 0 * x]])
    np.testing.assert_allclose(
        angles_between(known, found), [[90, np.nan], [0, 0], [90, 0], [0, 90]], atol=1e-5
    )
