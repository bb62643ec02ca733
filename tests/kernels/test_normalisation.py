"""Factors and constants of a normalisation: the kernels against their formula in torch."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.ahead_of_time import compile_kernel, for_targets
from tripq.kernels.normalisation import Features, normalisation, normalisation_twin

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
# Scalars apart and at the end, odd scalars, vectors; no scalars; nothing but scalars.
FEATURES = [
    Features((3, 2, 5, 1), (1, 1, 3, 1), (True, False, False, True), 1e-5),
    Features((2, 1), (3, 5), (False, False), 1e-5),
    Features((1,), (1,), (True,), 0.0),
]
features_of = pytest.mark.parametrize("features", FEATURES, ids=lambda f: f"{f[:2]}")


def operands(features, scans=3, dtype=torch.float64, device="cpu"):
    """Moments, weights, constants, and the gradient of the result."""
    generator = torch.Generator().manual_seed(0)
    components = sum(mul * dim for mul, dim in zip(features.muls, features.dims, strict=True))
    constants = sum(
        mul for mul, scalar in zip(features.muls, features.constants, strict=True) if scalar
    )

    def normal(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    moments = torch.stack([normal(scans, components), 1 + normal(scans, components).square()])
    tensors = moments, normal(sum(features.muls)), normal(constants), normal(*moments.shape)
    return [x.to(dtype).to(device) for x in tensors]


def value_and_gradients(function, features, *inputs):
    *inputs, grad = inputs
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = function(*inputs, features)
    return out.detach(), *torch.autograd.grad(out, inputs, grad)


def test_normalised_features_have_mean_square_one():
    features = Features((2, 1), (1, 3), (True, False), 0.0)
    x = 5 + 3 * torch.randn(100, 5, generator=torch.Generator().manual_seed(0)).double()
    moments = torch.stack([x.mean(dim=0), x.var(dim=0, correction=0)])[:, None]
    bias = torch.tensor([7.0, 8.0]).double()
    scale, shift = normalisation(moments, torch.ones(3).double(), bias, features)
    y = scale * x + shift
    torch.testing.assert_close(y[:, :2].mean(dim=0), bias)
    torch.testing.assert_close(y[:, :2].var(dim=0, correction=0), torch.ones(2).double())
    torch.testing.assert_close(y[:, 2:].square().mean(), torch.ones(()).double())
    assert torch.equal(shift[0, 2:], torch.zeros(3).double()), "a vector has no constant"


def test_derivatives_of_all_kinds():
    features = Features((1, 1, 1), (1, 1, 3), (True, False, False), 1e-5)
    *inputs, _ = operands(features, scans=2)
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(
        lambda *x: normalisation(*x, features), inputs, check_forward_ad=True
    )
    assert torch.autograd.gradgradcheck(lambda *x: normalisation(*x, features), inputs)


def test_it_is_an_operator():
    *inputs, _ = operands(FEATURES[0], dtype=torch.float32)
    inputs = [x.requires_grad_() for x in inputs]
    torch.library.opcheck(torch.ops.tripq.normalisation.default, (*inputs, *FEATURES[0]))


@features_of
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_kernels(features, dtype, triton_device, poisoned):
    inputs = operands(features, dtype=dtype, device=triton_device)
    found = value_and_gradients(normalisation, features, *inputs)
    expected = value_and_gradients(normalisation_twin, features, *(x.double() for x in inputs))
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == dtype
        torch.testing.assert_close(x.double(), y, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("target", for_targets([()], [()]))
def test_kernels_compile_without_spilling(target):
    import triton.language as tl

    from tripq.kernels import normalisation_triton

    layout = normalisation_triton.Layout.of(
        Features((38, 6, 8), (1, 3, 5), (True, False, False), 1e-5)
    )
    constants = {"C": layout, "ACC": tl.float32}
    tensors = normalisation_triton.Tensors("*fp32", "*fp32", "*fp32")
    types = {"grad": "*fp32", "inputs": tensors, "n_scans": "i32"}
    for name, out in (
        ("normalisation_kernel", "*fp32"),
        ("normalisation_backward_kernel", tensors),
    ):
        kernel = getattr(normalisation_triton, name)
        resources = compile_kernel(kernel, types | {"out": out}, constants, target)
        print(name, target, resources)
        assert resources.spilled == 0
