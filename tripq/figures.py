"""Pictures of lesion maps over axial slices, and of the curves that score them.

Slices are shown as radiologists see them, from below: the right side of the head on the left.
The colours can be told apart with any colour vision.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize, to_rgba
from matplotlib.figure import Figure, FigureBase, SubFigure
from matplotlib.patheffects import withStroke
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

from tripq.dwi import DWI

#: One for each network, and one for the truth (Okabe and Ito, https://jfly.uni-koeln.de/color/).
NETWORK_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
TRUTH_COLOUR = "#56B4E9"

#: Of probabilities; matplotlib's, with a brightness that rises all the way.
PROBABILITY_COLOURS = "inferno"

_MARGIN = 2  # voxels around the head
_CURVE_STEPS = 2000  # along an axis: finer than the picture
_SLICE_DISTANCE = 10.0  # mm, at least, between two slices
_SLICE_INCHES = 2.5


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
        self._aspect = float(height / width)
        self._thickness = float(thickness)
        self.background = self.volume(dwi.b0 * dwi.signal[:, 1:].mean(axis=1))
        self._white = float(np.percentile(self.background[self.background > 0], 99))

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

    def draw(self, axes: Axes, index: int) -> None:
        """The background of a slice, without ticks."""
        axes.imshow(
            self.background[index], cmap="gray", vmin=0, vmax=self._white, aspect=self._aspect
        )
        axes.set(xticks=[], yticks=[], facecolor="black")
        axes.spines[:].set_visible(False)

    def overlay(self, axes: Axes, slice_: NDArray[Any], colours: Colormap) -> None:
        """Values from 0 to 1 on top of a background."""
        axes.imshow(slice_, cmap=colours, vmin=0, vmax=1, aspect=self._aspect, interpolation="none")

    def overlay_lesion(self, axes: Axes, slice_: NDArray[np.bool_]) -> None:
        """Known lesions on top of a background."""
        self.overlay(axes, slice_, _flat(TRUTH_COLOUR))

    def overlay_probability(self, axes: Axes, slice_: NDArray[Any]) -> None:
        """Probabilities on top of a background, clear at 0."""
        self.overlay(axes, slice_, _see_through(PROBABILITY_COLOURS))


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


def comparison_figure(
    dwi: DWI,
    lesion: NDArray[np.bool_],
    probabilities: Mapping[str, ArrayLike],
    pooled_lesion: NDArray[np.bool_],
    pooled: Mapping[str, ArrayLike],
    *,
    title: str,
    n_slices: int = 3,
) -> Figure:
    """Truth and predictions on slices of one subject; ROC and precision-recall curves of several.

    In the manner of Fig. 1 of Müller et al. (arXiv:2102.06942).

    Parameters
    ----------
    dwi : DWI
        The subject that is shown.
    lesion : (V,) bool array
        Its lesions.
    probabilities : mapping of str to (V,) array
        From the name of each network to its map of the subject.
    pooled_lesion : (N,) bool array
        Lesions of all voxels that the curves are made of.
    pooled : mapping of str to (N,) array
        Probabilities of those voxels, with the names of `probabilities`.
    title : str
        Above the figure; it should say what kind of data this is.
    n_slices : int
        How many slices.

    Returns
    -------
    matplotlib.figure.Figure
        To be saved with its method ``savefig``.
    """
    slices = AxialSlices(dwi)
    truth = slices.volume(lesion)
    chosen = slices.choose(truth, n_slices)
    names = ("Truth", *probabilities)
    overlays = [
        (truth, _flat(TRUTH_COLOUR)),
        *((slices.volume(p), _see_through(PROBABILITY_COLOURS)) for p in probabilities.values()),
    ]

    width = _SLICE_INCHES * len(names)
    figure = Figure(figsize=(width + 4.5, 2.9 * len(chosen) + 1.0), layout="constrained")
    figure.suptitle(title, fontsize=13)
    ((maps, curves),) = figure.subfigures(1, 2, squeeze=False, width_ratios=(width, 4.5))
    grid = maps.subplots(len(chosen), len(names), squeeze=False)
    for row, index in zip(grid, chosen, strict=True):
        for axes, (volume, colours) in zip(row, overlays, strict=True):
            slices.draw(axes, index)
            slices.overlay(axes, volume[index], colours)
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(name, fontsize=11)
    _name_sides(grid[0, 0])
    _add_colour_bar(maps, grid[:, 1:])
    _draw_curves(curves, pooled_lesion, pooled)
    return figure


def map_figure(dwi: DWI, probability: ArrayLike, *, title: str, n_slices: int = 4) -> Figure:
    """A probability map over slices of its scan, those with the highest probabilities.

    Parameters
    ----------
    dwi : DWI
        The scan.
    probability : (V,) array-like
        Of a lesion, in every voxel.
    title : str
        Above the figure.
    n_slices : int
        How many slices.

    Returns
    -------
    matplotlib.figure.Figure
        To be saved with its method ``savefig``.
    """
    slices = AxialSlices(dwi)
    volume = slices.volume(probability)
    chosen = slices.choose(volume, n_slices)
    figure = Figure(figsize=(_SLICE_INCHES * len(chosen) + 1.5, 6.5), layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(2, len(chosen), squeeze=False)
    for (plain, overlaid), index in zip(grid.T, chosen, strict=True):
        slices.draw(plain, index)
        slices.draw(overlaid, index)
        slices.overlay(overlaid, volume[index], _see_through(PROBABILITY_COLOURS))
    grid[0, 0].set_ylabel("scan: mean diffusion-weighted signal")
    grid[1, 0].set_ylabel("with lesion probability")
    _name_sides(grid[0, 0])
    _add_colour_bar(figure, grid)
    return figure


# -- parts ---------------------------------------------------------------------------------------


def _flat(colour: str) -> Colormap:
    """Nothing at 0, one colour at 1."""
    return ListedColormap([to_rgba(colour, 0.0), to_rgba(colour)])


def _see_through(name: str) -> Colormap:
    """A colour map that is clear at 0 and opaque from a half on."""
    colours = matplotlib.colormaps[name](np.linspace(0.15, 1, 256))
    colours[:, 3] = np.clip(np.linspace(0, 2, 256), 0, 1)
    return ListedColormap(colours)


def _name_sides(axes: Axes) -> None:
    for place, side, align in ((0.03, "R", "left"), (0.97, "L", "right")):
        label = axes.text(place, 0.03, side, transform=axes.transAxes, ha=align, color="white")
        label.set_path_effects([withStroke(linewidth=2, foreground="black")])


def _add_colour_bar(figure: FigureBase, grid: NDArray[Any]) -> None:
    figure.colorbar(
        ScalarMappable(Normalize(0, 1), _see_through(PROBABILITY_COLOURS)),
        ax=list(grid.flat),
        location="bottom",
        shrink=0.6,
        aspect=40,
        label="predicted probability of a lesion",
    )


def _draw_curves(
    figure: SubFigure, lesion: NDArray[np.bool_], pooled: Mapping[str, ArrayLike]
) -> None:
    roc, precision_recall = figure.subplots(2, 1)
    for (name, values), colour in zip(pooled.items(), cycle(NETWORK_COLOURS), strict=False):
        false_positive, true_positive, _ = roc_curve(lesion, values)
        area = auc(false_positive, true_positive)
        _plot(roc, false_positive, true_positive, colour, f"{name}: {area:.3f}")
        precision, recall, _ = precision_recall_curve(lesion, values)
        average = average_precision_score(lesion, values)
        _plot(precision_recall, recall, precision, colour, f"{name}: {average:.3f}")
    share = float(np.mean(lesion))
    roc.plot((0, 1), (0, 1), color="0.6", linestyle=":", label="chance: 0.500")
    precision_recall.axhline(share, color="0.6", linestyle=":", label=f"chance: {share:.3f}")
    roc.set(xlabel="false positive rate", ylabel="true positive rate")
    precision_recall.set(xlabel="recall", ylabel="precision")
    for axes, title in (
        (roc, "ROC: area under the curve"),
        (precision_recall, "Precision and recall: average precision"),
    ):
        axes.set(xlim=(0, 1), ylim=(0, 1.01))
        axes.spines[["top", "right"]].set_visible(False)
        # Above the axes, where no curve can run behind it.
        legend = axes.legend(title=title, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
        legend.set_alignment("left")


def _plot(axes: Axes, x: NDArray[Any], y: NDArray[Any], colour: str, label: str) -> None:
    """A curve, without points that cannot be told from the one before."""
    places = np.round(np.stack([x, y]) * _CURVE_STEPS)
    keep = np.append(True, (np.diff(places) != 0).any(axis=0))
    keep[-1] = True
    axes.plot(x[keep], y[keep], color=colour, label=label)
