"""Peaks of one slice, known and found, side by side."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from tripq.scans import DWI

EDGE = 55.0
"""Of the square that is shown, in mm."""

PEAKS = 2
"""Of each voxel that are drawn."""


def draw_peaks(dwi: DWI, panels: Mapping[str, NDArray[np.floating]]) -> Figure:
    """A stick along every peak, on the mean diffusion-weighted signal of an axial slice.

    The square with most crossings is shown.
    Sticks have the colour of their direction: red from right to left, green from back to front,
    blue upwards.

    Parameters
    ----------
    dwi : DWI
        A scan whose axes are nearly those of the world.
    panels : mapping of str to (V, n, 3) array
        Peaks in world axes, the longest first; zeros where there is none.
    """
    columns = (len(panels) + 1) // 2
    figure = Figure(figsize=(4 * columns, 8.4), layout="constrained")
    weighted = dwi.volume(dwi.signal[:, 1:].mean(axis=1))
    part = _square_with_most(dwi, next(iter(panels.values())))
    for axes, (title, peaks) in zip(figure.subplots(2, columns).flat, panels.items(), strict=False):
        axes.imshow(weighted[part].T, cmap="gray", origin="lower", vmin=0.0, vmax=0.9)
        for peak in reversed(range(PEAKS)):
            _sticks(axes, dwi.volume(peaks[:, peak])[part])
        axes.set_title(title, fontsize=9)
    for axes in figure.axes:
        axes.set_axis_off()
    return figure


def _square_with_most(dwi: DWI, peaks: NDArray[np.floating]) -> tuple[slice, slice, int]:
    """Where an axial slice has most crossings."""
    crossing = dwi.volume(peaks[:, 1].any(axis=-1)).astype(float)
    size = [round(EDGE / edge) for edge in dwi.voxel_size[:2]]
    number = uniform_filter(crossing, (*size, 1), mode="constant")
    *middle, height = np.unravel_index(int(number.argmax()), number.shape)
    starts = [max(0, int(m) - n // 2) for m, n in zip(middle, size, strict=True)]
    x, y = (slice(start, start + n) for start, n in zip(starts, size, strict=True))
    return x, y, int(height)


def _sticks(axes: Axes, along: NDArray[np.floating]) -> None:
    """Sticks of equal length along directions (n, m, 3), seen from above."""
    i, j = np.nonzero(along.any(axis=-1))
    direction = along[i, j] / np.linalg.norm(along[i, j], axis=1, keepdims=True)
    middle, half = np.stack([i, j], axis=1), 0.45 * direction[:, :2]
    lines = np.stack([middle - half, middle + half], axis=1)
    axes.add_collection(LineCollection(list(lines), colors=np.abs(direction), linewidths=1.5))
