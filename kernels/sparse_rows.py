"""The rows of a sparse matrix times a vector.

A filter's coefficients are such products with its weights.  In torch they take several operations
for each length of rows (`tripq.filters.sparse`).  A CPU does not mind, but on a GPU each of them is
a launch; the kernel is one for all rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tripq.kernels.operators import operator


def sparse_rows(begins: Tensor, columns: Tensor, values: Tensor, x: Tensor) -> Tensor:
    """The rows of a matrix times a vector.

    Parameters
    ----------
    begins : Tensor of shape (R + 1,), int64
        Where the entries of each row begin, and their end.
    columns : Tensor of shape (E,), int32
        Column of each entry.
    values : Tensor of shape (E,)
        The entries.
    x : Tensor of shape (C,)
        The vector.

    Returns
    -------
    Tensor of shape (R,)

    Examples
    --------
    >>> columns = torch.tensor([1, 0, 1], dtype=torch.int32)
    >>> begins, values = torch.tensor([0, 1, 1, 3]), torch.tensor([5.0, 1.0, 2.0])
    >>> sparse_rows(begins, columns, values, torch.tensor([1.0, 10.0])).tolist()
    [50.0, 0.0, 21.0]
    """
    result: Tensor = _sparse_rows(begins, columns, values, x)
    return result


def sparse_rows_twin(begins: Tensor, columns: Tensor, values: Tensor, x: Tensor) -> Tensor:
    """The torch twin of `sparse_rows`."""
    rows = torch.repeat_interleave(begins.diff(), output_size=len(columns))
    out = x.new_zeros(len(begins) - 1)
    return out.index_add(0, rows, values * x[columns.to(torch.int64)])


_sparse_rows = operator(
    "sparse_rows",
    "(Tensor begins, Tensor columns, Tensor values, Tensor x) -> Tensor",
    lambda begins, columns, values, x: x.new_empty(begins.shape[0] - 1),
    twin=sparse_rows_twin,
    kernel="sparse_rows_triton.sparse_rows",
)
