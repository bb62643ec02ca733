"""Slices have the right voxels in the right places."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from tests.report.conftest import make_scan
from tripq.report.slices import AxialSlices, choose_slices, voxel_edges
from tripq.scans import DWI


@pytest.mark.parametrize("axes", ["RAS", "LAS", "LPS", "PSR", "ASL"])
def test_slices_go_up_rows_to_the_back_and_columns_to_the_left(axes: str) -> None:
    dwi = make_scan(axes)
    slices = AxialSlices(dwi)
    x, y, z = (slices.volume(values) for values in dwi.voxel_centres().T)
    assert x.shape == (10, 8, 6)
    assert (np.diff(z, axis=0) == 3).all()
    assert (np.diff(y, axis=1) == -2).all()
    assert (np.diff(x, axis=2) == -2).all()


def test_slices_are_cut_to_the_mask() -> None:
    dwi = make_scan()
    wide = np.pad(dwi.mask, 20)
    padded = DWI(dwi.signal, dwi.b_values, dwi.q, wide, dwi.affine, dwi.b0)
    assert AxialSlices(padded).background.shape == (10 + 4, 8 + 4, 6 + 4)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(1, 5), st.integers(1, 4))
def test_chosen_slices_have_most_weight_and_keep_apart(
    weight: list[int], number: int, distance: int
) -> None:
    chosen = choose_slices(np.array(weight), number, distance)
    assert 1 <= len(chosen) <= number
    assert max(weight) == max(weight[i] for i in chosen)
    assert all(b - a >= distance for a, b in pairwise(chosen))


@given(arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 6))))
def test_edges_are_those_between_a_voxel_of_a_set_and_one_that_is_not(
    mask: NDArray[np.bool_],
) -> None:
    padded = np.pad(mask, 1)
    between = set()
    for row, column in np.argwhere(padded):
        for step in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            if not padded[row + step[0], column + step[1]]:
                between.add((column - 1 + step[1] / 2, row - 1 + step[0] / 2))
    edges = voxel_edges(mask)
    assert len(edges) == len(between)
    assert {(x, y) for x, y in edges.mean(axis=1)} == between
    lengths = np.abs(np.diff(edges, axis=1)).reshape(-1, 2)
    assert ((lengths == [1, 0]) | (lengths == [0, 1])).all(axis=1).all()
