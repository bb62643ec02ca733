"""The plot of time and memory against the sizes of a problem."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from rows import Run
from tables import axes

COLORS = {"recoupled": "#0072b2", "fourier": "#cc79a7", "dense": "#d55e00", "triton": "#009e73"}


def plot(run: Run, file: Path) -> None:
    """One column for each size that is varied: seconds above, memory below."""
    varied = axes(run)
    with mpl.rc_context({"font.size": 9, "svg.hashsalt": "tripq"}):
        figure = Figure(figsize=(2.6 * len(varied), 4.6), layout="constrained")
        panels = figure.subplots(2, len(varied), sharex="col", sharey="row", squeeze=False)
        for column, axis in enumerate(varied):
            for method, color in COLORS.items():
                points = sorted(
                    (row.sizes[axis], row.forward_backward, row.peak_memory / 1e6)
                    for row in run.rows
                    if row.axis == axis and row.method == method and row.forward_backward
                )
                for panel, i in ((panels[0, column], 1), (panels[1, column], 2)):
                    if points:
                        x, y = [p[0] for p in points], [p[i] for p in points]
                        panel.plot(x, y, "o-", color=color, label=method, markersize=3)
                    if axis != "lmax":
                        panel.set_xscale("log")
                    panel.set_yscale("log")
                    panel.grid(alpha=0.3)
            panels[1, column].set_xlabel(axis)
        panels[0, 0].set_ylabel("forward + backward, s")
        panels[1, 0].set_ylabel("peak memory, MB")
        panels[0, 0].legend(frameon=False)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=150, metadata={"Software": None})
