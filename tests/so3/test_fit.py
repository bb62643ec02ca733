"""The fit of a shell is that of dipy, and commutes with rotations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dipy.core.sphere import Sphere
from dipy.reconst.shm import sf_to_sh, sh_to_sf
from scipy.spatial.transform import Rotation

from tripq.simulate import GradientTable
from tripq.so3.fit import ShellFit, harmonics_at
from tripq.testing import representation


def directions(number: int) -> torch.Tensor:
    return torch.from_numpy(GradientTable.from_shells([1000.0], [number]).directions[1:])


@pytest.mark.parametrize(
    ("number", "order", "smoothing"), [(6, 4, 0.03), (12, 4, 0.006), (64, 8, 0.001)]
)
def test_the_fit_is_that_of_dipy(number: int, order: int, smoothing: float) -> None:
    shown, wanted = directions(number), directions(30)
    signal = np.random.default_rng(0).uniform(0, 1, (5, number))
    fit = ShellFit.of(shown, order, smoothing)
    ours = torch.from_numpy(signal) @ fit.matrix.T @ harmonics_at(wanted, order).T

    how = {"sh_order_max": order, "basis_type": "descoteaux07", "legacy": False}
    before, after = (Sphere(xyz=q.numpy()) for q in (shown, wanted))
    theirs = sh_to_sf(sf_to_sh(signal, before, smooth=smoothing, **how), after, **how)
    np.testing.assert_allclose(ours, theirs, atol=1e-8)


def test_coefficients_turn_with_the_directions() -> None:
    rotation = Rotation.random(random_state=0).as_matrix()
    q = directions(12)
    fit, turned = (ShellFit.of(x, 4, 0.006) for x in (q, q @ torch.from_numpy(rotation).T))
    turn = representation("0e + 2e + 4e", rotation)
    torch.testing.assert_close(turned.matrix, turn @ fit.matrix, atol=1e-10, rtol=0)
    torch.testing.assert_close(turned.errors, fit.errors)


def test_errors_are_those_of_noise_without_a_penalty() -> None:
    fit = ShellFit.of(directions(30), 4, 1e-9)
    spread = (fit.matrix**2).sum(dim=1)
    of_orders = [part.mean().sqrt() for part in spread.split([1, 5, 9])]
    torch.testing.assert_close(fit.errors, torch.stack(of_orders), rtol=1e-4, atol=0)
    assert fit.freedom == pytest.approx(15, abs=1e-3)


def test_errors_fall_with_the_number_of_directions() -> None:
    errors = torch.stack([ShellFit.of(directions(n), 4, 0.006).errors for n in (6, 12, 24)])
    assert (errors.diff(dim=0) < 0).all()
