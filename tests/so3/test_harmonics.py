"""Spherical harmonics of offsets, the zero offset above all."""

from __future__ import annotations

import pytest
import torch
from e3nn import o3
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import relative_error, rotation_of, seeds
from tripq.so3.harmonics import ZERO_LENGTH, directions, spherical_harmonics, unit_vectors
from tripq.testing import wigner_d

ORDERS = range(6)


def vectors(seed, n=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=generator, dtype=torch.float64).to(dtype)


@given(seed=seeds, length=st.sampled_from((1e-3, 1.0, 300.0)))
def test_harmonics_see_the_direction_and_are_those_of_e3nn(seed, length):
    v = vectors(seed)
    for l, y in spherical_harmonics(ORDERS, v * length).items():
        expected = o3.spherical_harmonics(l, v, normalize=True, normalization="component")
        assert relative_error(y, expected) < 1e-13


@given(seed=seeds, turn=seeds)
def test_harmonics_rotate_with_their_argument(seed, turn):
    v, rotation = vectors(seed), rotation_of(turn)
    for l, y in spherical_harmonics(ORDERS, v @ torch.from_numpy(rotation).T).items():
        expected = spherical_harmonics((l,), v)[l] @ wigner_d(l, rotation).T
        assert relative_error(y, expected) < 1e-12


@given(seed=seeds)
def test_the_representation_is_that_of_e3nn(seed):
    rotation = rotation_of(seed)
    for l in ORDERS:
        expected = o3.Irrep(l, 1).D_from_matrix(torch.from_numpy(rotation))
        assert (wigner_d(l, rotation) - expected).abs().max() < 2e-5  # e3nn's are float32 inside


@given(seed=seeds)
def test_squares_of_an_order_sum_to_its_number_of_components(seed):
    for l, y in spherical_harmonics(ORDERS, vectors(seed)).items():
        assert y.shape == (5, 2 * l + 1)
        torch.testing.assert_close(y.square().sum(-1), torch.full((5,), 2.0 * l + 1).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [0.0, 0.5 * ZERO_LENGTH])
def test_a_zero_offset_has_no_direction_and_no_slope(dtype, length):
    v = torch.tensor([[0.0, 0.0, length], [1.0, 2.0, 2.0]], dtype=dtype, requires_grad=True)
    for l, y in spherical_harmonics(ORDERS, v).items():
        assert y.dtype == dtype
        assert y[0].tolist() == [float(l == 0)] * (2 * l + 1)
        if l == 0:
            continue
        (grad,) = torch.autograd.grad(y.sum(), v, retain_graph=True)
        assert grad[0].tolist() == [0.0, 0.0, 0.0]
        assert grad[1].norm() > 0


def test_gradients_of_harmonics():
    v = vectors(0, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: tuple(spherical_harmonics(ORDERS, v).values()), v)


def test_unit_vectors_of_zero_are_zero_with_slope_zero():
    v = torch.tensor([[0.0, 0.0, 0.0], [0.0, 3.0, 4.0]], requires_grad=True)
    unit = unit_vectors(v)
    torch.testing.assert_close(unit, torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.6, 0.8]]))
    (grad,) = torch.autograd.grad(unit[0].sum() + unit[1, 0], v)
    torch.testing.assert_close(grad, torch.tensor([[0.0, 0.0, 0.0], [0.2, 0.0, 0.0]]))


def test_directions_says_where_there_are_none():
    unit, zero = directions(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -7.0]]))
    assert zero.tolist() == [True, False]
    assert unit[1].tolist() == [0.0, 0.0, -1.0]
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(2))


def test_harmonics_are_where_their_argument_is():
    v = torch.empty(4, 3, device="meta")
    assert {y.device for y in spherical_harmonics(ORDERS, v).values()} == {v.device}


def test_any_leading_shape_even_an_empty_one():
    assert spherical_harmonics((2,), torch.zeros(0, 4, 3))[2].shape == (0, 4, 5)
    assert spherical_harmonics((1, 1, 0), torch.zeros(3)).keys() == {0, 1}
