"""Intensities of the voxels of a scan, volume by volume, and which voxels can be used.

The volumes of a compressed image come one after the other, so everything here takes them as an
iterable: `tally` counts what a voxel needs to be used, and `store` keeps the signal on the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

_CHUNK = 10_000  # rows that are moved at once


def intensities_of(
    volumes: Iterable[NDArray[np.generic]], voxels: NDArray[np.bool_]
) -> Iterator[NDArray[np.float32]]:
    """Intensities of the voxels of a mask (X, Y, Z), volume by volume, (C,)."""
    for volume in volumes:
        with np.errstate(over="ignore"):  # values out of range become infinite: excluded later
            yield volume[voxels].astype(np.float32)


def store(
    intensities: Iterable[NDArray[np.float32]],
    b0_volumes: NDArray[np.bool_],
    signal: NDArray[np.float32],
) -> Iterator[NDArray[np.float32]]:
    """Store diffusion-weighted volumes in the columns of `signal` after the first; yield all."""
    columns = iter(signal.T[1:])
    for values, is_b0 in zip(intensities, b0_volumes, strict=True):
        if not is_b0:
            np.maximum(values, 0, out=next(columns))
        yield values


def tally(
    intensities: Iterable[NDArray[np.float32]], count: int, b0_volumes: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.bool_], tuple[str, ...]]:
    """Select the usable voxels.

    Parameters
    ----------
    intensities : iterable of N arrays, (C,)
        Of the candidates.
    count : int
        C.
    b0_volumes : (N,) bool array
        The b0 volumes.

    Returns
    -------
    b0 : (C,) float32 array
        Mean of the b0 volumes.
    kept : (C,) bool array
        The usable candidates.
    notes : tuple of str
        Corrections of the other candidates and of negative intensities.
    """
    mean = np.zeros(count)
    peak = np.zeros(count, dtype=np.float32)
    finite = np.ones(count, dtype=bool)
    negative = np.zeros(count, dtype=np.int32)
    for values, is_b0 in zip(intensities, b0_volumes, strict=True):
        finite &= np.isfinite(values)
        negative += values < 0
        np.maximum(values, 0, out=values)
        if is_b0:
            mean += values
        else:
            np.maximum(peak, values, out=peak)
    b0 = (mean / np.count_nonzero(b0_volumes)).astype(np.float32)

    with np.errstate(all="ignore"):
        has_b0 = (b0 > 0) & np.isfinite(peak / b0)
    kept = finite & has_b0 & (peak > 0)
    changes = (
        (np.count_nonzero(~finite), "Voxels removed because an intensity is NaN or infinite"),
        (np.count_nonzero(finite & ~has_b0), "Voxels removed because b0 is not above 0"),
        (
            np.count_nonzero(finite & has_b0 & (peak == 0)),
            "Voxels removed because all diffusion-weighted intensities are 0",
        ),
        (int(negative[kept].sum()), "Negative intensities set to 0"),
    )
    return b0, kept, tuple(f"{what}: {number}." for number, what in changes if number)


def keep_rows(array: NDArray[np.float32], kept: NDArray[np.bool_]) -> None:
    """Keep some rows of an array in place, and release the rest of its memory."""
    rows = np.flatnonzero(kept)
    if len(rows) == len(array):
        return
    for start in range(0, len(rows), _CHUNK):
        chosen = rows[start : start + _CHUNK]
        array[start : start + len(chosen)] = array[chosen]  # rows only move towards the front
    array.resize((len(rows), array.shape[1]), refcheck=False)
