"""Mean and variance of each column of a matrix, and their gradients in one pass.

The gradient of both is a linear function of each number, with a factor and a constant for each
column.  On a CPU the sum of squares is taken over a few rows at a time, which stay in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tripq.kernels.features import cached_rows, segments
from tripq.kernels.launch import accumulation_dtype, gradients_of_twin, higher_derivatives
from tripq.kernels.operators import operator


def column_moments(x: Tensor, sizes: Sequence[int] = ()) -> Tensor:
    """Mean and variance of each column, without Bessel's correction.

    Parameters
    ----------
    x : Tensor of shape (N, C)
        The values.
    sizes : sequence of S int
        Number of rows of each scan, which has moments of its own; not needed for one.

    Returns
    -------
    Tensor of shape (2, S, C)

    Examples
    --------
    >>> column_moments(torch.tensor([[1.0, 5.0], [3.0, 5.0]])).tolist()
    [[[2.0, 5.0]], [[1.0, 0.0]]]
    """
    result: Tensor = _moments(x, list(sizes))
    return result


def moments_twin(x: Tensor, sizes: Sequence[int] = ()) -> Tensor:
    """The torch twin of `column_moments`."""
    moments = [torch.var_mean(part, dim=0, correction=0) for part in segments(x, sizes)]
    variances, means = zip(*moments, strict=True)
    return torch.stack([torch.stack(means), torch.stack(variances)])


def _moments_on_cpu(x: Tensor, sizes: Sequence[int]) -> Tensor:
    dtype = accumulation_dtype(x.dtype)
    moments = x.new_zeros((2, len(sizes) or 1, x.shape[1]), dtype=dtype)
    for scan, part in enumerate(segments(x, sizes)):
        mean, variance = moments[:, scan]
        torch.sum(part, dim=0, dtype=dtype, out=mean)
        mean /= max(1, len(part))
        for rows in cached_rows(len(part), x.shape[1], dtype):
            variance += (part[rows] - mean).square_().sum(dim=0)
        variance /= max(1, len(part))
    return moments.to(x.dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.sizes = inputs
    ctx.save_for_backward(x, output)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
    x, output = ctx.saved_tensors
    if higher_derivatives():
        return gradients_of_twin(lambda: moments_twin(x, ctx.sizes), [x], [True], grad)[0], None
    return _moments_backward(grad, output, x, ctx.sizes), None


def _gradient(grad: Tensor, moments: Tensor, x: Tensor, sizes: Sequence[int]) -> Tensor:
    """A factor times each number, and a constant, of its column."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    parts = zip(segments(x, sizes), segments(out, sizes), strict=True)
    for scan, (part, of_part) in enumerate(parts):
        number = max(1, len(part))
        mean_grad, factor = grad[0, scan] / number, grad[1, scan] * (2 / number)
        constant = torch.addcmul(mean_grad, factor, moments[0, scan], value=-1)
        torch.addcmul(constant, part, factor, out=of_part)
    return out


_moments = operator(
    "column_moments",
    "(Tensor x, SymInt[] sizes) -> Tensor",
    lambda x, sizes: x.new_empty(2, len(sizes) or 1, x.shape[1]),
    twin=moments_twin,
    on_cpu=_moments_on_cpu,
    keep=_keep,
    differentiate=_differentiate,
)
_moments_backward = operator(
    "column_moments_backward",
    "(Tensor grad, Tensor moments, Tensor x, SymInt[] sizes) -> Tensor",
    lambda grad, moments, x, sizes: x.new_empty(x.shape),
    twin=_gradient,
)
