"""Moments of columns, a few rows at a time, against those of torch."""

from __future__ import annotations

import pytest
import torch

from tripq.kernels import features
from tripq.kernels.moments import column_moments, moments_twin


def rows(number=50, dtype=torch.float64):
    """Columns with means that are large against their spread."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(number, 3, generator=generator, dtype=torch.float64)
    return (x + torch.tensor([0.0, 10.0, -1000.0])).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_moments_are_those_of_all_rows(dtype, tolerance, monkeypatch):
    x = rows(dtype=dtype)
    expected = moments_twin(x.double(), (19, 31))
    monkeypatch.setattr(features, "_CACHED", 7 * 3 * dtype.itemsize // torch.get_num_threads())
    found = column_moments(x, (19, 31))
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=0)


def test_derivatives_of_all_kinds():
    x = rows(4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: column_moments(x, (1, 3)), x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: column_moments(x, (1, 3)), x)
    parts = rows(6).view(2, 3, 3)
    for part, of_part in zip(parts, torch.func.vmap(column_moments)(parts), strict=True):
        torch.testing.assert_close(of_part, moments_twin(part))


def test_moments_are_an_operator():
    torch.library.opcheck(
        torch.ops.tripq.column_moments.default, (rows(4).requires_grad_(), [1, 3])
    )


def test_moments_of_bfloat16_are_summed_in_single_precision():
    x = torch.ones(1000, 1, dtype=torch.bfloat16)
    x[::2] = 3
    assert column_moments(x).flatten().tolist() == [2.0, 1.0]
