"""Lesions of a probability map: connected components, their positions and sizes.

A lesion is a set of voxels at or above a threshold that are connected by faces, edges or corners
(26 neighbours). Lesion 1 is the largest.
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

from tripq.scans import DWI

Side = Literal["left", "right", "midline", "unknown"]
"""Side of the head."""

MIDLINE = 5.0
"""Lesions with centres closer than this to the middle of the head, in mm, have no side.

The middle is the mean position of the brain mask, and heads are seldom aligned with the axes:
closer to it the side is uncertain.
"""

HEAD_WIDTH = 100.0
"""A mask narrower than this, in mm, is treated as a part of the head with unknown middle.

Brains of adults are 130 to 145 mm wide, of two-year-olds about 120 mm.
"""

_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)
_COLUMNS = (
    *("lesion", "voxels", "volume_ml", "x_mm", "y_mm", "z_mm", "side"),
    *("mean_probability", "highest_probability"),
)


@dataclass(frozen=True)
class Lesion:
    """A connected lesion.

    Attributes
    ----------
    voxels : int
        Number of voxels.
    volume_ml : float
        Volume in ml.
    centre_mm : tuple of 3 floats
        Mean position of its voxels in world coordinates (RAS+), in mm.  It can be outside the
        lesion.
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


def voxel_ml(dwi: DWI) -> float:
    """Volume of a voxel in ml, which is 1000 mm3."""
    return abs(float(np.linalg.det(dwi.affine[:3, :3]))) / 1000


def label_lesions(dwi: DWI, probability: ArrayLike, threshold: float) -> NDArray[np.int32]:
    """Number of the lesion that each voxel belongs to.

    Parameters
    ----------
    dwi : DWI
        The scan.
    probability : (V,) array-like
        Probability of a lesion, from 0 to 1, in the order of ``np.argwhere(dwi.mask)``.
    threshold : float
        Minimum probability of a lesion voxel, from 0 to 1.

    Returns
    -------
    (V,) int32 array
        0 for no lesion; 1 for the largest. Lesions of equal size are ordered by highest
        probability, then by position in the scan.

    Raises
    ------
    ValueError
        If there is not one probability from 0 to 1 for every voxel, or the threshold is invalid.
    """
    values = _checked(dwi, probability, threshold)
    volume, number = ndimage.label(dwi.volume(values >= threshold), structure=_NEIGHBOURS)
    labels = volume[dwi.mask]
    numbers = np.arange(1, number + 1)
    size = np.bincount(labels, minlength=number + 1)[1:]
    highest = ndimage.maximum(values, labels, numbers)
    rank = np.zeros(number + 1, dtype=np.int32)
    rank[1 + np.lexsort((numbers, -np.asarray(highest), -size))] = numbers
    return rank[labels]


def find_lesions(dwi: DWI, probability: ArrayLike, threshold: float) -> tuple[Lesion, ...]:
    """Lesions of a probability map, the largest first.

    Parameters
    ----------
    dwi, probability, threshold
        As in `label_lesions`.

    Returns
    -------
    tuple of Lesion
        In the order of the numbers of `label_lesions`; empty if no voxel reaches the threshold.

    Raises
    ------
    ValueError
        As in `label_lesions`.

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
    >>> (lesion,) = find_lesions(dwi, probability, threshold=0.5)
    >>> lesion.voxels, round(lesion.volume_ml, 3), lesion.side
    (3, 0.06, 'left')
    >>> lesion.centre_mm, lesion.highest_probability
    ((22.0, 0.0, 0.0), 0.9)
    """
    labels = label_lesions(dwi, probability, threshold)
    values = np.asarray(probability, dtype=np.float64)
    places = dwi.voxel_centres()
    middle = _middle(dwi)
    # sorted by the number of the lesion, so that each lesion is a slice
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels))
    lesions = []
    for start, end in pairwise(ends):
        rows = order[start:end]
        centre = places[rows].mean(axis=0)
        lesions.append(
            Lesion(
                voxels=len(rows),
                volume_ml=len(rows) * voxel_ml(dwi),
                centre_mm=_point(centre),
                peak_mm=_point(places[rows[np.argmax(values[rows])]]),
                side=_side(float(centre[0]), middle),
                mean_probability=float(values[rows].mean()),
                highest_probability=float(values[rows].max()),
            )
        )
    return tuple(lesions)


def lesions_tsv(lesions: Sequence[Lesion]) -> str:
    """Lesions as a table of tab-separated values, with a header line.

    The columns are ``lesion`` (the number), ``voxels``, ``volume_ml``, ``x_mm``, ``y_mm``, ``z_mm``
    (the centre in world coordinates), ``side``, ``mean_probability`` and ``highest_probability``.

    Examples
    --------
    >>> lesion = Lesion(3, 0.06, (22.0, 0.0, 0.0), (22.0, 0.0, 0.0), "left", 0.7, 0.9)
    >>> print(lesions_tsv([lesion]).expandtabs(11))
    lesion     voxels     volume_ml  x_mm  ...
    1          3          0.0600     22.0  ...
    """
    text = io.StringIO()
    table = csv.writer(text, dialect="excel-tab", lineterminator="\n")
    table.writerow(_COLUMNS)
    for number, lesion in enumerate(lesions, start=1):
        table.writerow(
            [
                number,
                lesion.voxels,
                f"{lesion.volume_ml:.4f}",
                *(f"{coordinate:.1f}" for coordinate in lesion.centre_mm),
                lesion.side,
                f"{lesion.mean_probability:.4f}",
                f"{lesion.highest_probability:.4f}",
            ]
        )
    return text.getvalue()


def _checked(dwi: DWI, probability: ArrayLike, threshold: float) -> NDArray[np.float64]:
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
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold} must be from 0 to 1.")
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
