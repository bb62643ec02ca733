"""Activation functions f, scaled so that outputs have the size of inputs: E f(z)^2 = 1.

z is a normal deviate.  e3nn estimates the factor from a million draws; it is kept for the next
network, and drawn on the CPU even while a network is built on another default device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from torch import Tensor, nn

from tripq.infra.e3nn import math


@cache
def of_size_one(function: Callable[[Tensor], Tensor]) -> nn.Module:
    """The scaled function, a module without parameters that all networks share.

    Examples
    --------
    >>> import torch
    >>> z = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    >>> bool((of_size_one(torch.sigmoid)(z).square().mean() - 1).abs() < 0.05)
    True
    """
    scaled: nn.Module = math.normalize2mom(function, device="cpu")
    return scaled


def factor_of_size_one(function: Callable[[Tensor], Tensor]) -> float:
    """The factor of the scaled function."""
    return float(of_size_one(function).cst)  # type: ignore[arg-type]
