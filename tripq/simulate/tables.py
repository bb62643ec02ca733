"""Gradient tables: b-values and directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tripq.scans import B_REFERENCE
from tripq.scans.gradients import find_b0, unit_directions
from tripq.simulate.errors import SimulationError
from tripq.simulate.pose import random_rotation

_STEPS = 200
"""Steps of the descent in `spread_directions`; ten times as many lower the energy by 0.01 %."""


@dataclass(frozen=True, eq=False)
class GradientTable:
    """b-values and gradient directions of the volumes of a scan.

    Parameters
    ----------
    b_values : (N,) float64 array
        In s/mm2. Volumes up to `tripq.scans.B0_THRESHOLD` are b0 volumes.
    directions : (N, 3) float64 array
        Unit vectors in world axes (RAS+); those of b0 volumes are not used.

    Raises
    ------
    tripq.scans.DWIError
        If there is no b0 volume, no other volume, or a direction is not of length 1.
    SimulationError
        If there is not one direction for every b-value.

    Examples
    --------
    >>> table = GradientTable.from_shells([1000.0, 2000.0], [32, 64])
    >>> table
    GradientTable(97 volumes: 1 b0, b=1000 (32), b=2000 (64))
    """

    b_values: NDArray[np.float64]
    directions: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.b_values.ndim != 1 or self.directions.shape != (len(self.b_values), 3):
            raise SimulationError(
                f"a gradient table needs b-values (N,) and directions (N, 3), not "
                f"{self.b_values.shape} and {self.directions.shape}."
            )
        unit_directions(self.directions, self.b_values, find_b0(self.b_values))

    @classmethod
    def from_shells(
        cls, b_values: Sequence[float], counts: Sequence[int], n_b0: int = 1
    ) -> GradientTable:
        """Evenly spread directions on each shell, after the b0 volumes.

        Parameters
        ----------
        b_values : sequence of float
            Of the shells, in s/mm2.
        counts : sequence of int
            Directions on each shell.
        n_b0 : int, optional
            Number of b0 volumes.

        Returns
        -------
        GradientTable
            Every shell has a different rotation, so shells with equal counts do not repeat
            directions. The same arguments give the same table.
        """
        if len(b_values) != len(counts) or n_b0 < 1 or min(counts, default=0) < 1:
            raise SimulationError(
                f"a gradient table needs b0 volumes and one count of directions from 1 on for each "
                f"shell, not n_b0={n_b0}, b_values={list(b_values)}, counts={list(counts)}."
            )
        turns = [random_rotation(np.random.default_rng(shell)) for shell in range(len(counts))]
        shells = [spread_directions(n) @ turn.T for n, turn in zip(counts, turns, strict=True)]
        return cls(
            np.concatenate([np.zeros(n_b0), np.repeat(np.asarray(b_values, float), counts)]),
            np.concatenate([np.zeros((n_b0, 3)), *shells]),
        )

    @classmethod
    def from_q(cls, q: NDArray[np.floating]) -> GradientTable:
        """Table of q-vectors (N, 3) as in a `DWI`: world axes, |q| = sqrt(b / b_ref)."""
        length = np.linalg.norm(q, axis=1)
        directions = q / np.where(length > 0, length, 1.0)[:, None]
        return cls(B_REFERENCE * length**2, directions.astype(np.float64))

    @property
    def b0(self) -> NDArray[np.bool_]:
        """The b0 volumes, (N,)."""
        return find_b0(self.b_values)

    def rotated(self, rotation: NDArray[np.floating]) -> GradientTable:
        """Return the same table with all directions rotated by a matrix (3, 3)."""
        return replace(self, directions=self.directions @ np.asarray(rotation, np.float64).T)

    def with_random_signs(self, rng: np.random.Generator) -> GradientTable:
        """Return the same table with random directions reversed, an equivalent measurement."""
        signs = rng.choice([-1.0, 1.0], size=(len(self), 1))
        return replace(self, directions=self.directions * signs)

    def __len__(self) -> int:
        """Return the number of volumes."""
        return len(self.b_values)

    def __repr__(self) -> str:
        values, counts = np.unique(self.b_values[~self.b0], return_counts=True)
        shells = [f"b={value:g} ({count})" for value, count in zip(values, counts, strict=True)]
        more = [f"{len(shells) - 6} more b-values"] if len(shells) > 6 else []
        parts = ", ".join([f"{np.count_nonzero(self.b0)} b0", *shells[:6], *more])
        return f"GradientTable({len(self)} volumes: {parts})"


def spread_directions(n: int) -> NDArray[np.float64]:
    """Directions spread evenly over the sphere, where a direction and its opposite are the same.

    Charges at both ends of every axis repel each other by Coulomb's law (Jones, Horsfield and
    Simmons, Magn Reson Med 42:515-525, 1999). Steepest descent starts from a spiral on the half
    sphere, so the same n gives the same directions.

    Parameters
    ----------
    n : int
        Number of directions.

    Returns
    -------
    (n, 3) float64 array
        Unit vectors.

    Examples
    --------
    The best three directions are at right angles:

    >>> np.abs(spread_directions(3) @ spread_directions(3).T).round(2)
    array([[1., 0., 0.],
           [0., 1., 0.],
           [0., 0., 1.]])
    """
    index = np.arange(n) + 0.5
    height = 1 - index / n
    turn = np.pi * (3 - np.sqrt(5)) * index  # the golden angle
    radius = np.sqrt(1 - height**2)
    points = np.stack([radius * np.cos(turn), radius * np.sin(turn), height], axis=1)
    step = 0.6 / n**1.5  # force grows as n, and a charge has a room of the order of n**-0.5
    for _ in range(_STEPS):
        points = points + step * _repulsion(points)
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points


def _repulsion(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coulomb force on each of n charges from the 2 (n - 1) others at +-points, (n, 3)."""
    cosines = points @ points.T
    np.fill_diagonal(cosines, 0.0)
    near = (2 - 2 * cosines) ** -1.5
    far = (2 + 2 * cosines) ** -1.5
    np.fill_diagonal(near, 0.0)
    np.fill_diagonal(far, 0.0)
    # force = sum_j near (p_i - p_j) + far (p_i + p_j); the part along p_i drops out by normalising
    return (far - near) @ points
