"""Figures show the right voxels in the right places, and say what they show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from tests.report.conftest import make_scan
from tripq.report.slices import AxialSlices, voxel_edges
from tripq.scans import DWI
from tripq.tasks.lesions.figures import (
    FOUND_COLOUR,
    TRUTH_COLOUR,
    comparison_figure,
    curves_figure,
    map_figure,
    probability_colours,
    slice_figure,
)


def texts(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text))


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
