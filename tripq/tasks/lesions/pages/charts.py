"""Charts of the report pages: the subjects of a group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure


def load_figure(candidates: Sequence[int], total_ml: Sequence[float]) -> Figure:
    """Number of candidates and total volume of the subjects of a group: histograms with values.

    Parameters
    ----------
    candidates, total_ml : sequences, one entry for each subject
        Volumes in ml.
    """
    figure = Figure(figsize=(9.0, 2.8), layout="constrained")
    for axes, values, name in zip(
        figure.subplots(1, 2),
        (candidates, total_ml),
        ("lesion candidates of a subject", "total volume of a subject, ml"),
        strict=True,
    ):
        axes.hist(values, bins="sturges", color="#56B4E9", edgecolor="white")
        bottom = np.zeros(len(values))
        axes.plot(values, bottom, "|", color="black", markersize=12, alpha=0.5, clip_on=False)
        axes.axvline(float(np.median(values)), color="#D55E00", label="median")
        axes.set(xlabel=name, ylabel="subjects")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return figure
