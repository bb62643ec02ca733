"""The Triton kernel of `tripq.kernels.sparse_rows`: a program for a block of rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Rows of one program, one for each thread of its four warps.
_ROWS = 128


@triton.jit
def sparse_rows_kernel(
    begins,  # (R + 1,)
    columns,  # (E,)
    values,  # (E,)
    x,  # (C,)
    out,  # (R,)
    n_rows,
    ROWS: tl.constexpr,
):
    """The entries of each row one after the other, as many steps as the longest row takes."""
    ACC: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # (ROWS,)
    begin = tl.load(begins + row, mask=row < n_rows, other=0)
    end = tl.load(begins + row + 1, mask=row < n_rows, other=0)
    total = tl.zeros((ROWS,), ACC)
    for step in range(0, tl.max(end - begin, 0)):
        entry = begin + step
        inside = entry < end
        column = tl.load(columns + entry, mask=inside, other=0)
        value = tl.load(values + entry, mask=inside, other=0.0).to(ACC)
        total += value * tl.load(x + column, mask=inside, other=0.0).to(ACC)
    tl.store(out + row, total, mask=row < n_rows)


def sparse_rows(begins: Tensor, columns: Tensor, values: Tensor, x: Tensor) -> Tensor:
    """Launch the kernel; (C,) -> (R,)."""
    n_rows = len(begins) - 1
    out = torch.empty(n_rows, dtype=x.dtype, device=x.device)
    if n_rows:
        with torch.cuda.device_of(x):
            sparse_rows_kernel[(triton.cdiv(n_rows, _ROWS),)](
                begins, columns, values, x.contiguous(), out, n_rows, ROWS=_ROWS
            )
    return out
