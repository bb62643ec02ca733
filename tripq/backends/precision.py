"""Precision: full under autocast where half would cost more than it saves; TF32 only if wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tripq.filter import PQFilter
from tripq.graph import NodeSpace, PEdges, QSpace
from tripq.kernels.launch import needs_twin

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
    if torch.is_autocast_enabled("cuda") and volume.dtype != torch.float64:
        dtype = torch.get_autocast_dtype("cuda")
        volume, weight = volume.to(dtype), weight.to(dtype)
    if needs_twin():
        with _as_matrix_products():
            return functional.conv3d(volume, weight, padding=padding)
    result: Tensor = _Convolution.apply(volume, weight, padding)
    return result


class _Convolution(torch.autograd.Function):
    """cuDNN looks at the switch when it runs, in the backward pass too.

    Only the first derivative is taken by it: of higher ones cuDNN has its own way.
    """

    @staticmethod
    def forward(volume: Tensor, weight: Tensor, padding: list[int]) -> Tensor:
        with _as_matrix_products():
            return functional.conv3d(volume, weight, padding=padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, list[int]], output: Tensor) -> None:
        volume, weight, ctx.padding = inputs
        ctx.save_for_backward(volume, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        volume, weight = ctx.saved_tensors
        needed = [*ctx.needs_input_grad[:2], False]
        with _as_matrix_products():
            grad_volume, grad_weight, _ = torch.ops.aten.convolution_backward(
                grad, volume, weight, None, [1] * 3, ctx.padding, [1] * 3, False, [0] * 3, 1, needed
            )
        return grad_volume, grad_weight, None


# The switch is one for all threads, and autograd has threads of its own.
_switch = Lock()


@contextmanager
def _as_matrix_products() -> Iterator[None]:
    """Let cuDNN's convolutions be as exact as matrix products are."""
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    with _switch:
        usual = convolutions.fp32_precision
        wanted = torch.backends.cuda.matmul.fp32_precision
        convolutions.fp32_precision = "tf32" if wanted == "tf32" else "ieee"
        try:
            yield
        finally:
            convolutions.fp32_precision = usual
