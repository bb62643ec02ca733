"""Directions to predict: their axes, and the shells that they are on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tripq.scans import DWI
from tripq.scans.directions import read_directions

WANTED = np.array([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])


def scan() -> DWI:
    b_values = np.array([0.0, 1000.0, 2000.0])
    return DWI(
        signal=np.ones((1, 3), np.float32),
        b_values=b_values,
        q=np.sqrt(b_values / 1000)[:, None] * np.array([[0.0, 0.0, 1.0]]),
        mask=np.ones((1, 1, 1), bool),
        affine=np.diag([2.0, 2.0, 2.0, 1.0]),
        b0=np.ones(1, np.float32),
    )


def test_without_b_values_every_direction_is_on_every_shell(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "table.bvec", np.concatenate([np.zeros((1, 3)), WANTED]).T)
    found = read_directions(tmp_path / "table.bvec", scan(), "voxel")
    expected = np.concatenate([np.zeros((1, 3)), WANTED, np.sqrt(2) * WANTED])
    np.testing.assert_allclose(found, expected)


def test_b_values_beside_them_choose_the_shell(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "table.bvec", WANTED.T)
    np.savetxt(tmp_path / "table.bval", [[2010, 990]])
    found = read_directions(tmp_path / "table.bvec", scan(), "fsl")
    flipped = WANTED * [-1, 1, 1]  # the determinant of the affine is positive
    np.testing.assert_allclose(found[1:], np.sqrt([[2], [1]]) * flipped)


def test_a_table_of_mrtrix_is_in_world_axes(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "table.b", np.column_stack([WANTED, [1000, 1000]]))
    found = read_directions(tmp_path / "table.b", scan(), "fsl")
    np.testing.assert_allclose(found[1:], WANTED)
