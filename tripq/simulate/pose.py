"""Transformation of the anatomy to a head: shape, rotation and reflection.

A pose maps every point x of the scanner to a point y of the anatomy:

    z = c + A^T (x - c),    y = z + u(z),

with a rotation or reflection A about the centre c of the brain and a smooth displacement u. Maps
are read at y. A fibre with direction v at y runs along A (I + grad u)^-1 v at x: the tangent of a
curve moves with the curve (the direction of the fibre is preserved, as in Alexander et al., IEEE
Trans Med Imaging 20:1131-1139, 2001).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tripq.simulate.errors import SimulationError
from tripq.simulate.fields import random_field
from tripq.simulate.grid import Grid, interpolate

DEFORMATION_SCALE = 25.0
"""Length in mm over which the shape of a head varies: that of lobes, not gyri."""

FLIP = np.diag([-1.0, 1.0, 1.0])
"""Exchanges left and right, in world axes."""


@dataclass(frozen=True, eq=False)
class Pose:
    """Shape and position of a subject's head relative to the anatomy.

    Parameters
    ----------
    grid : Grid
        Of the anatomy.
    centre : (3,) array
        Centre of rotation in the anatomy, in mm.
    matrix : (3, 3) array
        Orthogonal matrix A, from the axes of the anatomy to those of the scanner.
    displacement : (X, Y, Z, 3) float32 array
        Displacement u in mm, along world axes, on the grid of the anatomy.

    Raises
    ------
    SimulationError
        If `matrix` is not orthogonal.
    """

    grid: Grid
    centre: NDArray[np.float64]
    matrix: NDArray[np.float64]
    displacement: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.matrix.shape != (3, 3) or not np.allclose(
            self.matrix @ self.matrix.T, np.eye(3), atol=1e-6
        ):
            raise SimulationError(
                f"the matrix of a pose must be (3, 3) and orthogonal, not {self.matrix.tolist()}."
            )

    def to_anatomy(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Points of the anatomy, (N, 3), at points of the scanner, (N, 3), in mm."""
        turned = self._turn_back(points)
        return turned + self._at(self.displacement, turned)

    def to_scanner(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Points of the scanner, (N, 3), at points of the anatomy, (N, 3), as if u were 0."""
        return (points - self.centre) @ self.matrix.T + self.centre

    def margin(self) -> float:
        """Upper bound in mm of the displacement of a point."""
        return float(np.linalg.norm(self.displacement, axis=-1).max(initial=0.0))

    def reorient(
        self, directions: NDArray[np.floating], points: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        """Fibre directions of the anatomy in the scanner.

        Parameters
        ----------
        directions : (N, K, 3) array
            Unit vectors at ``to_anatomy(points)``, or zeros where there is no fibre.
        points : (N, 3) array
            Points of the scanner, in mm.

        Returns
        -------
        (N, K, 3) float32 array
            Unit vectors or zeros, in world axes.
        """
        # du / d(voxel index): (X, Y, Z, component, axis)
        by_voxel = np.stack([np.gradient(self.displacement, axis=axis) for axis in range(3)], -1)
        turned = self._turn_back(points)
        gradient = self._at(by_voxel, turned) @ np.linalg.inv(self.grid.affine[:3, :3])
        back = self.matrix @ np.linalg.inv(np.eye(3) + gradient)  # (N, 3, 3)
        moved = directions @ np.swapaxes(back, 1, 2)
        length = np.linalg.norm(moved, axis=-1, keepdims=True)
        return (moved / np.where(length > 0, length, 1.0)).astype(np.float32)

    def _turn_back(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        return (points - self.centre) @ self.matrix + self.centre

    def _at(self, field: NDArray[np.float32], points: NDArray[np.float64]) -> NDArray[np.float32]:
        """Read a field (X, Y, Z, ...) at points of the anatomy, (N, ...)."""
        voxels = np.clip(self.grid.to_voxels(points), 0, np.array(self.grid.shape) - 1)
        flat = field.reshape(*self.grid.shape, -1)
        values = [interpolate(flat[..., part], voxels) for part in range(flat.shape[-1])]
        return np.stack(values, axis=-1).reshape(-1, *field.shape[3:])


def random_pose(
    grid: Grid,
    centre: NDArray[np.floating],
    rng: np.random.Generator,
    *,
    rotation: NDArray[np.floating] | None = None,
    flip: bool = False,
    deformation: float = 3.0,
) -> Pose:
    """Draw the shape of a head.

    Parameters
    ----------
    grid : Grid
        Of the anatomy.
    centre : (3,) array
        Of the brain, in mm.
    rng : numpy.random.Generator
        Source of the deformation.
    rotation : (3, 3) array, optional
        Rotation of the head about its centre, in world axes.
    flip : bool, optional
        Exchange left and right.
    deformation : float, optional
        Root mean square of the displacement along each axis in mm.

    Returns
    -------
    Pose

    Raises
    ------
    SimulationError
        If the rotation is not orthogonal, or the deformation is negative or so strong that it
        could fold the brain.
    """
    if not 0 <= deformation <= DEFORMATION_SCALE / 5:
        raise SimulationError(
            f"deformation={deformation} mm must be between 0 and {DEFORMATION_SCALE / 5:g} mm: "
            "beyond that it would fold the brain."
        )
    fields = [random_field(grid, DEFORMATION_SCALE, rng) for _ in range(3)]
    turn = np.eye(3) if rotation is None else np.asarray(rotation, dtype=np.float64)
    return Pose(
        grid,
        np.asarray(centre, dtype=np.float64),
        turn @ FLIP if flip else turn,
        deformation * np.stack(fields, axis=-1),
    )


def random_rotation(
    rng: np.random.Generator, max_angle: float | None = None
) -> NDArray[np.float64]:
    """Draw a rotation.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the rotation.
    max_angle : float, optional
        In degrees: the axis is then uniform on the sphere and the angle uniform from 0 to this.
        Without it the rotation is uniform (by Haar's measure).

    Returns
    -------
    (3, 3) float64 array

    Examples
    --------
    >>> rotation = random_rotation(np.random.default_rng(0), max_angle=10.0)
    >>> bool(np.trace(rotation) >= 1 + 2 * np.cos(np.radians(10.0)))
    True
    """
    if max_angle is None:
        return Rotation.from_quat(rng.standard_normal(4)).as_matrix()
    axis = rng.standard_normal(3)
    angle = np.radians(rng.uniform(0, max_angle))
    return Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)).as_matrix()
