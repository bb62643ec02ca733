"""Charts of pages: the signal of a scan."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from tripq.scans import DWI

#: One for each shell, in turn (Okabe and Ito).
SHELL_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

_BINS = 100
_HIGHEST_SIGNAL = 1.25  # over b0
_ROOM = 0.05  # around the medians, so that the usual differences look small


def signal_figure(dwi: DWI) -> Figure:
    """How the signal over b0 is distributed on each shell, and its median in every volume.

    In the brain the first distribution is smooth, falls towards 1 and moves left on higher shells.
    In the second, a volume that differs from its shell is corrupted by motion or signal dropout.
    """
    figure = Figure(figsize=(9.0, 3.2), layout="constrained")
    distribution, volumes = figure.subplots(1, 2)
    edges = np.linspace(0, _HIGHEST_SIGNAL, _BINS + 1)
    for index, shell in enumerate(dwi.shells):
        colour = SHELL_COLOURS[index % len(SHELL_COLOURS)]
        # one column at a time: a second copy of a large scan would not fit
        columns = [dwi.signal[:, volume] for volume in shell.indices]
        counts = np.sum([np.histogram(column, edges)[0] for column in columns], axis=0)
        share = 100 * counts / (len(columns) * len(dwi.b0))
        label = f"b = {shell.b_value:.0f} s/mm²"
        distribution.stairs(share, edges, color=colour, label=label)
        volumes.plot(shell.indices, [np.median(c) for c in columns], ".", color=colour)
    distribution.axvline(1, color="0.6", linestyle=":")
    distribution.set(xlabel="signal over b0", ylabel="% of values", xlim=(0, _HIGHEST_SIGNAL))
    distribution.set_ylim(bottom=0)
    legend = distribution.legend(ncols=1 + len(dwi.shells) // 8)
    legend.get_frame().set(edgecolor="none", alpha=1)  # no curve crosses the words
    volumes.set(xlabel="diffusion-weighted volume, in the order of the file")
    volumes.set(ylabel="median signal over b0")
    lowest, highest = volumes.get_ylim()
    volumes.set_ylim(lowest - _ROOM, highest + _ROOM)
    for axes in (distribution, volumes):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
