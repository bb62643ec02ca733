"""Lesion candidates of a probability map: connected components, their positions and sizes.

A candidate is what a network marks: a set of voxels at or above a threshold that are connected by
faces, edges or corners (26 neighbours), with at least a minimum volume.  Candidates are numbered by
mean probability times volume, which is the integral of the probability over the candidate; number 1
has the highest value.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from tripq.scans import DWI, voxel_ml
from tripq.tasks.lesions.names import MAX_MIN_VOLUME

Side = Literal["left", "right", "midline", "unknown"]
"""Side of the head."""

MIDLINE = 5.0
"""Candidates with centres closer than this to the middle of the head, in mm, have no side.

The middle is the mean position of the brain mask, and heads are seldom aligned with the axes:
closer to it the side is uncertain.
"""

HEAD_WIDTH = 100.0
"""A mask narrower than this, in mm, is treated as a part of the head with unknown middle.

Brains of adults are 130 to 145 mm wide, of two-year-olds about 120 mm.
"""

NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)
"""The 26 neighbours of a voxel, as `scipy.ndimage.label` expects them."""

_ROUNDING = 1e-6  # relative; volumes of voxels come from affines in float32
_COLUMNS = (
    *("candidate", "voxels", "volume_ml", "x_mm", "y_mm", "z_mm", "side"),
    *("mean_probability", "highest_probability"),
)


@dataclass(frozen=True)
class Candidate:
    """A connected set of voxels that a network marks.

    Attributes
    ----------
    voxels : int
        Number of voxels.
    volume_ml : float
        Volume in ml.
    centre_mm : tuple of 3 floats
        Mean position of its voxels in world coordinates (RAS+), in mm.  It can be outside the
        candidate.
    peak_mm : tuple of 3 floats
        Centre of its voxel of highest probability in world coordinates, in mm.
    side : {"left", "right", "midline", "unknown"}
        Side of `centre_mm` relative to the middle of the mask; see `MIDLINE` and `HEAD_WIDTH`.
        Also unknown if the header of the scan gives no orientation.
    mean_probability, highest_probability : float
        Mean and maximum over its voxels.
    """

    voxels: int
    volume_ml: float
    centre_mm: tuple[float, float, float]
    peak_mm: tuple[float, float, float]
    side: Side
    mean_probability: float
    highest_probability: float


def check_limits(threshold: float, min_volume: float) -> None:
    """Reject limits that are not a probability and a volume.

    Parameters
    ----------
    threshold : float
        Minimum probability of a lesion voxel, from 0 to 1.
    min_volume : float
        Minimum volume of a candidate in ml, from 0 to `MAX_MIN_VOLUME`.

    Raises
    ------
    ValueError
        If one of them is outside its range or NaN.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold} must be from 0 to 1.")
    if not 0 <= min_volume <= MAX_MIN_VOLUME:
        raise ValueError(f"min_volume={min_volume} must be from 0 to {MAX_MIN_VOLUME:g} ml.")


def drop_small(marked: ArrayLike, voxel_ml: float, min_volume: float) -> NDArray[np.bool_]:
    """Marked voxels without the connected components below a volume.

    Parameters
    ----------
    marked : (X, Y, Z) array-like of bool
        Marked voxels on a grid.
    voxel_ml : float
        Volume of a voxel in ml.
    min_volume : float
        Minimum volume of a component in ml; 0 keeps all.

    Returns
    -------
    (X, Y, Z) bool array

    Examples
    --------
    >>> marked = np.array([[[True, True, False, True, False]]])
    >>> drop_small(marked, voxel_ml=0.008, min_volume=0.01).astype(int)
    array([[[1, 1, 0, 0, 0]]])
    """
    labels, number = ndimage.label(np.asarray(marked).astype(bool), structure=NEIGHBOURS)
    sizes = np.bincount(labels.ravel(), minlength=number + 1)
    kept = sizes >= min_volume / voxel_ml * (1 - _ROUNDING)
    kept[0] = False
    return np.asarray(kept[labels])


def label_candidates(
    dwi: DWI, probability: ArrayLike, threshold: float, min_volume: float = 0.0
) -> NDArray[np.int32]:
    """Number of the candidate that each voxel belongs to.

    Parameters
    ----------
    dwi : DWI
        The scan.
    probability : (V,) array-like
        Probability of a lesion, from 0 to 1, in the order of ``np.argwhere(dwi.mask)``.
    threshold : float
        Minimum probability of a lesion voxel, from 0 to 1.
    min_volume : float, optional
        Minimum volume of a candidate in ml, from 0 to `MAX_MIN_VOLUME`.

    Returns
    -------
    (V,) int32 array
        0 for no candidate; 1 for the one with the highest mean probability times volume.
        Candidates of equal value are ordered by highest probability, then by position in the scan.

    Raises
    ------
    ValueError
        If there is not one probability from 0 to 1 for every voxel, or a limit is invalid.
    """
    values = _checked(dwi, probability, threshold, min_volume)
    marked = drop_small(dwi.volume(values >= threshold), voxel_ml(dwi.affine), min_volume)
    volume, number = ndimage.label(marked, structure=NEIGHBOURS)
    labels = volume[dwi.mask]
    numbers = np.arange(1, number + 1)
    # rounded, because the order of a sum must not decide between equal candidates
    integral = np.bincount(labels, values, minlength=number + 1)[1:].round(9)
    highest = ndimage.maximum(values, labels, numbers)
    rank = np.zeros(number + 1, dtype=np.int32)
    rank[1 + np.lexsort((numbers, -np.asarray(highest), -integral))] = numbers
    return rank[labels]


def find_candidates(
    dwi: DWI, probability: ArrayLike, threshold: float, min_volume: float = 0.0
) -> tuple[Candidate, ...]:
    """Candidates of a probability map, that of the highest mean probability times volume first.

    Parameters
    ----------
    dwi, probability, threshold, min_volume
        As in `label_candidates`.

    Returns
    -------
    tuple of Candidate
        In the order of the numbers of `label_candidates`; empty if nothing is marked.

    Raises
    ------
    ValueError
        As in `label_candidates`.

    Examples
    --------
    >>> from tripq.scans import DWI
    >>> mask = np.ones((60, 1, 1), dtype=bool)
    >>> dwi = DWI(
    ...     signal=np.ones((60, 2), dtype=np.float32),
    ...     b_values=np.array([0.0, 1000.0]),
    ...     q=np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]),
    ...     mask=mask,
    ...     affine=np.diag([2.0, 2.0, 5.0, 1.0]),
    ...     b0=np.ones(60, dtype=np.float32),
    ... )
    >>> probability = np.zeros(60)
    >>> probability[[10, 11, 12]] = 0.5, 0.9, 0.7
    >>> (candidate,) = find_candidates(dwi, probability, threshold=0.5)
    >>> candidate.voxels, round(candidate.volume_ml, 3), candidate.side
    (3, 0.06, 'left')
    >>> candidate.centre_mm, candidate.highest_probability
    ((22.0, 0.0, 0.0), 0.9)
    >>> find_candidates(dwi, probability, threshold=0.5, min_volume=0.07)
    ()
    """
    labels = label_candidates(dwi, probability, threshold, min_volume)
    values = np.asarray(probability, dtype=np.float64)
    places = dwi.voxel_centres()
    middle = _middle(dwi)
    # sorted by the number of the candidate, so that each candidate is a slice
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels))
    candidates = []
    for start, end in pairwise(ends):
        rows = order[start:end]
        centre = places[rows].mean(axis=0)
        candidates.append(
            Candidate(
                voxels=len(rows),
                volume_ml=len(rows) * voxel_ml(dwi.affine),
                centre_mm=_point(centre),
                peak_mm=_point(places[rows[np.argmax(values[rows])]]),
                side=_side(float(centre[0]), middle),
                mean_probability=float(values[rows].mean()),
                highest_probability=float(values[rows].max()),
            )
        )
    return tuple(candidates)


def candidates_tsv(candidates: Sequence[Candidate]) -> str:
    """Candidates as a table of tab-separated values, with a header line.

    The columns are ``candidate`` (the number), ``voxels``, ``volume_ml``, ``x_mm``, ``y_mm``,
    ``z_mm`` (the centre in world coordinates), ``side``, ``mean_probability`` and
    ``highest_probability``.

    Examples
    --------
    >>> candidate = Candidate(3, 0.06, (22.0, 0.0, 0.0), (22.0, 0.0, 0.0), "left", 0.7, 0.9)
    >>> print(candidates_tsv([candidate]).expandtabs(11))
    candidate  voxels     volume_ml  x_mm  ...
    1          3          0.0600     22.0  ...
    """
    text = io.StringIO()
    table = csv.writer(text, dialect="excel-tab", lineterminator="\n")
    table.writerow(_COLUMNS)
    for number, candidate in enumerate(candidates, start=1):
        table.writerow(
            [
                number,
                candidate.voxels,
                f"{candidate.volume_ml:.4f}",
                *(f"{coordinate:.1f}" for coordinate in candidate.centre_mm),
                candidate.side,
                f"{candidate.mean_probability:.4f}",
                f"{candidate.highest_probability:.4f}",
            ]
        )
    return text.getvalue()


def _checked(
    dwi: DWI, probability: ArrayLike, threshold: float, min_volume: float
) -> NDArray[np.float64]:
    values = np.asarray(probability, dtype=np.float64)
    scan = f"{dwi.path}: " if dwi.path else ""
    if values.shape != dwi.b0.shape:
        raise ValueError(
            f"{scan}need one probability for each of the {len(dwi.b0)} voxels, not an array of "
            f"shape {values.shape}."
        )
    wrong = ~((values >= 0) & (values <= 1))
    if wrong.any():
        raise ValueError(
            f"{scan}{np.count_nonzero(wrong)} values are not probabilities from 0 to 1, such as "
            f"{values[wrong][0]:g}. If they are logits, apply a sigmoid."
        )
    check_limits(threshold, min_volume)
    return values


def _point(values: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = values.tolist()
    return x, y, z


def _middle(dwi: DWI) -> float | None:
    """World x of the middle of the head in mm; None if it is unknown."""
    header = dwi.header
    if header is not None and header["sform_code"] == header["qform_code"] == 0:
        return None  # the header gives no orientation
    x = dwi.voxel_centres()[:, 0]
    return float(x.mean()) if np.ptp(x) >= HEAD_WIDTH else None


def _side(x: float, middle: float | None) -> Side:
    if middle is None:
        return "unknown"
    if abs(x - middle) < MIDLINE:
        return "midline"
    return "right" if x > middle else "left"
