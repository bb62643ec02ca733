"""Products of functions on the sphere: those of the functions, equivariant, and exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tripq.nn import SphericalProducts
from tripq.so3.fit import harmonics_at
from tripq.so3.mrtrix import ORTHONORMAL, n_coefficients
from tripq.so3.sphere import sphere_quadrature
from tripq.testing import representation


def layer(order_in: int, order_out: int, channels: int = 3) -> SphericalProducts:
    torch.manual_seed(0)
    made = SphericalProducts(channels, order_in=order_in, order_out=order_out, n_scalars=2)
    return made.double()


@pytest.mark.parametrize("degree", [2, 8, 16, 24])
def test_harmonics_up_to_the_degree_are_orthonormal(degree: int) -> None:
    points, weights = sphere_quadrature(degree)
    at = harmonics_at(torch.from_numpy(points.copy()), degree // 2).numpy() / ORTHONORMAL
    np.testing.assert_allclose((at * weights[:, None]).T @ at, np.eye(at.shape[1]), atol=1e-12)
    assert weights.sum() == pytest.approx(4 * np.pi)


def test_a_product_is_that_of_the_functions() -> None:
    made = layer(4, 8, channels=1)
    functions = torch.randn(5, n_coefficients(4), 1, dtype=torch.float64)
    v = torch.randn(20, 3, dtype=torch.float64)
    values = harmonics_at(v, 4) / ORTHONORMAL @ functions[..., 0].T
    found = harmonics_at(v, 8) / ORTHONORMAL @ made.products(functions)[..., 0].T
    torch.testing.assert_close(found, made.factors.prod() * values**2, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("order_in", "order_out"), [(2, 8), (8, 8), (8, 4)])
def test_functions_turn_with_the_head(order_in: int, order_out: int) -> None:
    made, rotation = layer(order_in, order_out), _rotation()
    functions = torch.randn(6, n_coefficients(order_in), 3, dtype=torch.float64)
    scalars = torch.randn(6, 2, dtype=torch.float64)
    turn_in, turn_out = (
        torch.from_numpy(
            representation(" + ".join(f"1x{l}e" for l in range(0, order + 1, 2)), rotation).numpy()
        ).double()
        for order in (order_in, order_out)
    )
    expected = turn_out @ made(functions, scalars)
    torch.testing.assert_close(made(turn_in @ functions, scalars), expected, atol=1e-6, rtol=0)


def _rotation() -> np.ndarray:
    from tripq.simulate import random_rotation

    return random_rotation(np.random.default_rng(0))
