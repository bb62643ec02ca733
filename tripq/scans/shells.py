"""Shells: the samples of q-space that share a b-value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

SHELL_TOLERANCE = 80.0
"""Neighbouring b-values of one shell differ by no more than this, in s/mm2.

The default of MRtrix3 (``BValueEpsilon``). Scanners that count the imaging gradients spread one
nominal shell over some tens of s/mm2 (995, 1000 and 1005 in the Human Connectome Project), while
different shells are hundreds apart.
"""

LIKE_B = 0.1
"""Largest relative difference between a b-value and its nearest shell."""


SAME_DIRECTION = 2.0
"""Directions closer than this, in degrees, count as one; so do a direction and its opposite.

Motion correction rotates repetitions of a direction slightly; different directions are further
apart: 8 degrees if there are 400.
"""

TENSOR_DIRECTIONS = 6
"""Directions that a symmetric tensor needs."""


@dataclass(frozen=True, eq=False)
class Shell:
    """One shell of q-space.

    Parameters
    ----------
    b_value : float
        Median of the b-values on the shell, in s/mm2.
    indices : (n,) int array
        Its samples, ascending.
    """

    b_value: float
    indices: NDArray[np.intp]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.indices)

    def __repr__(self) -> str:
        return f"Shell(b={self.b_value:g}, {len(self)} samples)"


def find_shells(b_values: ArrayLike, tolerance: float = SHELL_TOLERANCE) -> tuple[Shell, ...]:
    """Group b-values into shells.

    Sorted b-values are separated wherever two neighbours differ by more than `tolerance`. Samples
    with b = 0 have no direction and belong to no shell.

    Parameters
    ----------
    b_values : (Q,) array-like
        In s/mm2.
    tolerance : float, optional
        In s/mm2.

    Returns
    -------
    tuple of Shell
        By ascending b-value.

    Examples
    --------
    >>> find_shells([0, 1000, 2000, 999, 1000])
    (Shell(b=1000, 3 samples), Shell(b=2000, 1 samples))
    >>> find_shells([0, 1000, 2000, 999, 1000])[0].indices
    array([1, 3, 4])
    """
    values = np.asarray(b_values, dtype=np.float64)
    weighted = np.flatnonzero(values > 0)
    if len(weighted) == 0:
        return ()
    ascending = weighted[np.argsort(values[weighted])]
    cuts = np.flatnonzero(np.diff(values[ascending]) > tolerance) + 1
    return tuple(
        Shell(float(np.median(values[members])), np.sort(members))
        for members in np.split(ascending, cuts)
    )


def count_directions(q: ArrayLike, tolerance: float = SAME_DIRECTION) -> int:
    """Number of different directions.

    Parameters
    ----------
    q : (N, 3) array-like
        Vectors of any length; those of length 0 have no direction.
    tolerance : float, optional
        In degrees: directions closer than this, or to the opposite of each other, are one.

    Examples
    --------
    >>> count_directions([[0, 0, 0], [1, 0, 0], [-2, 0, 0], [0, 1, 0], [0.01, 1, 0]])
    2
    """
    vectors = np.asarray(q, dtype=np.float64)
    lengths = np.linalg.norm(vectors, axis=1)
    left = vectors[lengths > 0] / lengths[lengths > 0, None]
    count = 0
    while len(left):
        left = left[np.abs(left @ left[0]) < np.cos(np.radians(tolerance))]
        count += 1
    return count
