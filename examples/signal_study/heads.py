"""Parts of real heads, directions that are shown, and repetitions of a scan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from paper.repeats import rigid
from scipy.ndimage import map_coordinates

from tripq.scans import DWI
from tripq.scans.noise import noise_level
from tripq.so3.fit import ShellFit
from tripq.tasks.signal.scoring import same_directions
from tripq.tasks.signal.task import TRIALS, SignalTask
from tripq.training.patches import hide

DARK = 0.25
"""Voxels whose noise is more than this, relative to b0, are left out: edges of the mask."""

DIRECTIONS_OF_A_SLAB = 8

LARGEST = 2.0
"""Signal divided by b0 is at most this."""

FLOOR_DIRECTIONS, FLOOR_ORDER = 30, 4
"""The noise floor is the residual of harmonics of this order, for as many directions or more."""

COVERED = 0.99
"""Share of a voxel that a repetition must cover."""

Denoise = Callable[[DWI], NDArray[np.floating]]


@dataclass(frozen=True)
class Crop:
    """Some slices of a head; a `Scan` of the training."""

    name: str
    dwi: DWI


def middle(name: str, dwi: DWI, voxels: int) -> Crop:
    """As few middle slices of a head as have so many voxels."""
    inside = _bright(dwi)
    centre = inside.shape[2] // 2
    order = np.argsort(np.abs(np.arange(inside.shape[2]) - centre), kind="stable")
    number = np.searchsorted(np.cumsum(inside.sum(axis=(0, 1))[order]), voxels) + 1
    return _slices(name, dwi, inside, order[:number].min(), order[:number].max() + 1)


def slabs(name: str, dwi: DWI) -> list[Crop]:
    """A whole head in slabs of equal volume, one for every `DIRECTIONS_OF_A_SLAB`.

    A training draws all slabs equally often: a head counts as much as it has directions.
    """
    inside = _bright(dwi)
    before = np.cumsum(inside.sum(axis=(0, 1)))
    number = -(-(len(dwi.b_values) - 1) // DIRECTIONS_OF_A_SLAB)
    edges = np.searchsorted(before, before[-1] * np.arange(1, number) / number)
    return [
        _slices(name, dwi, inside, first, last)
        for first, last in pairwise([0, *edges, len(before)])
    ]


def _bright(dwi: DWI) -> NDArray[np.bool_]:
    """The brain without voxels that are dark."""
    inside = dwi.mask.copy()
    inside[dwi.mask] = noise_level(dwi) / dwi.b0 < DARK
    return inside


def _slices(name: str, dwi: DWI, inside: NDArray[np.bool_], first: int, last: int) -> Crop:
    part = inside.copy()
    part[:, :, :first] = part[:, :, last:] = False
    rows = part[dwi.mask]
    affine = dwi.affine.copy()
    affine[:3, 3] += affine[:3, 2] * first
    return Crop(
        name,
        replace(
            dwi,
            signal=np.minimum(dwi.signal[rows], LARGEST),
            b0=dwi.b0[rows],
            mask=part[:, :, first:last],
            affine=affine,
        ),
    )


@dataclass(frozen=True, eq=False)
class Trial:
    """Directions of a scan that are shown, and the others.

    Parameters
    ----------
    number : int
        Of the directions that are shown.
    shown : DWI
        The scan with these.
    hidden : (Q,) int array
        Samples of the others.
    q : (Q, 3) array
        Their q-vectors.
    known : (V, Q) array
        Their signal.
    """

    number: int
    shown: DWI
    hidden: NDArray[np.intp]
    q: NDArray[np.float64]
    known: NDArray[np.floating]


def trials(dwi: DWI) -> Iterator[Trial]:
    """The trials of the task."""
    for number, hidden in zip(TRIALS, SignalTask().trials(Crop("", dwi)), strict=False):
        shown, known, q_out = hide(dwi, dwi.signal, hidden)
        assert q_out is not None  # a trial hides some
        yield Trial(number, shown, hidden, q_out, known)


def noise_floor(dwi: DWI) -> float | None:
    """Root mean square of the noise; None with too few directions."""
    if len(dwi.b_values) - 1 < FLOOR_DIRECTIONS:
        return None
    fit = ShellFit.of(torch.from_numpy(dwi.q[1:]), FLOOR_ORDER, 1e-9)
    matrix = (fit.basis @ fit.matrix).numpy()
    residual = dwi.signal[:, 1:] - dwi.signal[:, 1:] @ matrix.T
    return float(np.mean(residual**2) * len(matrix) / fit.freedom) ** 0.5


@dataclass(frozen=True, eq=False)
class Repeated:
    """A scan, and the mean of its repetitions.

    Parameters
    ----------
    dwi : DWI
        The scan.
    rows : (R,) int array
        Its voxels that all repetitions show.
    columns : (C,) int array
        Its samples with directions that they have.
    mean : (R, C) array
        Their signal, divided by b0.
    """

    dwi: DWI
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    mean: NDArray[np.floating]

    @classmethod
    def of(cls, dwi: DWI, others: Sequence[DWI]) -> Repeated:
        """Register the repetitions rigidly, and interpolate their volumes."""
        total = np.zeros_like(dwi.signal)
        seen = np.ones(len(dwi.b0), bool)
        common = np.ones(len(dwi.q), bool)
        for other in others:
            affine = rigid(dwi, other)
            places = apply_affine(np.linalg.inv(other.affine) @ affine, dwi.voxel_centres()).T
            columns, theirs = same_directions(dwi.q, other.q @ affine[:3, :3])
            common &= np.isin(np.arange(len(common)), columns)
            share = map_coordinates(other.mask.astype(np.float32), places, order=1)
            seen &= share > COVERED
            for column, its in zip(columns, theirs, strict=True):
                volume = other.volume(other.signal[:, its])
                total[:, column] += map_coordinates(volume, places, order=1)
        rows, columns = np.flatnonzero(seen), np.flatnonzero(common)
        return cls(dwi, rows, columns, total[np.ix_(rows, columns)] / len(others))

    def error(self, denoise: Denoise) -> dict[str, float]:
        """RMS error of the denoised scan, PSNR in dB, and anatomy in what was removed.

        The last is the correlation of the mean residual over the directions with b0.
        """
        found = denoise(self.dwi)
        error = float(np.sqrt(np.mean((found[np.ix_(self.rows, self.columns)] - self.mean) ** 2)))
        removed = ((self.dwi.signal - found)[:, 1:] * self.dwi.b0[:, None]).mean(axis=1)
        flat = removed.std() == 0 or self.dwi.b0.std() == 0
        anatomy = 0.0 if flat else np.corrcoef(removed, self.dwi.b0)[0, 1]
        return {"rms_error": error, "psnr": -20 * np.log10(error), "anatomy": float(anatomy)}
