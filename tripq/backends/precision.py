"""Precision: full under autocast where half would cost more than it saves; TF32 only if wanted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.backends import cudnn
from torch.nn import functional

from tripq.filter import PQFilter
from tripq.graph import NodeSpace, PEdges, QSpace

Evaluate = Callable[[Tensor, PEdges, QSpace | NodeSpace, PQFilter, int], Tensor]


def full_precision(evaluate: Evaluate) -> Evaluate:
    """A back end of many small sums, from which half precision would take more than it saves."""

    @wraps(evaluate)
    def without_autocast(
        x: Tensor, edges: PEdges, q: QSpace | NodeSpace, filter: PQFilter, budget: int
    ) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            return evaluate(x, edges, q, filter, budget)
        halved = x.dtype in (torch.bfloat16, torch.float16)  # by the layer before
        with torch.autocast(x.device.type, enabled=False):
            return evaluate(x.float() if halved else x, edges, q, filter, budget)

    return without_autocast


def convolve(volume: Tensor, weight: Tensor, padding: list[int]) -> Tensor:
    """``conv3d`` without bias, in TF32 only where matrix products are.

    cuDNN rounds float32 to TF32 unless it is told not to, matrix products do not unless they are
    told to. Its error of 3e-4 is no longer equivariance to rounding: one switch, off at first, for
    both.
    """
    if not volume.is_cuda:
        return functional.conv3d(volume, weight, padding=padding)
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        volume, weight = volume.to(dtype), weight.to(dtype)
    result: Tensor = _Convolution.apply(volume, weight, padding)
    return result


class _Convolution(torch.autograd.Function):
    """cuDNN reads the switch when it runs, in the backward pass too."""

    @staticmethod
    def forward(ctx: Any, volume: Tensor, weight: Tensor, padding: list[int]) -> Tensor:
        ctx.save_for_backward(volume, weight)
        ctx.padding = padding
        with _as_matrix_products():
            return functional.conv3d(volume, weight, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        volume, weight = ctx.saved_tensors
        needed = [*ctx.needs_input_grad[:2], False]
        with _as_matrix_products():
            grad_volume, grad_weight, _ = torch.ops.aten.convolution_backward(
                grad, volume, weight, None, [1] * 3, ctx.padding, [1] * 3, False, [0] * 3, 1, needed
            )
        return grad_volume, grad_weight, None


def _as_matrix_products() -> AbstractContextManager[None]:
    flags: AbstractContextManager[None] = cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=cudnn.benchmark,
        deterministic=cudnn.deterministic,
        allow_tf32=torch.backends.cuda.matmul.allow_tf32,
    )
    return flags
