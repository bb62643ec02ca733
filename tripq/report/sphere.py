"""The gradient directions of a shell as a picture: points on a sphere, with their antipodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tripq.scans import DWI

#: Initial viewpoint, in degrees: in front of the face, to its left, slightly above.
AZIMUTH, ELEVATION = 35.0, 20.0

_LETTER_RADIUS = 1.15


@dataclass(frozen=True)
class SpherePoint:
    """A point on or near the unit sphere, and its position in the picture.

    Attributes
    ----------
    x, y, z : float
        In world axes, from the centre.
    right, up : float
        In the picture, from -1 to 1.
    front : bool
        Whether it is on the side of the viewer.
    antipode : bool
        Whether it is the opposite of a measured direction.
    """

    x: float
    y: float
    z: float
    right: float
    up: float
    front: bool
    antipode: bool


@dataclass(frozen=True)
class ShellView:
    """A shell: its numbers, and its directions as points.

    Attributes
    ----------
    b_value, lowest, highest : float
        Median and range of its b-values in s/mm2.
    directions : int
        How many there are.
    nearest, farthest : float or None
        Smallest and largest angle in degrees between a direction and its nearest neighbour, where a
        direction and its opposite are one; None for a single direction. On an evenly covered sphere
        the two are similar; 0 means a repeated direction.
    points : tuple of SpherePoint
        The opposites, then the directions.
    """

    b_value: float
    lowest: float
    highest: float
    directions: int
    nearest: float | None
    farthest: float | None
    points: tuple[SpherePoint, ...]


def view_shells(dwi: DWI) -> tuple[ShellView, ...]:
    """The shells of a scan, by ascending b-value."""
    views = []
    for shell in dwi.shells:
        b_values, q = dwi.b_values[shell.indices], dwi.q[shell.indices]
        unit = q / np.linalg.norm(q, axis=1, keepdims=True)
        angles = nearest_angles(unit)
        views.append(
            ShellView(
                b_value=shell.b_value,
                lowest=float(b_values.min()),
                highest=float(b_values.max()),
                directions=len(shell),
                nearest=float(angles.min()) if len(shell) > 1 else None,
                farthest=float(angles.max()) if len(shell) > 1 else None,
                points=(
                    *(_project(place, antipode=True) for place in -unit),
                    *(_project(place, antipode=False) for place in unit),
                ),
            )
        )
    return tuple(views)


def nearest_angles(unit: NDArray[np.float64]) -> NDArray[np.float64]:
    """Angle from every direction to the one nearest to it, in degrees; opposites are the same.

    Parameters
    ----------
    unit : (n, 3) array
        Unit vectors.

    Returns
    -------
    (n,) array
        90 where there is no other.

    Examples
    --------
    >>> nearest_angles(np.array([[1.0, 0, 0], [0, 1, 0], [-1, 0, 0]]))
    array([ 0., 90.,  0.])
    """
    cosines = np.abs(unit @ unit.T)
    np.fill_diagonal(cosines, 0)
    return np.degrees(np.arccos(np.clip(cosines.max(axis=1), 0, 1)))


def seen_from(azimuth: float, elevation: float) -> NDArray[np.float64]:
    """The axes of a picture in world axes: to its right, up, and out of it, one in each row.

    Parameters
    ----------
    azimuth, elevation : float
        Of the reader in degrees: from straight in front of the face to its left, and upwards.

    Returns
    -------
    (3, 3) array
        A rotation.

    Examples
    --------
    >>> seen_from(0.0, 0.0)  # the right of the picture is the left of the head
    array([[-1., -0., 0.],
           [ 0., -0., 1.],
           [-0., 1., 0.]])
    """
    (sa, se), (ca, ce) = (f(np.radians([azimuth, elevation])) for f in (np.sin, np.cos))
    return np.array([[-ca, -sa, 0], [se * sa, -se * ca, ce], [-ce * sa, ce * ca, se]])


def axis_letters() -> dict[str, SpherePoint]:
    """Positions of the letters for the sides of the head, slightly outside the sphere."""
    places = _LETTER_RADIUS * np.concatenate([np.eye(3), -np.eye(3)])
    return {
        letter: _project(place, antipode=False)
        for letter, place in zip("RASLPI", places, strict=True)
    }


def _project(place: NDArray[np.float64], antipode: bool) -> SpherePoint:
    """A point in the initial view; `assets/sphere.js` rotates it."""
    right, up, depth = (seen_from(AZIMUTH, ELEVATION) @ place).tolist()
    x, y, z = place.tolist()
    return SpherePoint(x, y, z, right, up, front=depth >= 0, antipode=antipode)
