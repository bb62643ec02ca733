"""Axial slices of a scan, as parts of figures.

Slices are shown as radiologists see them, from below: the right side of the head on the left.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap
from matplotlib.patheffects import withStroke
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import ArrayLike, NDArray

from tripq.scans import DWI

SLICE_INCHES = 2.5
"""Width of a slice in a figure."""

_MARGIN = 2  # voxels around the head
_SLICE_DISTANCE = 10.0  # mm, at least, between two slices


class AxialSlices:
    """The axial slices of a scan, cut to the voxels of its mask, with a background to draw on.

    Parameters
    ----------
    dwi : DWI
        The scan, in any orientation; an oblique one is shown along the axes nearest to the world's.

    Attributes
    ----------
    background : (S, rows, columns) array
        Mean diffusion-weighted intensity: white matter bright, fluid dark.  Slices go up from the
        feet, rows from front to back, columns from the right side of the head to the left.
    inside : (S, rows, columns) bool array
        The voxels of the mask.
    aspect : float
        Height of a pixel over its width.
    """

    def __init__(self, dwi: DWI) -> None:
        orientation = io_orientation(dwi.affine)
        self._dwi = dwi
        self._reordering = ornt_transform(orientation, axcodes2ornt(("L", "A", "S")))
        self._crop = tuple(
            slice(max(0, int(found.min()) - _MARGIN), int(found.max()) + 1 + _MARGIN)
            for found in np.nonzero(self._reordered(np.ones(len(dwi.b0), dtype=bool)))
        )
        width, height, thickness = dwi.voxel_size[np.argsort(orientation[:, 0])]
        self.aspect = float(height / width)
        self._thickness = float(thickness)
        self.background = self.volume(dwi.b0 * dwi.signal[:, 1:].mean(axis=1))
        self._z = self.volume(dwi.voxel_centres()[:, 2])
        self.inside = self.volume(np.ones(len(dwi.b0), dtype=bool))

    def _reordered(self, values: ArrayLike) -> NDArray[Any]:
        volume = apply_orientation(self._dwi.volume(values), self._reordering)
        return volume.transpose(2, 1, 0)[:, ::-1]

    def volume(self, values: ArrayLike) -> NDArray[Any]:
        """Values (V,) of the voxels on the slices, shape (S, rows, columns)."""
        return self._reordered(values)[self._crop]

    def choose(self, weight: NDArray[Any], number: int) -> list[int]:
        """The slices with most `weight` (S, rows, columns), some way apart; from the top down."""
        distance = max(1, round(_SLICE_DISTANCE / self._thickness))
        return choose_slices(weight.reshape(len(weight), -1).sum(axis=1), number, distance)[::-1]

    def height(self, index: int) -> float:
        """World z of the middle of a slice of the mask, in mm; slices may be oblique."""
        z, inside = self._z[index], self.inside[index]
        return float(z[inside].mean())

    def draw(self, axes: Axes, index: int, background: NDArray[Any] | None = None) -> None:
        """A slice of a background, by default the scan's own, without ticks.

        It goes from black at 0 to white at its 99th percentile.
        """
        shown = self.background if background is None else background
        white = float(np.percentile(shown[shown > 0], 99))
        axes.imshow(
            shown[index],
            cmap="gray",
            vmin=0,
            vmax=white,
            aspect=self.aspect,
            interpolation="none",  # a vector format holds the voxels as they are
        )
        axes.set(xticks=[], yticks=[], facecolor="black")
        axes.spines[:].set_visible(False)

    def overlay(self, axes: Axes, slice_: NDArray[Any], colours: Colormap) -> None:
        """Values from 0 to 1 on top of a background."""
        axes.imshow(slice_, cmap=colours, vmin=0, vmax=1, aspect=self.aspect, interpolation="none")

    def outline(self, axes: Axes, slice_: NDArray[np.bool_], colour: str) -> None:
        """Lines along the edges of the voxels of a set."""
        lines = LineCollection(list(voxel_edges(slice_)), colors=colour, linewidths=1.2)
        axes.add_collection(lines, autolim=False)


def choose_slices(weight: NDArray[Any], number: int, distance: int) -> list[int]:
    """The slices with the most weight, no two of them close together.

    Parameters
    ----------
    weight : (S,) array
        Of each slice.
    number : int
        How many slices at most.
    distance : int
        Least distance between two of them, in slices.

    Returns
    -------
    list of int
        In ascending order.

    Examples
    --------
    >>> choose_slices(np.array([0, 5, 6, 1, 0, 2]), number=2, distance=2)
    [2, 5]
    """
    remaining = np.asarray(weight, dtype=float)
    chosen: list[int] = []
    while len(chosen) < number and np.isfinite(remaining).any():
        best = int(np.argmax(remaining))
        chosen.append(best)
        near = np.abs(np.arange(len(remaining)) - best) < distance
        remaining = np.where(near, -np.inf, remaining)
    return sorted(chosen)


def voxel_edges(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The edges between the pixels of a set and the others.

    Parameters
    ----------
    mask : (rows, columns) bool array
        The set.

    Returns
    -------
    (E, 2, 2) array
        Both ends of each edge, as column and row; centres of pixels are whole numbers.

    Examples
    --------
    >>> voxel_edges(np.array([[True]])).tolist()  # below, above, right, left
    [[[-0.5, -0.5], [0.5, -0.5]], [[-0.5, 0.5], [0.5, 0.5]],
     [[-0.5, -0.5], [-0.5, 0.5]], [[0.5, -0.5], [0.5, 0.5]]]
    """
    padded = np.pad(mask, 1)
    # Between rows r - 1 and r of the mask, that is r and r + 1 of the padded one, at r - 0.5.
    level = np.argwhere(padded[1:] != padded[:-1])[:, ::-1] - np.array([1.0, 0.5])
    upright = np.argwhere(padded[:, 1:] != padded[:, :-1])[:, ::-1] - np.array([0.5, 1.0])
    half_column, half_row = np.array([0.5, 0.0]), np.array([0.0, 0.5])
    return np.concatenate(
        [
            np.stack([level - half_column, level + half_column], axis=1),
            np.stack([upright - half_row, upright + half_row], axis=1),
        ]
    )


def name_sides(axes: Axes) -> None:
    """Letters for the right and the left side of the head, on a slice."""
    write_words(axes, 0.03, 0.03, "R", "left")
    write_words(axes, 0.97, 0.03, "L", "right")


def write_words(axes: Axes, x: float, y: float, words: str, align: str, **style: Any) -> None:
    """Words on a slice, at a place in the units of its axes."""
    text = axes.text(x, y, words, transform=axes.transAxes, ha=align, **{"color": "white", **style})
    text.set_path_effects([withStroke(linewidth=2, foreground="black")])
