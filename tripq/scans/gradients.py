"""Gradient tables as text: FSL's bval and bvec files, and MRtrix's four columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tripq.infra.files import read_text
from tripq.scans.errors import DWIError, about, name_volumes

MRTRIX_SUFFIX = ".b"
"""Suffix of the gradient tables of MRtrix."""

B0_THRESHOLD = 50.0
"""Volumes with a b-value up to this, in s/mm2, are b0 volumes.

The default of DIPY. Scanners write small values such as 0.5, 1.25 or 5 for b0 volumes; at 50 the
signal of brain tissue (diffusivity 0.7e-3 mm2/s) is 3.5 % below that at 0.
"""

UNIT_TOLERANCE = 0.01
"""Largest deviation of the length of a direction from 1: that of rounding to two decimals.

DIPY's gradient tables allow the same.
"""

MAX_B_VALUE = 1e6
"""b-values above this, in s/mm2, are in another unit; ex vivo scans reach 1e5."""


def has_only_b0(table: Path) -> bool:
    """Whether a file of b-values, or a table of MRtrix, has no diffusion-weighted volume.

    Scans for distortion correction have none.  For errors see `read_bval` and `read_mrtrix`.
    """
    b_values = read_mrtrix(table)[0] if table.suffix == MRTRIX_SUFFIX else read_bval(table)
    return bool(b_values.max() <= B0_THRESHOLD)


def read_bval(path: Path) -> NDArray[np.float64]:
    """b-values in s/mm2, (N,): numbers in one row or one column.

    Raises
    ------
    DWIError
        If the file is missing or holds anything else.
    """
    with about(path):
        rows = _read_rows(path)
        if 1 not in rows.shape:
            raise DWIError(
                f"{rows.shape[0]} rows of {rows.shape[1]} numbers; b-values are one row or "
                "one column. Is this the bvec file?"
            )
        return rows.ravel()


def read_bvec(path: Path) -> NDArray[np.float64]:
    """Gradient directions as written, (N, 3).

    FSL writes 3 rows of N numbers; N rows of 3 are read as well. A file of 3 rows of 3 numbers is
    read as FSL writes it.

    Raises
    ------
    DWIError
        If the file is missing or holds anything else.
    """
    with about(path):
        rows = _read_rows(path)
        if rows.shape[0] == 3:
            return rows.T
        if rows.shape[1] == 3:
            return rows
        raise DWIError(
            f"{rows.shape[0]} rows of {rows.shape[1]} numbers; directions are 3 rows of N "
            "numbers or N rows of 3."
        )


def read_mrtrix(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """b-values in s/mm2, (N,), and directions, (N, 3), of an MRtrix table: rows of x, y, z, b.

    Raises
    ------
    DWIError
        If the file is missing or holds anything else.
    """
    with about(path):
        rows = _read_rows(path)
        if rows.shape[1] != 4:
            raise DWIError(
                f"rows of {rows.shape[1]} numbers; a gradient table of MRtrix has rows of 4: "
                "x, y, z, b."
            )
        return rows[:, 3], rows[:, :3]


def find_b0(b_values: NDArray[np.float64], threshold: float = B0_THRESHOLD) -> NDArray[np.bool_]:
    """Mark the b0 volumes, (N,).

    Raises
    ------
    DWIError
        If a b-value is negative, not a number or in another unit, if there is no b0 volume, or if
        there is no other volume.

    Examples
    --------
    >>> find_b0(np.array([0.5, 700.0, 1.25]))
    array([ True, False,  True])
    """
    if not threshold >= 0:
        raise DWIError(f"b0_threshold={threshold} s/mm2 must not be negative.")
    wrong = np.flatnonzero(~np.isfinite(b_values) | (b_values < 0))
    if len(wrong):
        raise DWIError(
            f"{name_volumes(wrong.tolist())}: a b-value must be a number of 0 or more, not "
            f"{b_values[wrong[0]]:g}."
        )
    if b_values.max() > MAX_B_VALUE:
        raise DWIError(
            f"b-values are read in s/mm2, and the largest is {b_values.max():g}. In s/m2? Divide "
            "them by 1e6."
        )
    b0 = b_values <= threshold
    if b0.all():
        raise DWIError(
            f"no diffusion-weighted volume: the largest b-value is {b_values.max():g} s/mm2, and "
            f"volumes up to {threshold:g} are b0. In ms/um2? Multiply them by 1000."
        )
    if not b0.any():
        raise DWIError(
            f"no b0 volume: the smallest b-value is {b_values.min():g} s/mm2, and volumes up to "
            f"{threshold:g} are b0. To use the volumes of lowest b as b0, raise b0_threshold."
        )
    return b0


def unit_directions(
    directions: NDArray[np.float64], b_values: NDArray[np.float64], b0: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Directions with lengths exactly 1; those of b0 volumes are ignored and become 0.

    Parameters
    ----------
    directions : (N, 3) array
        In any frame.
    b_values : (N,) array
        In s/mm2.
    b0 : (N,) bool array
        The b0 volumes.

    Returns
    -------
    (N, 3) array

    Raises
    ------
    DWIError
        If the direction of a diffusion-weighted volume is not a number, zero, or of a length that
        differs from 1 by more than `UNIT_TOLERANCE`; the message names the volume.
    """
    with np.errstate(over="ignore"):  # infinite lengths are refused below
        lengths = np.where(b0, 1.0, np.linalg.norm(directions, axis=1))
    missing = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if len(missing):
        raise DWIError(
            f"{name_volumes(missing.tolist())}: b = {b_values[missing[0]]:g} s/mm2 but no "
            f"direction ({_spell(directions[missing[0]])}). Some scanners append a mean over "
            "directions: remove such volumes from image and table."
        )
    uneven = np.flatnonzero(np.abs(lengths - 1) > UNIT_TOLERANCE)
    if len(uneven):
        raise DWIError(
            f"{name_volumes(uneven.tolist())}: the direction ({_spell(directions[uneven[0]])}) has "
            f"length {lengths[uneven[0]]:.4g} instead of 1. Some vendors write the true b-value "
            "into the length (b = b_max |g|^2): if so, put these b-values into the table and make "
            "the directions unit vectors."
        )
    return np.where(b0[:, None], 0.0, directions) / lengths[:, None]


def _spell(vector: NDArray[np.float64]) -> str:
    return ", ".join(f"{component:.4g}" for component in vector)


def _read_rows(path: Path) -> NDArray[np.float64]:
    """Rows of numbers, separated by spaces, tabs or commas; ``#`` begins a comment."""
    try:
        text = read_text(path)
    except OSError as error:
        raise DWIError(f"cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise DWIError(
            f"{str(error).removeprefix(f'{path}: ')} A gradient table holds a few numbers for each "
            "volume, as text."
        ) from error
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].replace(",", " ").split()
        if words:
            rows.append([_number(word, number) for word in words])
    if not rows:
        raise DWIError("the file contains no numbers.")
    if len({len(row) for row in rows}) > 1:
        lengths = ", ".join(str(len(row)) for row in rows[:4]) + (", ..." if len(rows) > 4 else "")
        raise DWIError(f"its rows differ in length: {lengths}.")
    return np.array(rows)


def _number(word: str, line: int) -> float:
    try:
        return float(word)
    except ValueError:
        raise DWIError(f"line {line}: {word[:20]!r} is not a number.") from None
