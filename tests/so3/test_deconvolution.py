"""The deconvolution finds fibres, is hardly negative, and commutes with rotations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from scipy.spatial.transform import Rotation

from tripq.simulate import GradientTable
from tripq.so3 import deconvolution
from tripq.so3.deconvolution import Deconvolution, constraint_points, response_harmonics
from tripq.so3.fit import harmonics_at
from tripq.so3.mrtrix import ORTHONORMAL
from tripq.testing import representation


def directions(number: int, length: float = 1.2) -> torch.Tensor:
    table = GradientTable.from_shells([1000.0], [number])
    return length * torch.from_numpy(table.directions[1:])


def fibre_signal(q: torch.Tensor, fibres: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Signal (1, Q) of fibres along unit vectors, in units of the response."""
    return (torch.exp(-((q @ fibres.T) ** 2)) @ shares)[None]


def values_at(found: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    return found @ harmonics_at(points, 8).T / ORTHONORMAL


def test_the_response_has_the_harmonics_of_a_fibre() -> None:
    """By quadrature on the sphere: the signal of a fibre along z, times each zonal harmonic."""
    points = torch.from_numpy(Rotation.random(1, random_state=0).apply(np.eye(3)))
    factors = response_harmonics(1.7, 8)
    q = math.sqrt(1.7) * directions(300, 1.0)
    coefficients = torch.linalg.lstsq(
        harmonics_at(q, 8) / ORTHONORMAL, fibre_signal(q, points[:1], torch.ones(1).double()).T
    ).solution[:, 0]
    of_fibre = harmonics_at(points[:1], 8)[0] / ORTHONORMAL
    sizes = [part @ part for part in of_fibre.split([1, 5, 9, 13, 17])]
    products = (coefficients * of_fibre).split([1, 5, 9, 13, 17])
    for factor, product, size in zip(factors, products, sizes, strict=True):
        assert float(product.sum() / size) == pytest.approx(float(factor), abs=1e-4)


@pytest.mark.parametrize("degrees", [60, 90])
def test_crossing_fibres_are_found(degrees: float) -> None:
    angle = math.radians(degrees)
    fibres = torch.tensor([[1.0, 0, 0], [math.cos(angle), math.sin(angle), 0]]).double()
    q = directions(32, 1.7)
    found = Deconvolution.of(q, 8, 1e-6)(fibre_signal(q, fibres, torch.tensor([0.5, 0.5]).double()))
    azimuth = torch.linspace(0, math.pi, 181)[:-1].double()
    circle = torch.stack([azimuth.cos(), azimuth.sin(), 0 * azimuth], dim=1)
    around = values_at(found, circle)[0]
    for one in (0, degrees):
        nearby = [(one + step) % 180 for step in range(-25, 26)]
        best = nearby[int(around[nearby].argmax())]
        assert abs((best - one + 90) % 180 - 90) <= 6
    assert float(found[0, 0]) * ORTHONORMAL == pytest.approx(1, abs=0.02)


def test_it_is_the_constrained_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    """After many steps no other distribution that is not negative has a smaller error."""
    monkeypatch.setattr(deconvolution, "_STEPS", 30_000)
    q, ridge = directions(14), 1e-3
    signal = torch.rand(1, 14, generator=torch.Generator().manual_seed(0)).double()
    found = Deconvolution.of(q, 6, ridge)(signal)[0]

    factors = response_harmonics(float(q.square().sum(dim=1).mean()), 6)
    scale = (factors / factors[0]).repeat_interleave(torch.tensor([1, 5, 9, 13]))
    design = harmonics_at(q, 6) / ORTHONORMAL * scale * math.sqrt(4 * math.pi / len(q))
    wanted = signal[0] / factors[0] * math.sqrt(4 * math.pi / len(q))
    points = harmonics_at(constraint_points(q), 6) / ORTHONORMAL
    # the conditions of Karush, Kuhn and Tucker: the gradient is a positive sum of the constraints
    gradient = design.T @ (design @ found - wanted) + ridge * found
    values = points @ found
    assert float(values.min()) > -1e-5 * float(values.max())
    active = points[values < 1e-4 * values.max()]
    _, left = nnls(active.T.numpy(), gradient.numpy())
    assert left < 1e-5 * float((design.T @ wanted).norm())
    assert 0 < len(active) < len(points)


def test_it_commutes_with_rotations() -> None:
    rotation = torch.from_numpy(Rotation.random(random_state=1).as_matrix())
    q = directions(14)
    signal = torch.rand(20, 14, generator=torch.Generator().manual_seed(0)).double()
    found, turned = (Deconvolution.of(x, 8, 1e-4)(signal) for x in (q, q @ rotation.T))
    wigner = representation("0e + 2e + 4e + 6e + 8e", rotation.numpy())
    torch.testing.assert_close(turned, found @ wigner.T, atol=1e-8, rtol=0)


def test_order_and_signs_of_directions_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    q, order = directions(14), rng.permutation(14)
    signs = torch.from_numpy(rng.choice([-1.0, 1.0], size=(14, 1)))
    signal = torch.rand(20, 14, generator=torch.Generator().manual_seed(0)).double()
    found = Deconvolution.of(q, 8, 1e-4)(signal)
    again = Deconvolution.of(signs * q[order], 8, 1e-4)(signal[:, order])
    torch.testing.assert_close(again, found, atol=1e-8, rtol=0)


def test_little_is_negative() -> None:
    q = directions(32, 1.7)
    noise = torch.randn(200, 32, generator=torch.Generator().manual_seed(0)).double()
    signal = fibre_signal(q, torch.eye(3).double()[:1], torch.ones(1).double()) + 0.05 * noise
    values = values_at(Deconvolution.of(q, 8, 2e-5)(signal), constraint_points(q))
    assert float(values.min()) > -0.1 * float(values.max())


def test_repetitions_do_not_take_the_place_of_other_points() -> None:
    """Repeated directions, opposite ones, and ones that motion correction has turned a little."""
    q = directions(30)
    once, often = constraint_points(q), torch.cat([q, -q, q, q + 0.002 * torch.randn_like(q)])
    points = constraint_points(often)
    assert len(points) == len(once)
    nearest = (points @ once.T).abs().amax(dim=1).clamp(max=1).acos()
    assert math.degrees(float(nearest.median())) < 0.5
    order = torch.randperm(len(often))
    again = constraint_points(often[order])
    assert float((again @ points.T).abs().amax(dim=1).min()) > 1 - 1e-9


@pytest.mark.parametrize(("number", "least"), [(6, 36), (12, 144), (32, 160), (64, 160)])
def test_constraints_are_at_enough_points(number: int, least: int) -> None:
    points = constraint_points(directions(number))
    assert len(points) >= least
    assert len(points) < 2 * max(least, number)
    torch.testing.assert_close(points.norm(dim=1), torch.ones(len(points)).double())
    # between them, no point is far from all
    around = torch.nn.functional.normalize(torch.randn(500, 3).double(), dim=1)
    nearest = (around @ points.T).abs().amax(dim=1).clamp(max=1).acos()
    assert math.degrees(float(nearest.max())) < (32 if number == 6 else 20)
