"""Figures show the right voxels in the right places, and say what they show."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray

from tripq.dwi import DWI
from tripq.figures import AxialSlices, choose_slices, comparison_figure, map_figure


def make_scan(axes: str = "RAS") -> DWI:
    """A box of 6 x 8 x 10 voxels of 2 x 2 x 3 mm, stored along the given axes."""
    shape = (6, 8, 10)
    stored = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(tuple(axes)))
    affine = np.diag([2.0, 2.0, 3.0, 1.0]) @ inv_ornt_aff(stored, shape)
    mask = nib.orientations.apply_orientation(np.ones(shape, bool), stored)
    n = mask.size
    return DWI(
        signal=np.ones((n, 3), dtype=np.float32),
        b_values=np.array([0.0, 1000, 1000]),
        q=np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]),
        mask=mask,
        affine=affine,
        b0=np.linspace(50, 100, n, dtype=np.float32),
    )


def texts(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text))


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


def test_the_comparison_shows_truth_networks_and_scores(tmp_path: Path) -> None:
    dwi = make_scan("LPS")
    rng = np.random.default_rng(0)
    lesion = np.zeros(len(dwi.b0), bool)
    lesion[200:230] = True
    perfect = np.where(lesion, 0.9, 0.1)
    maps: dict[str, NDArray[np.float64]] = {"perfect": perfect, "chance": rng.random(len(lesion))}
    figure = comparison_figure(dwi, lesion, maps, lesion, maps, title="Simulated diffusion signal")
    words = texts(figure)
    for expected in ("Simulated", "Truth", "perfect: 1.000", "chance: 0.5", "recall", "precision"):
        assert expected in words
    figure.savefig(tmp_path / "figure.png", dpi=40)
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_a_map_of_one_slice_is_drawn(tmp_path: Path) -> None:
    dwi = make_scan()
    flat = dwi.mask & (np.arange(10) == 4)
    kept = flat[dwi.mask]
    scan = DWI(dwi.signal[kept], dwi.b_values, dwi.q, flat, dwi.affine, dwi.b0[kept])
    figure = map_figure(scan, np.full(kept.sum(), 0.5), title="a real scan")
    assert "a real scan" in texts(figure)
    figure.savefig(tmp_path / "map.png", dpi=40)
