"""Constant sparse matrices, by which weights become the tables of a back end.

A filter's coefficients are linear in its weights: each is a sum of a few weights times products of
Clebsch-Gordan coefficients.  As one gather and one sum, that takes a GPU a few launches instead of
some for each path; and as nothing is scattered, the same bits come out every time, on any device.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, eq=False)
class SparseMatrix:
    """A matrix of constants, most of them zero.

    Attributes
    ----------
    shape : (int, int)
        Numbers of rows and columns.
    rows, columns : ndarrays of int
        Where its entries stand; those of one place are added.
    values : ndarray of float64
        The entries.

    Examples
    --------
    >>> rows, columns = np.array([0, 2, 2]), np.array([1, 0, 1])
    >>> matrix = SparseMatrix((3, 2), rows, columns, np.array([5.0, 1.0, 2.0]))
    >>> matrix.times(torch.tensor([1.0, 10.0]))
    tensor([50.,  0., 21.])
    """

    shape: tuple[int, int]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: NDArray[np.float64]

    def times(self, x: Tensor) -> Tensor:
        """The product with a vector (columns,), whose dtype and device it takes: (rows,)."""
        product: Tensor = _Product.apply(self, x)
        return product

    @cached_property
    def _by_row(self) -> _Gather:
        return _Gather.of(self.shape[0], self.rows, self.columns, self.values)

    @cached_property
    def _by_column(self) -> _Gather:
        return _Gather.of(self.shape[1], self.columns, self.rows, self.values)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: SparseMatrix, x: Tensor) -> Tensor:
        ctx.matrix = matrix
        return matrix._by_row(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, ctx.matrix._by_column(grad)


@dataclass(frozen=True, eq=False)
class _Gather:
    """For each row that has entries, where to look and what to multiply by."""

    size: int
    rows: NDArray[np.int64]
    index: NDArray[np.int32]  # (rows with entries, most entries of one), the rest times 0
    factor: NDArray[np.float64]
    _placed: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor, Tensor]] = field(
        default_factory=dict, repr=False
    )

    @classmethod
    def of(
        cls,
        size: int,
        rows: NDArray[np.int64],
        columns: NDArray[np.int64],
        values: NDArray[np.float64],
    ) -> _Gather:
        order = np.argsort(rows, kind="stable")
        present, first, place = np.unique(rows[order], return_index=True, return_inverse=True)
        rank = np.arange(len(rows)) - first[place]
        shape = len(present), int(rank.max(initial=0)) + 1
        index, factor = np.zeros(shape, np.int32), np.zeros(shape)
        index[place, rank], factor[place, rank] = columns[order], values[order]
        return cls(size, present, index, factor)

    def __call__(self, x: Tensor) -> Tensor:
        rows, index, factor = self._on(x)
        terms = x.index_select(0, index).view(factor.shape).mul_(factor)
        sums = terms[:, 0] if terms.shape[1] == 1 else terms.sum(dim=1)
        return x.new_zeros(self.size).index_copy_(0, rows, sums)

    def _on(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        key = x.device, x.dtype
        if key not in self._placed:
            with torch.inference_mode(False):  # they are kept, and may serve training later
                self._placed[key] = (
                    torch.from_numpy(self.rows).to(x.device),
                    torch.from_numpy(self.index.ravel()).to(x.device),
                    torch.from_numpy(self.factor).to(x.device, x.dtype),
                )
        return self._placed[key]
