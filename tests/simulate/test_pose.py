from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tripq.simulate import (
    Anatomy,
    Grid,
    SimulationError,
    random_field,
    random_pose,
    random_rotation,
)

GRID = Grid((30, 32, 28), np.diag([-2.0, 2.0, 2.5, 1.0]))
CENTRE = GRID.points().mean(axis=0)
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = random_rotation(np.random.default_rng(5)) @ np.diag([2.0, 2.0, 3.0])


def inner_points(rng: np.random.Generator, n: int = 40) -> np.ndarray:
    """Points well inside the grid, where the field is interpolated on all sides."""
    return CENTRE + rng.uniform(-12, 12, (n, 3))


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_fibres_stay_unit_vectors(seed: int, flip: bool) -> None:
    rng = np.random.default_rng(seed)
    pose = random_pose(GRID, CENTRE, rng, rotation=random_rotation(rng), flip=flip, deformation=4.0)
    directions = rng.standard_normal((40, 2, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    directions[:5, 1] = 0.0
    moved = pose.reorient(directions, inner_points(rng))
    expected = np.ones((40, 2))
    expected[:5, 1] = 0.0
    np.testing.assert_allclose(np.linalg.norm(moved, axis=-1), expected, atol=1e-6)


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_a_rigid_pose_turns_points_and_fibres_alike(seed: int, flip: bool) -> None:
    rng = np.random.default_rng(seed)
    rotation = random_rotation(rng)
    pose = random_pose(GRID, CENTRE, rng, rotation=rotation, flip=flip, deformation=0.0)
    matrix = rotation @ np.diag([-1.0, 1.0, 1.0]) if flip else rotation
    points = inner_points(rng)
    np.testing.assert_allclose(pose.to_anatomy(pose.to_scanner(points)), points, atol=1e-9)
    directions = np.eye(3)[None].repeat(len(points), 0)
    np.testing.assert_allclose(
        pose.reorient(directions, points), (directions @ matrix.T), atol=1e-6
    )


@given(st.integers(0, 2**32 - 1))
def test_fibres_follow_the_curves_of_a_deformed_head(seed: int) -> None:
    """Two points of the scanner along the moved fibre lie along the fibre in the anatomy."""
    rng = np.random.default_rng(seed)
    pose = random_pose(GRID, CENTRE, rng, rotation=random_rotation(rng), deformation=4.0)
    directions = rng.standard_normal((30, 1, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    points = inner_points(rng, 30)
    moved = pose.reorient(directions, points)[:, 0]
    along = pose.to_anatomy(points + 4 * moved) - pose.to_anatomy(points - 4 * moved)
    cosine = np.sum(along * directions[:, 0], axis=1) / np.linalg.norm(along, axis=1)
    straight = pose.matrix @ directions[:, 0, :, None]
    unmoved = np.abs(np.sum(straight[..., 0] * moved, axis=1))
    assert cosine.min() > np.cos(np.radians(4.0))
    assert unmoved.min() < np.cos(np.radians(4.0))  # so that rotation alone would fail


@given(st.integers(0, 2**32 - 1))
def test_deformation_never_folds(seed: int) -> None:
    pose = random_pose(GRID, CENTRE, np.random.default_rng(seed), deformation=5.0)
    columns = [
        np.gradient(pose.displacement, axis=axis) / GRID.affine[axis, axis] for axis in range(3)
    ]
    jacobian = np.eye(3) + np.stack(columns, axis=-1)
    assert np.linalg.det(jacobian).min() > 0


def test_too_strong_a_deformation_is_refused() -> None:
    with pytest.raises(SimulationError, match="fold the brain"):
        random_pose(GRID, CENTRE, np.random.default_rng(0), deformation=9.0)
    with pytest.raises(SimulationError, match="orthogonal"):
        random_pose(GRID, CENTRE, np.random.default_rng(0), rotation=2 * np.eye(3))


@pytest.mark.parametrize("affine", [GRID.affine, OBLIQUE])
def test_fields_have_unit_variance_and_the_correlation_they_state(affine: np.ndarray) -> None:
    grid, scale = Grid((24, 24, 24), affine), 6.0
    rng = np.random.default_rng(1)
    fields = np.stack([random_field(grid, scale, rng) for _ in range(150)])
    assert np.mean(fields**2) == pytest.approx(1, rel=0.03)
    assert abs(fields.mean()) < 0.03
    steps = 4
    for axis, size in enumerate(grid.voxel_size):
        here = np.take(fields, range(24 - steps), axis + 1)
        there = np.take(fields, range(steps, 24), axis + 1)
        expected = np.exp(-((steps * size) ** 2) / (4 * scale**2))
        assert np.mean(here * there) == pytest.approx(expected, abs=0.04)


@given(st.integers(0, 2**32 - 1), st.floats(1.0, 90.0))
def test_random_rotations_are_rotations_up_to_their_angle(seed: int, angle: float) -> None:
    rng = np.random.default_rng(seed)
    for rotation in (random_rotation(rng), random_rotation(rng, angle)):
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)
    assert np.trace(rotation) >= 1 + 2 * np.cos(np.radians(angle)) - 1e-9


def test_covering_grid_keeps_the_lattice() -> None:
    grid = Grid((5, 5, 5), OBLIQUE)
    points = np.array([[-20.0, 3.0, 5.0], [14.0, -7.0, 30.0]])
    wide = grid.covering(points, margin=6.0)
    voxels = wide.to_voxels(points)
    pad = 6.0 / grid.voxel_size
    assert (voxels >= pad - 1e-9).all()
    assert (voxels <= np.array(wide.shape) - 1 - pad + 1e-9).all()
    corner = grid.to_voxels(wide.affine[:3, 3][None])
    np.testing.assert_allclose(corner, np.rint(corner), atol=1e-9)


def test_a_quarter_turn_about_z_takes_x_to_y(block: Anatomy) -> None:
    quarter = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    pose = random_pose(
        block.grid, block.centre, np.random.default_rng(0), rotation=quarter, deformation=0.0
    )
    points = block.grid.points()
    left = points[points[:, 0] < -3]
    assert pose.to_scanner(left)[:, 1].max() < -3 + 1e-9  # what lay at low x lies at low y
