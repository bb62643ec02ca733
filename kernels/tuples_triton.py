"""Tuples of tensors in registers, for the Triton kernels: Triton has no arrays in registers."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_to(total, value, I: tl.constexpr):
    """Add a value to one of the tensors of a tuple."""
    return total[:I] + (total[I] + value,) + total[I + 1 :]


@triton.jit
def load_row(pointers, N: tl.constexpr, DTYPE: tl.constexpr):
    """`N` adjacent numbers behind each pointer."""
    values = ()
    for i in tl.static_range(N):
        values = values + (tl.load(pointers + i).to(DTYPE),)
    return values
