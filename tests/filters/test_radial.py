"""Radial functions against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from e3nn.math import normalize2mom
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import silu

from tests.strategies import relative_error, seeds
from tripq.filters.radial import ConstantFunction, Radial, RadialFunctions

KINDS = ("gaussian", "cosine", "bessel", "smooth_finite")


def bump(t):
    """The smooth function with the support (-1, 1) that e3nn uses."""
    inside = t.abs() < 1
    safe = torch.where(inside, t, torch.zeros_like(t))
    return torch.where(
        inside, 1.14136 * torch.exp(2 - 1 / (1 + safe) - 1 / (1 - safe)), torch.zeros_like(t)
    )


SHAPES = {
    "gaussian": lambda t: torch.exp(-t.square()) / 1.12,
    "cosine": lambda t: torch.cos(torch.pi / 2 * t) * (t.abs() < 1),
    "smooth_finite": bump,
}


def closed_form(kind, number, end, cutoff, x):
    """f_k(x) as the class docstring describes it."""
    if kind == "bessel":
        c = end if cutoff else end + end / max(number - 1, 1)
        k = torch.arange(1, number + 1, dtype=x.dtype)
        x = x[..., None]
        return math.sqrt(2 / c) * k * math.pi / c * torch.sinc(k * x / c)
    step = end / number if cutoff else end / (number - 1)
    centres = step * torch.arange(number, dtype=x.dtype)
    return SHAPES[kind]((x[..., None] - centres) / step)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cutoff", [True, False])
@given(number=st.integers(2, 5), end=st.sampled_from((0.5, 2.0, 7.5)))
def test_functions_are_what_their_names_say(kind, cutoff, number, end):
    x = torch.linspace(0, 0.999 * end, 23, dtype=torch.float64)
    phi = RadialFunctions(Radial(kind, number), end, cutoff)(x)
    # e3nn rounds the constant factor of its smooth function to float32.
    limit = 1e-6 if kind == "smooth_finite" else 1e-12
    assert relative_error(phi, closed_form(kind, number, end, cutoff, x)) < limit


@pytest.mark.parametrize("kind", ["cosine", "bessel", "smooth_finite"])
def test_bounded_families_fade_at_the_cutoff(kind):
    phi = RadialFunctions(Radial(kind, 3), 4.0, cutoff=True)
    x = torch.tensor([4.0 - 1e-9, 4.0, 5.0], dtype=torch.float64)
    assert phi(x).abs().max() < 1e-7


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_cutoff_the_end_is_covered(kind):
    phi = RadialFunctions(Radial(kind, 3), 2.0, cutoff=False)
    assert phi(torch.tensor(2.0)).abs().max() > 0.3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cutoff", [True, False])
@pytest.mark.parametrize("number", [1, 3])
def test_learnable_functions_start_as_the_fixed_ones(kind, cutoff, number):
    x = torch.linspace(0, 3, 11, dtype=torch.float64)
    fixed = RadialFunctions(Radial(kind, number), 3.0, cutoff)
    learnable = RadialFunctions(Radial(kind, number, learnable=True), 3.0, cutoff).double()
    assert relative_error(learnable(x), fixed(x)) < 1e-14
    assert not list(fixed.parameters())
    assert len(list(learnable.parameters())) == (1 if kind == "bessel" else 2)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=seeds)
def test_each_learnable_function_moves_and_stretches_by_itself(kind, seed):
    generator = torch.Generator().manual_seed(seed)
    scale, shift = 0.5 + torch.rand(2, 3, generator=generator, dtype=torch.float64)
    x = torch.linspace(0, 3, 7, dtype=torch.float64)
    fixed = RadialFunctions(Radial(kind, 3), 3.0, cutoff=True)
    phi = RadialFunctions(Radial(kind, 3, learnable=True), 3.0, cutoff=True).double()
    with torch.no_grad():
        phi.scale.copy_(scale)
        if kind != "bessel":
            phi.shift.copy_(shift)
    for k in range(3):
        moved = x * scale[k] + (0 if kind == "bessel" else shift[k])
        torch.testing.assert_close(phi(x)[:, k], fixed(moved)[:, k])


def test_a_perceptron_stands_on_top():
    torch.manual_seed(0)
    phi = RadialFunctions(Radial("gaussian", 3, hidden=(5, 4)), 3.0, cutoff=True).double()
    x = torch.linspace(0, 3, 6, dtype=torch.float64).reshape(2, 3)
    basis = RadialFunctions(Radial("gaussian", 3), 3.0, cutoff=True)(x)
    weights = list(phi.parameters())
    assert [tuple(w.shape) for w in weights] == [(3, 5), (5, 4), (4, 3)]
    swish = normalize2mom(silu)  # e3nn keeps second moments of 1
    hidden = basis
    for w in weights[:-1]:
        hidden = swish(hidden @ w / math.sqrt(len(w)))
    assert relative_error(phi(x), hidden @ weights[-1] / 2) < 1e-14


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden", [(), (3,)])
def test_gradients(kind, hidden):
    torch.manual_seed(0)
    phi = RadialFunctions(Radial(kind, 2, learnable=True, hidden=hidden), 3.0, True).double()
    x = torch.tensor([0.4, 1.1, 2.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: phi(x), (x, *phi.parameters()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cutoff", [True, False])
def test_length_zero_and_radius_zero_give_finite_values_and_slopes(kind, cutoff):
    for end in (0.0, 3.0):
        phi = RadialFunctions(Radial(kind, 2, learnable=True), end, cutoff)
        x = torch.zeros(2, requires_grad=True)
        values = phi(x)
        gradients = torch.autograd.grad(values.sum(), (x, *phi.parameters()))
        assert all(bool(t.isfinite().all()) for t in (values, *gradients))
        assert values[0].abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_have_the_type_of_the_lengths(dtype):
    x = torch.rand(2, 3, dtype=dtype)
    assert RadialFunctions(Radial(), 1.0, True)(x).dtype == dtype
    assert RadialFunctions(Radial(), 1.0, True)(x).shape == (2, 3, 3)
    assert ConstantFunction()(x).equal(torch.ones(2, 3, 1, dtype=dtype))


def test_one_function_and_one_hidden_unit_are_enough():
    phi = RadialFunctions(Radial(number=1, hidden=(1,)), 3.0, cutoff=True)
    assert [tuple(weight.shape) for weight in phi.parameters()] == [(1, 1), (1, 1)]
    assert phi(torch.rand(2)).shape == (2, 1)


def test_repr_says_what_is_used():
    assert repr(RadialFunctions(Radial("cosine", 4), 2.5, True)).startswith(
        "RadialFunctions(4 cosine on [0, 2.5]"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "gauss"}, "unknown radial functions 'gauss': choose one of gaussian, cosine"),
        ({"number": 0}, "at least one radial function is needed, not 0"),
        ({"hidden": (4, 0)}, "hidden layers need at least one unit each"),
    ],
)
def test_radial_functions_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Radial(**arguments)
