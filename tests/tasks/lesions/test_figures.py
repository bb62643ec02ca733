"""Figures show the right voxels in the right places, and say what they show."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from tripq.scans import DWI
from tripq.tasks.lesions.figures import (
    FOUND_COLOUR,
    TRUTH_COLOUR,
    AxialSlices,
    choose_slices,
    comparison_figure,
    curves_figure,
    map_figure,
    probability_colours,
    slice_figure,
    voxel_edges,
)


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


def test_a_slice_shows_outlines_numbers_and_its_height() -> None:
    dwi = make_scan("LPS")
    x, y, z = dwi.voxel_centres().T
    labels = np.zeros(len(dwi.b0), dtype=np.int32)
    labels[(np.abs(z - 12) < 1) & (x < 3) & (y < 3)] = 7
    truth = np.roll(labels > 0, 1)
    slices = AxialSlices(dwi)
    b0, probability, numbers, known = (
        slices.volume(values) for values in (dwi.b0, 0.9 * (labels > 0), labels, truth)
    )
    index = int(np.flatnonzero(numbers.any(axis=(1, 2)))[0])
    assert slices.height(index) == pytest.approx(12)
    figure = slice_figure(
        slices, index, b0=b0, probability=probability, labels=numbers, lesion=known
    )
    words = [text.get_text() for text in figure.findobj(Text)]
    assert words.count("7") == 1
    assert {"z = 12 mm", "b0", "outlines", "probability"} < set(words)
    drawn = {
        to_hex(lines.get_color()[0]): len(lines.get_segments())
        for lines in figure.findobj(LineCollection)
    }
    assert drawn == {
        FOUND_COLOUR.lower(): len(voxel_edges(numbers[index] > 0)),
        TRUTH_COLOUR.lower(): len(voxel_edges(known[index])),
    }


def test_colours_of_probabilities_become_opaque() -> None:
    opacity = probability_colours(9)[:, 3]
    assert opacity[0] == 0
    assert (np.diff(opacity.astype(int)) >= 0).all()
    assert (opacity[4:] == 255).all()


def test_curves_show_all_subjects_and_the_threshold() -> None:
    rng = np.random.default_rng(0)
    lesions = [rng.random(200) < 0.2 for _ in range(3)] + [np.zeros(50, dtype=bool)]
    probabilities = [
        np.clip(0.5 * lesion + 0.5 * rng.random(len(lesion)), 0, 1) for lesion in lesions
    ]
    figure = curves_figure(lesions, probabilities, threshold=0.45)
    truth, pooled = np.concatenate(lesions), np.concatenate(probabilities)
    found = pooled >= 0.45
    roc, precision_recall = figure.axes
    for axes, expected in (
        (roc, (found[~truth].mean(), found[truth].mean())),
        (precision_recall, (found[truth].mean(), truth[found].mean())),
    ):
        thin = [line for line in axes.lines if line.get_linewidth() < 1]
        assert len(thin) == 3  # the subject without lesions has no curve
        (mark,) = (line for line in axes.lines if line.get_marker() == "o")
        np.testing.assert_allclose(mark.get_xydata()[0], expected)
    words = texts(figure)
    assert f"all voxels: {roc_auc_score(truth, pooled):.3f}" in words
    assert f"all voxels: {average_precision_score(truth, pooled):.3f}" in words


def test_a_map_of_one_slice_is_drawn(tmp_path: Path) -> None:
    dwi = make_scan()
    flat = dwi.mask & (np.arange(10) == 4)
    kept = flat[dwi.mask]
    scan = DWI(dwi.signal[kept], dwi.b_values, dwi.q, flat, dwi.affine, dwi.b0[kept])
    figure = map_figure(scan, np.full(kept.sum(), 0.5), title="a real scan")
    assert "a real scan" in texts(figure)
    figure.savefig(tmp_path / "map.png", dpi=40)
