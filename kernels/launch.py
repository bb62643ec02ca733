"""Where a kernel runs: Triton on a CUDA device, its torch twin elsewhere.

Every operator of this package exists twice: as Triton kernels (``*_triton.py``) and as a torch twin
that says what they compute.  With ``TRITON_INTERPRET=1`` in the environment, set before Triton is
imported, the Triton kernels run on CPU tensors too, slowly: for tests.

Operators have formulas for their first derivatives, backwards.  All other derivatives are those of
the twins, by autograd: forward mode, higher derivatives, and the transforms of `torch.func`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

#: Bytes that working arrays may take on a CPU, unless it is said otherwise.
DEFAULT_BUDGET = 1 << 28


def runs_in_triton(x: Tensor) -> bool:
    """Whether operators on `x` run as Triton kernels."""
    return x.is_cuda or (x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1")


def needs_twin() -> bool:
    """Whether only plain torch is right here: in forward-mode AD and in `torch.func` transforms.

    An operator of `torch.library` drops tangents without a word, and `torch.func` cannot look into
    a function of autograd.  Tensors are not asked: one may carry a tangent of an outer level.
    """
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def higher_derivatives() -> bool:
    """Whether, in a backward pass, the gradients will be differentiated themselves."""
    return torch.is_grad_enabled() or needs_twin()


def gradients_of_twin(
    twin: Callable[[], Tensor], inputs: Sequence[Tensor], needed: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """Gradients of a twin for the inputs that need one, by autograd.

    They can be differentiated again where autograd asks for it.
    """
    wanted = [x for x, need in zip(inputs, needed, strict=True) if need]
    with torch.enable_grad():
        out = twin()
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=torch.is_grad_enabled()))
    return [next(found) if need else None for need in needed]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that sums are kept in: float32 for the half-precision types, else the same."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
