"""Convolutions on a device are as exact as matrix products are; here as far as a CPU shows it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from tripq.backends import precision


@pytest.fixture(autouse=True)
def usual() -> Iterator[None]:
    """Put torch's switches back."""
    switches = torch.backends, torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [switch.fp32_precision for switch in switches]
    yield
    for switch, value in zip(switches, before, strict=True):
        switch.fp32_precision = value


@pytest.mark.parametrize(
    ("wanted", "expected"), [("none", "ieee"), ("ieee", "ieee"), ("tf32", "tf32")]
)
@pytest.mark.parametrize("own", ["tf32", "ieee"])
def test_the_switch_of_convolutions_is_that_of_matrix_products_and_is_put_back(
    wanted, expected, own
):
    torch.backends.cuda.matmul.fp32_precision = wanted
    torch.backends.cudnn.conv.fp32_precision = own
    with precision._as_matrix_products():
        assert torch.backends.cudnn.conv.fp32_precision == expected
    assert torch.backends.cudnn.conv.fp32_precision == own


def test_it_is_put_back_after_an_error():
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    with pytest.raises(RuntimeError), precision._as_matrix_products():
        raise RuntimeError
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"


@pytest.mark.parametrize("set_by", ["old names", "one for all"])
def test_any_way_of_setting_them_will_do(set_by):
    if set_by == "old names":
        torch.backends.cuda.matmul.allow_tf32 = True
    else:
        torch.backends.fp32_precision = "tf32"
        torch.backends.cuda.matmul.fp32_precision = "none"
    with precision._as_matrix_products():
        assert torch.backends.cudnn.conv.fp32_precision == "tf32"


def test_the_convolution_of_a_device_has_derivatives():
    generator = torch.Generator().manual_seed(0)
    volume, weight = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((1, 2, 3, 2, 2), (2, 2, 3, 1, 1))
    )

    def convolved(volume, weight):
        return precision._Convolution.apply(volume, weight, [1, 0, 0])

    assert gradcheck(convolved, (volume, weight))
    assert gradgradcheck(convolved, (volume, weight))
