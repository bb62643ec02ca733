"""Rows of features: those of each scan, and the components of each feature."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tripq.infra.chunks import chunks

# Bytes of the rows that a thread of a CPU evaluates at a time.
_CACHED = 1 << 19

#: The norm of a feature x is sqrt(|x|^2 + eps^2) - eps: it has a gradient at 0.
NORM_EPS = 1e-4


def segments(x: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """The rows of each scan; all of them without sizes."""
    parts: Sequence[Tensor] = x.split(list(sizes)) if sizes else (x,)
    return parts


def cached_rows(number: int, width: int, dtype: torch.dtype) -> list[slice]:
    """Slices of rows of so many numbers that stay in the cache of a CPU."""
    return chunks(number, width * dtype.itemsize, _CACHED * torch.get_num_threads())


def normalised(x: Tensor, scale: Tensor, shift: Tensor, sizes: Sequence[int] = ()) -> Tensor:
    """Rows (N, dim) times the factors of their scan, plus its constants, both (scans, dim)."""
    parts = zip(shift, segments(x, sizes), scale, strict=True)
    return torch.cat([torch.addcmul(constant, part, factor) for constant, part, factor in parts])


def norm_of(squared: Tensor) -> Tensor:
    """The norm from the square of the length, without the cancellation."""
    return squared / ((squared + NORM_EPS**2).sqrt() + NORM_EPS)


def copies(muls: Sequence[int], dims: Sequence[int]) -> NDArray[np.float64]:
    """The matrix (components, features) that copies a number of each feature to its components.

    Parameters
    ----------
    muls, dims : sequences of int
        For each run of features of one order their number, and 2 l + 1.

    Examples
    --------
    >>> copies([1, 1], [1, 2]).tolist()
    [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    """
    of_feature = np.repeat(np.array(dims, np.int64), np.array(muls, np.int64))
    return np.repeat(np.eye(len(of_feature)), of_feature, axis=0)
