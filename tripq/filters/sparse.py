"""Constant sparse matrices that map weights to the tables of a back end.

A filter's coefficients are linear in its weights: each is a sum of a few weights times products of
Clebsch-Gordan coefficients.  As gathers and sums, this takes a few operations instead of several
for each path, and one kernel on a GPU.  Nothing is scattered, so the results of a device are
reproducible bit by bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tripq.infra.kept import kept_with_owner
from tripq.kernels.launch import needs_twin, runs_in_triton
from tripq.kernels.sparse_rows import sparse_rows


@dataclass(frozen=True, eq=False)
class SparseMatrix:
    """A matrix of constants, most of them zero.

    Attributes
    ----------
    by_row, by_column : Gather
        Its entries: those of the rows, and of the columns, which are the rows of the transpose.

    Examples
    --------
    >>> rows, columns = np.array([0, 2, 2]), np.array([1, 0, 1])
    >>> matrix = SparseMatrix.of((3, 2), rows, columns, np.array([5.0, 1.0, 2.0]))
    >>> matrix.times(torch.tensor([1.0, 10.0]))
    tensor([50.,  0., 21.])
    """

    by_row: Gather
    by_column: Gather

    @classmethod
    def of(
        cls,
        shape: tuple[int, int],
        rows: NDArray[np.int64],
        columns: NDArray[np.int64],
        values: NDArray[np.float64],
    ) -> SparseMatrix:
        """From row and column numbers and entries; entries at the same place are added."""
        return cls(
            Gather.of(shape[0], rows, columns, values), Gather.of(shape[1], columns, rows, values)
        )

    @property
    def transposed(self) -> SparseMatrix:
        """The matrix with rows for columns."""
        return SparseMatrix(self.by_column, self.by_row)

    def times(self, x: Tensor) -> Tensor:
        """The product with a vector (columns,), whose dtype and device it takes: (rows,)."""
        product: Tensor = _Product.apply(self, x)
        return product


class _Product(torch.autograd.Function):
    """Linear, so that derivatives of any order are products again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: SparseMatrix, x: Tensor) -> Tensor:
        return matrix.by_row(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[SparseMatrix, Tensor], output: Tensor) -> None:
        ctx.matrix = inputs[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, ctx.matrix.transposed.times(grad)

    @staticmethod
    def jvp(ctx: Any, _: None, tangent: Tensor) -> Tensor:
        product: Tensor = ctx.matrix.times(tangent)
        return product


@dataclass(frozen=True, eq=False)
class Gather:
    """Rows of a sparse matrix: the indices and factors of each.

    Attributes
    ----------
    size : int
        Number of rows, including those without entries.
    blocks : tuple of (rows, index, factor)
        Rows with about as many entries: ndarrays of shape (R,), (R, n), (R, n), ``n`` a power of
        two.  A row with fewer entries repeats one of its indices with factor 0.
    """

    size: int
    blocks: tuple[tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float64]], ...]

    @classmethod
    def of(
        cls,
        size: int,
        rows: NDArray[np.int64],
        columns: NDArray[np.int64],
        values: NDArray[np.float64],
    ) -> Gather:
        """From the entries, in any order."""
        order = np.argsort(rows, kind="stable")
        columns, values = columns[order], values[order]
        present, first, counts = np.unique(rows[order], return_index=True, return_counts=True)
        widths = 1 << np.ceil(np.log2(counts)).astype(int)
        blocks = []
        for width in np.unique(widths):
            some = widths == width
            place = np.arange(width)[None]
            within = place < counts[some, None]
            at = first[some, None] + np.where(within, place, 0)
            blocks.append(
                (present[some], columns[at].astype(np.int32), np.where(within, values[at], 0.0))
            )
        return cls(size, tuple(blocks))

    def __call__(self, x: Tensor) -> Tensor:
        """The rows times a vector."""
        if runs_in_triton(x) and not needs_twin():
            return sparse_rows(*_listed(self, x.device, x.dtype), x)
        product = x.new_zeros(self.size)
        for rows, index, factor in _placed(self, x.device, x.dtype):
            terms = x.index_select(0, index).view(factor.shape) * factor
            product = product.index_copy(0, rows, terms.sum(dim=1))
        return product


@kept_with_owner
def _placed(
    gather: Gather, device: torch.device, dtype: torch.dtype
) -> list[tuple[Tensor, Tensor, Tensor]]:
    return [
        (
            torch.from_numpy(rows).to(device),
            torch.from_numpy(index.ravel()).to(device),
            torch.from_numpy(factor).to(device, dtype),
        )
        for rows, index, factor in gather.blocks
    ]


@kept_with_owner
def _listed(
    gather: Gather, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Where the entries of each row begin, their columns and their values."""
    counts = np.zeros(gather.size, np.int64)
    for rows, index, _ in gather.blocks:
        counts[rows] = index.shape[1]
    begins = np.concatenate([[0], counts.cumsum()])
    columns, values = np.empty(begins[-1], np.int32), np.empty(begins[-1])
    for rows, index, factor in gather.blocks:
        places = begins[rows][:, None] + np.arange(index.shape[1])
        columns[places], values[places] = index, factor
    return (
        torch.from_numpy(begins).to(device),
        torch.from_numpy(columns).to(device),
        torch.from_numpy(values).to(device, dtype),
    )
