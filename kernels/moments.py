"""Mean and variance of each column of a matrix, and their gradients in one pass.

The gradient of both is a linear function of each number, with a factor and a constant for each
column.  On a CPU the sum of squares is taken over a few rows at a time, which stay in the cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tripq.infra.chunks import chunks
from tripq.kernels.launch import accumulation_dtype, gradients_of_twin, higher_derivatives
from tripq.kernels.operators import operator

# Bytes of the rows whose squares are summed at a time.
_CACHED = 1 << 19


def column_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each column, without Bessel's correction.

    Parameters
    ----------
    x : Tensor of shape (N, C)
        The values.

    Returns
    -------
    mean, variance : Tensors of shape (C,)

    Examples
    --------
    >>> [v.tolist() for v in column_moments(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))]
    [[2.0, 5.0], [1.0, 0.0]]
    """
    mean, variance = _moments(x)
    return mean, variance


def moments_twin(x: Tensor) -> Tensor:
    """The torch twin: mean and variance, (2, C)."""
    variance, mean = torch.var_mean(x, dim=0, correction=0)
    return torch.stack([mean, variance])


def _moments_on_cpu(x: Tensor) -> Tensor:
    mean = x.mean(dim=0, dtype=accumulation_dtype(x.dtype))
    squares = torch.zeros_like(mean)
    size = max(1, x.shape[1]) * mean.element_size()
    for rows in chunks(len(x), size, _CACHED * torch.get_num_threads()):
        squares += (x[rows] - mean).square_().sum(dim=0)
    return torch.stack([mean, squares / len(x)]).to(x.dtype)


def _keep(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs, output)


def _differentiate(ctx: Any, grad: Tensor) -> Tensor | None:
    x, output = ctx.saved_tensors
    if higher_derivatives():
        return gradients_of_twin(lambda: moments_twin(x), [x], [True], grad)[0]
    factor = grad[1] * (2 / len(x))
    return torch.addcmul(grad[0] / len(x) - factor * output[0], x, factor)


_moments = operator(
    "column_moments",
    "(Tensor x) -> Tensor",
    lambda x: x.new_empty(2, x.shape[1]),
    twin=moments_twin,
    on_cpu=_moments_on_cpu,
    keep=_keep,
    differentiate=_differentiate,
)
