"""Choice of implementation: Triton, if it is installed, on a CUDA device, otherwise the torch twin.

Every operator of this package has two implementations: Triton kernels (``*_triton.py``) and a torch
twin that defines the result.  With ``TRITON_INTERPRET=1`` in the environment, set before Triton is
imported, the Triton kernels also run on CPU tensors, slowly, for tests.

Operators implement their first derivatives in reverse mode.  All other derivatives are those of the
twins, by autograd: forward mode, higher derivatives, and the transforms of `torch.func`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.autograd import forward_ad

TRITON_IS_INSTALLED = find_spec("triton") is not None

#: Bytes that working arrays may take on a CPU, unless it is said otherwise.
DEFAULT_BUDGET = 1 << 28


def runs_in_triton(x: Tensor) -> bool:
    """Whether operators on `x` run as Triton kernels."""
    if x.is_cuda:
        return TRITON_IS_INSTALLED
    return x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"


def needs_twin() -> bool:
    """Whether plain torch is required: in forward-mode AD, `torch.func` transforms, `plain_torch`.

    An operator of `torch.library` drops tangents silently, and `torch.func` cannot transform an
    autograd function.  Tensors are not inspected: one may carry a tangent of an outer level.
    """
    return _plain or forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


# Not a context variable: compilers do not trace those.
_plain = False


@contextmanager
def plain_torch() -> Iterator[None]:
    """Evaluate operators by their twins, as a program that runs without this package needs it."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


def higher_derivatives() -> bool:
    """In a backward pass, whether the gradients will be differentiated again."""
    return torch.is_grad_enabled() or needs_twin()


def gradients_of_twin(
    twin: Callable[[], Tensor], inputs: Sequence[Tensor], needed: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """Gradients of a twin for the inputs that need one, by autograd.

    They can be differentiated again if autograd requires it.
    """
    wanted = [x for x, need in zip(inputs, needed, strict=True) if need]
    with torch.enable_grad():
        out = twin()
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=torch.is_grad_enabled()))
    return [next(found) if need else None for need in needed]


def only_needed(gradients: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
    """The gradients that are needed, of an operator that computes all of them; else None."""
    return [grad if need else None for grad, need in zip(gradients, needed, strict=True)]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of accumulated sums: float32 for half-precision types, else the same."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
