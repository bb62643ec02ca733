"""Charts show the numbers that they are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tripq.report.charts import signal_figure
from tripq.tasks.lesions.pages.charts import load_figure


def test_the_signal_is_counted_and_every_volume_has_its_median(case: Any) -> None:
    distribution, volumes = signal_figure(case.dwi).axes
    labels = [text.get_text() for text in distribution.get_legend().get_texts()]
    assert labels == ["b = 700 s/mm²", "b = 2000 s/mm²"]
    for patch, columns in zip(distribution.patches, (slice(1, 7), slice(7, 19)), strict=True):
        values, edges, _ = patch.get_data()
        signal = case.dwi.signal[:, columns]
        assert values.sum() == pytest.approx(100 * np.mean(signal <= edges[-1]))
        below = edges[1:] <= 0.5
        assert values[below].sum() == pytest.approx(100 * np.mean(signal < 0.5), abs=0.01)
    shown = {x: y for line in volumes.lines for x, y in line.get_xydata()}
    medians = np.median(case.dwi.signal, axis=0)
    assert shown == {index: pytest.approx(medians[index]) for index in range(1, 19)}


def test_the_loads_of_a_group_are_counted() -> None:
    lesions, total_ml = [3, 0, 12, 5, 5], [1.0, 0.0, 30.5, 4.0, 2.5]
    for axes, values in zip(load_figure(lesions, total_ml).axes, (lesions, total_ml), strict=True):
        assert sum(bar.get_height() for bar in axes.patches) == 5
        strokes, median = axes.lines
        assert sorted(strokes.get_xdata()) == sorted(values)
        assert set(median.get_xdata()) == {np.median(values)}
