"""Where a kernel runs: Triton on a CUDA device, its torch twin elsewhere.

Every operator of this package exists twice: as Triton kernels (``*_triton.py``) and as a torch twin
that says what they compute.  With ``TRITON_INTERPRET=1`` in the environment, set before Triton is
imported, the Triton kernels run on CPU tensors too, slowly: for tests.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

#: Bytes that working arrays may take on a CPU, unless it is said otherwise.
DEFAULT_BUDGET = 1 << 28


def runs_in_triton(x: Tensor) -> bool:
    """Whether operators on `x` run as Triton kernels."""
    return x.is_cuda or (x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1")


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that sums are kept in: float32 for the half-precision types, else the same."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
