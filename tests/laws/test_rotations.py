"""The map of a turned head is the turned map: of the whole program, through files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nibabel.orientations import apply_orientation
from scipy.spatial.transform import Rotation

from tests.laws.conftest import ROUNDING, Head, Map, assert_same, make_head, sampled, segment
from tests.strategies import CUBE

Written = Callable[[Head], Map]

FRAMES = ("fsl", "voxel", "world")

HANDFUL = (1, 7, 11, 18, 23)
"""Of the 24 rotations of the cube, in every frame."""


def on_the_grid(head: Head, matrix: np.ndarray, turn: Callable[[np.ndarray], np.ndarray]) -> Head:
    """The head turned in its scanner: another array on the same axes, and other directions.

    Parameters
    ----------
    matrix : (3, 3) array
        Rotation of the cube, along the axes of the image.
    turn : callable
        Moves a volume accordingly.
    """
    axes = head.scan.affine[:3, :3]
    in_the_world = axes @ matrix @ np.linalg.inv(axes)
    directions = head.scan.directions @ in_the_world.T
    return Head(
        replace(head.scan, data=turn(head.scan.data), directions=directions), turn(head.brain)
    )


@pytest.mark.parametrize("linear", ["plain", "oblique"])
@pytest.mark.parametrize("number", sampled(range(24), HANDFUL))
def test_a_head_turned_on_the_grid_has_the_turned_map(
    number: int, linear: str, written: Written, tmp_path: Path
) -> None:
    """By all rotations of the cube, which need no interpolation."""
    head, matrix = make_head(linear), CUBE["SO3"][number]
    # For each axis the one that it becomes, and which way it then runs.
    to = np.abs(matrix).argmax(axis=0)
    orientation = np.stack([to, matrix[to, range(3)]], axis=1)

    def turn(volume: np.ndarray) -> np.ndarray:
        return apply_orientation(volume, orientation)

    turned = on_the_grid(head, matrix, turn)
    found = segment(turned, tmp_path, frame=FRAMES[number % 3])
    assert_same(found.volume, turn(written(head).volume))


def test_turning_the_image_alone_gives_another_map(written: Written, tmp_path: Path) -> None:
    """So that the law is about something: the directions have to turn with the head."""
    head = make_head()
    half = np.diag([-1.0, -1.0, 1.0])  # which moves no axis, and no voxel from the grid
    turned = on_the_grid(head, half, lambda volume: volume[::-1, ::-1])
    still = replace(turned, scan=replace(turned.scan, directions=head.scan.directions))
    found = segment(still, tmp_path).volume
    assert np.abs(found - written(head).volume[::-1, ::-1]).max() > 1000 * ROUNDING


@pytest.mark.parametrize(
    ("degrees", "frame"),
    [  # every angle with a frame or, in `make test-all`, with each
        pytest.param(angle, frame, marks=() if n % 3 == i else pytest.mark.exhaustive)
        for n, angle in enumerate((1.0, 17.0, 45.0, 90.0, 163.0))
        for i, frame in enumerate(FRAMES)
    ],
)
def test_a_head_on_a_turned_grid_has_the_same_map(
    degrees: float, frame: str, written: Written, tmp_path: Path
) -> None:
    """By any angle: head, grid and table turn together, which needs no interpolation either."""
    head = make_head()
    axis = np.array([1.0, -2.0, 0.5])
    rotation = Rotation.from_rotvec(np.radians(degrees) * axis / np.linalg.norm(axis)).as_matrix()
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = rotation, (40.0, -7.0, 100.0)
    turned = replace(
        head.scan,
        affine=motion @ head.scan.affine,
        directions=head.scan.directions @ rotation.T,
    )
    found = segment(replace(head, scan=turned), tmp_path, frame=frame)
    assert_same(found.volume, written(head).volume)
