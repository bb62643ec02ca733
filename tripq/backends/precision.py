"""Precision: allowed combinations of types, sums in float32 or float64, TF32 only on request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tripq.domain.nodes import NodeSpace
from tripq.domain.qspace import QSpace
from tripq.domain.voxels import PEdges
from tripq.filters.filter import PQFilter
from tripq.kernels.launch import accumulation_dtype, needs_twin

Evaluate = Callable[[Tensor, PEdges, QSpace | NodeSpace, PQFilter, int], Tensor]


_HALF = (torch.bfloat16, torch.float16)


def has_bfloat16(device: str) -> bool:
    """Whether a kind of device has instructions for bfloat16; without them it is far slower."""
    if device.startswith("cuda"):
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    # Older versions of torch do not report the capabilities of a processor.
    able: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return device == "cpu" and bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def check_dtype(x: Tensor, weight: Tensor) -> None:
    """Check that features are floating-point numbers, of the type of the weights.

    Under autocast both may be float32 or any half precision.

    Raises
    ------
    ValueError
        With the two types and what to do.
    """
    known = (torch.float64, torch.float32, *_HALF)
    if x.dtype not in known:
        wanted = weight.dtype if weight.dtype in known else torch.float32
        raise ValueError(f"the features are {x.dtype}, not real numbers: call x.to({wanted})")
    if weight.dtype not in known:
        raise ValueError(f"weights of type {weight.dtype} are not supported")
    cast = torch.is_autocast_enabled(x.device.type)
    if x.dtype != weight.dtype and not (cast and torch.float64 not in (x.dtype, weight.dtype)):
        raise ValueError(
            f"the features are {x.dtype}, but the weights are {weight.dtype}: call "
            f"x.to({weight.dtype}) or move the module by .to({x.dtype})"
        )


def single_precision(evaluate: Evaluate) -> Evaluate:
    """A back end that computes with half-precision features in float32 and rounds the result."""

    @wraps(evaluate)
    def in_single(
        x: Tensor, edges: PEdges, q: QSpace | NodeSpace, filter: PQFilter, budget: int
    ) -> Tensor:
        if x.dtype not in _HALF or torch.is_autocast_enabled(x.device.type):
            return evaluate(x, edges, q, filter, budget)
        return evaluate(x.float(), edges, q, filter, budget).to(x.dtype)

    return in_single


def full_precision(evaluate: Evaluate) -> Evaluate:
    """A back end of many small sums, which computes in float32 under autocast, too."""
    evaluate = single_precision(evaluate)

    @wraps(evaluate)
    def without_autocast(
        x: Tensor, edges: PEdges, q: QSpace | NodeSpace, filter: PQFilter, budget: int
    ) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            return evaluate(x, edges, q, filter, budget)
        with torch.autocast(x.device.type, enabled=False):
            # A layer before may have given half precision.
            return evaluate(x.to(accumulation_dtype(x.dtype)), edges, q, filter, budget)

    return without_autocast


def convolve(volume: Tensor, weight: Tensor, padding: list[int]) -> Tensor:
    """``conv3d`` without bias, in TF32 only where matrix products are.

    By default cuDNN rounds float32 to TF32, and matrix products do not.  The error of TF32, 3e-4,
    is an error of equivariance, so one switch, off by default, applies to both.
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
    """A convolution that sets the switch of cuDNN when it runs, in the backward pass, too.

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
