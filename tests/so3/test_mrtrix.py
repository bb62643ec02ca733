"""The basis of MRtrix is that of dipy's "tournier07", and the change of basis keeps functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dipy.core.sphere import Sphere
from dipy.reconst.shm import sh_to_sf, sph_harm_ind_list
from scipy.spatial.transform import Rotation

from tripq.so3.fit import harmonics_at
from tripq.so3.mrtrix import (
    ORTHONORMAL,
    from_mrtrix,
    highest_order,
    mrtrix_harmonics,
    n_coefficients,
    to_mrtrix,
)
from tripq.testing import representation

RNG = np.random.default_rng(0)
DIRECTIONS = RNG.normal(size=(60, 3))
UNIT = DIRECTIONS / np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)


def values(coefficients: np.ndarray, order: int) -> np.ndarray:
    """Of our harmonics at the directions."""
    return coefficients @ harmonics_at(torch.from_numpy(UNIT), order).numpy().T / ORTHONORMAL


@pytest.mark.parametrize("order", [0, 2, 4, 8])
def test_dipy_reads_the_same_function(order: int) -> None:
    ours = RNG.normal(size=(4, n_coefficients(order)))
    how = {"sh_order_max": order, "basis_type": "tournier07", "legacy": False}
    theirs = sh_to_sf(to_mrtrix(ours), Sphere(xyz=UNIT), **how)
    np.testing.assert_allclose(values(ours, order), theirs, atol=1e-12)


def test_the_order_of_the_coefficients_is_that_of_dipy() -> None:
    m, l = sph_harm_ind_list(8)
    assert list(l) == sorted(l)
    for coefficient, (degree, phase) in enumerate(zip(l, m, strict=True)):
        assert coefficient == degree * (degree + 1) // 2 + phase


def test_the_formula_is_the_matrix() -> None:
    ours = RNG.normal(size=(4, 45))
    sampled = to_mrtrix(ours) @ mrtrix_harmonics(3 * DIRECTIONS, 8).T
    np.testing.assert_allclose(sampled, values(ours, 8), atol=1e-12)


def test_it_is_orthogonal_and_has_an_inverse() -> None:
    ours = RNG.normal(size=(3, 5, 45)).astype(np.float32)
    theirs = to_mrtrix(ours)
    assert theirs.dtype == np.float32
    np.testing.assert_allclose(from_mrtrix(theirs), ours, atol=1e-5)
    np.testing.assert_allclose((theirs**2).sum(-1), (ours**2).sum(-1), rtol=1e-5)


def test_the_function_turns_in_world_axes() -> None:
    """Wigner's matrices turn our coefficients; MRtrix's then have turned values."""
    rotation = Rotation.random(random_state=2).as_matrix()
    ours = RNG.normal(size=45)
    turn = representation("1x0e + 1x2e + 1x4e + 1x6e + 1x8e", rotation).numpy()
    turned = to_mrtrix(turn @ ours) @ mrtrix_harmonics(UNIT @ rotation.T, 8).T
    np.testing.assert_allclose(turned, to_mrtrix(ours) @ mrtrix_harmonics(UNIT, 8).T, atol=1e-10)


@pytest.mark.parametrize("n", [0, 2, 3, 44, 46])
def test_other_numbers_of_coefficients_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match="do not match an even order"):
        highest_order(n)
