"""Pictures of lesion maps over axial slices, and of the curves that score them.

For the slices see `tripq.report.slices`.  The colours are distinguishable with any colour vision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize, to_rgba
from matplotlib.figure import Figure, FigureBase, SubFigure
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike, NDArray

from tripq.report.slices import SLICE_INCHES, AxialSlices, name_sides, write_words
from tripq.scans import DWI
from tripq.tasks.lesions.scores import reliability

#: One for each network, one for the truth and one for what was found (Okabe and Ito, https://jfly.uni-koeln.de/color/).
NETWORK_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
TRUTH_COLOUR = "#56B4E9"
FOUND_COLOUR = "#E69F00"

#: Of probabilities; matplotlib's, with a brightness that rises all the way.
PROBABILITY_COLOURS = "inferno"

Curve = tuple[NDArray[Any], NDArray[Any]]

_CURVE_STEPS = 2000  # along an axis: finer than the picture
_MOST_NUMBERS = 8  # of candidates on one slice: more cannot be read


def overlay_truth(slices: AxialSlices, axes: Axes, slice_: NDArray[np.bool_]) -> None:
    """Known lesions on top of a background."""
    slices.overlay(axes, slice_, _flat(TRUTH_COLOUR))


def overlay_probability(slices: AxialSlices, axes: Axes, slice_: NDArray[Any]) -> None:
    """Probabilities on top of a background, clear at 0."""
    slices.overlay(axes, slice_, _see_through(PROBABILITY_COLOURS))


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

    The arrangement is that of Fig. 1 of Müller et al. (arXiv:2102.06942).

    Parameters
    ----------
    dwi : DWI
        Scan of the subject on the slices.
    lesion : (V,) bool array
        Lesions of this subject.
    probabilities : mapping of str to (V,) array
        Map of the subject by the name of each network.
    pooled_lesion : (N,) bool array
        Lesions of all voxels of the curves.
    pooled : mapping of str to (N,) array
        Probabilities of these voxels, with the names of `probabilities`.
    title : str
        Title of the figure; it should describe the kind of data.
    n_slices : int
        Number of slices.

    Returns
    -------
    matplotlib.figure.Figure
        Save it by its method ``savefig``.
    """
    slices = AxialSlices(dwi)
    truth = slices.volume(lesion)
    chosen = slices.choose(truth, n_slices)
    names = ("Truth", *probabilities)
    overlays = [
        (truth, _flat(TRUTH_COLOUR)),
        *((slices.volume(p), _see_through(PROBABILITY_COLOURS)) for p in probabilities.values()),
    ]

    width = SLICE_INCHES * len(names)
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
    name_sides(grid[0, 0])
    _add_colour_bar(maps, grid[:, 1:])
    _draw_curves(curves, pooled_lesion, pooled)
    return figure


def map_figure(dwi: DWI, probability: ArrayLike, *, title: str, n_slices: int = 4) -> Figure:
    """A probability map on the slices of its scan with the highest probabilities.

    Parameters
    ----------
    dwi : DWI
        The scan.
    probability : (V,) array-like
        Probability of a lesion in every voxel.
    title : str
        Title of the figure.
    n_slices : int
        Number of slices.

    Returns
    -------
    matplotlib.figure.Figure
        Save it by its method ``savefig``.
    """
    slices = AxialSlices(dwi)
    volume = slices.volume(probability)
    chosen = slices.choose(volume, n_slices)
    figure = Figure(figsize=(SLICE_INCHES * len(chosen) + 1.5, 6.5), layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(2, len(chosen), squeeze=False)
    for (plain, overlaid), index in zip(grid.T, chosen, strict=True):
        slices.draw(plain, index)
        slices.draw(overlaid, index)
        overlay_probability(slices, overlaid, volume[index])
    grid[0, 0].set_ylabel("scan: mean diffusion-weighted signal")
    grid[1, 0].set_ylabel("with lesion probability")
    name_sides(grid[0, 0])
    _add_colour_bar(figure, grid)
    return figure


def slice_figure(
    slices: AxialSlices,
    index: int,
    *,
    b0: NDArray[Any],
    probability: NDArray[Any],
    labels: NDArray[np.integer],
    lesion: NDArray[np.bool_] | None = None,
) -> Figure:
    """One slice three times: b0, the diffusion-weighted mean with outlines, and with probabilities.

    Parameters
    ----------
    slices : AxialSlices
        Slices of the scan.
    index : int
        Index of the slice.
    b0, probability, labels : (S, rows, columns) arrays
        Results of `AxialSlices.volume`; for the labels see
        `tripq.tasks.lesions.listing.label_candidates`.
    lesion : (S, rows, columns) bool array, optional
        The known lesions.

    Returns
    -------
    matplotlib.figure.Figure
        Save it by its method ``savefig``.
    """
    rows, columns = b0.shape[1:]
    height = SLICE_INCHES * slices.aspect * rows / columns
    figure = Figure(figsize=(3 * SLICE_INCHES, height), facecolor="black")
    panels = figure.subplots(1, 3, gridspec_kw={"wspace": 0})
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1)
    plain, outlined, overlaid = panels
    slices.draw(plain, index, b0)
    for axes in (outlined, overlaid):
        slices.draw(axes, index)
    if lesion is not None:
        slices.outline(outlined, lesion[index], TRUTH_COLOUR)
    slices.outline(outlined, labels[index] > 0, FOUND_COLOUR)
    _number_candidates(outlined, labels[index])
    overlay_probability(slices, overlaid, probability[index])
    for axes, name in zip(panels, ("b0", "outlines", "probability"), strict=True):
        name_sides(axes)
        write_words(axes, 0.5, 0.03, name, "center", color="0.75", fontsize=9)
    write_words(plain, 0.03, 0.93, f"z = {slices.height(index):.0f} mm".replace("-", "−"), "left")
    return figure


def probability_colours(stops: int) -> NDArray[np.uint8]:
    """The colours of probabilities from 0 to 1: red, green, blue and opacity, (stops, 4)."""
    return _see_through(PROBABILITY_COLOURS)(np.linspace(0, 1, stops), bytes=True)


def curves_figure(
    lesions: Sequence[ArrayLike], probabilities: Sequence[ArrayLike], threshold: float
) -> Figure:
    """ROC and precision-recall curves: thin for single subjects, bold for all voxels pooled.

    Parameters
    ----------
    lesions : sequence of (V_i,) array-likes of bool
        Lesion voxels.  Curves are drawn only for subjects with both lesion and healthy voxels.
    probabilities : sequence of (V_i,) array-likes
        Probabilities of a lesion.
    threshold : float
        Threshold of the probability, marked on the bold curves.

    Returns
    -------
    matplotlib.figure.Figure
        Save it by its method ``savefig``.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    figure = Figure(figsize=(9.0, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for lesion, probability in zip(lesions, probabilities, strict=True):
        if 0 < np.count_nonzero(lesion) < len(np.asarray(lesion)):
            for axes, (x, y) in zip(panels, _curves(lesion, probability), strict=True):
                _plot(axes, x, y, "0.75", linewidth=0.8)
    truth, pooled = np.concatenate(lesions).astype(bool), np.concatenate(probabilities)
    scores = roc_auc_score(truth, pooled), average_precision_score(truth, pooled)
    points = _operating_point(truth, pooled >= threshold)
    for axes, (x, y), value, point in zip(
        panels, _curves(truth, pooled), scores, points, strict=True
    ):
        _plot(axes, x, y, NETWORK_COLOURS[0], f"all voxels: {value:.3f}")
        label = f"threshold {threshold:.3g}"
        axes.plot(*point, "o", color=NETWORK_COLOURS[1], label=label, clip_on=False, zorder=3)
    _finish_curves(panels[0], panels[1], share=float(np.mean(truth)))
    return figure


def reliability_figure(probability: ArrayLike, lesion: ArrayLike) -> Figure:
    """Reliability curve: the fraction of lesion voxels over their predicted probability.

    Parameters
    ----------
    probability : (V,) array-like
        Probability of a lesion in every voxel, from 0 to 1.
    lesion : (V,) array-like of bool
        Lesion voxels.

    Returns
    -------
    matplotlib.figure.Figure
        Save it by its method ``savefig``.
    """
    curve = reliability(probability, lesion)
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot((0, 1), (0, 1), color="0.6", linestyle=":", label="calibrated")
    axes.plot(*(curve.predicted, curve.true, "o-"), color=NETWORK_COLOURS[0], label="all voxels")
    axes.set(
        xlabel="predicted probability of a lesion",
        ylabel="fraction of lesion voxels",
        xlim=(0, 1),
        ylim=(0, 1.01),
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    return figure


# -- parts ---------------------------------------------------------------------------------------


def _flat(colour: str) -> Colormap:
    """A colour map that is transparent at 0 and one colour at 1."""
    return ListedColormap([to_rgba(colour, 0.0), to_rgba(colour)])


def _see_through(name: str) -> Colormap:
    """A colour map that is transparent at 0 and opaque from 0.5."""
    colours = matplotlib.colormaps[name](np.linspace(0.15, 1, 256))
    colours[:, 3] = np.clip(np.linspace(0, 2, 256), 0, 1)
    return ListedColormap(colours)


def _number_candidates(axes: Axes, labels: NDArray[np.integer]) -> None:
    """Write the numbers of the candidates with most voxels on a slice beside them."""
    numbers, counts = np.unique(labels[labels > 0], return_counts=True)
    for number in numbers[np.argsort(-counts, kind="stable")][:_MOST_NUMBERS]:
        rows, columns = np.nonzero(labels == number)
        text = axes.annotate(
            str(number),
            (columns.max() + 0.5, rows.min() - 0.5),
            (1, 1),
            textcoords="offset points",
            color=FOUND_COLOUR,
            fontsize=9,
            annotation_clip=True,
        )
        text.set_path_effects([withStroke(linewidth=1.5, foreground="black")])


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
    from sklearn.metrics import auc, average_precision_score

    roc, precision_recall = figure.subplots(2, 1)
    for (name, values), colour in zip(pooled.items(), cycle(NETWORK_COLOURS), strict=False):
        of_roc, of_precision = _curves(lesion, values)
        average = average_precision_score(lesion, values)
        _plot(roc, *of_roc, colour, f"{name}: {auc(*of_roc):.3f}")
        _plot(precision_recall, *of_precision, colour, f"{name}: {average:.3f}")
    _finish_curves(roc, precision_recall, share=float(np.mean(lesion)))


def _curves(lesion: ArrayLike, probability: ArrayLike) -> tuple[Curve, Curve]:
    """The ROC curve and the precision-recall curve."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    false_positive, true_positive, _ = roc_curve(lesion, probability)
    precision, recall, _ = precision_recall_curve(lesion, probability)
    return (false_positive, true_positive), (recall, precision)


def _operating_point(
    lesion: NDArray[np.bool_], found: NDArray[np.bool_]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Point of a decision on both curves; without found voxels precision is set to 1."""
    hits = np.count_nonzero(found & lesion)
    recall = hits / np.count_nonzero(lesion)
    false_positive = np.count_nonzero(found & ~lesion) / np.count_nonzero(~lesion)
    precision = hits / np.count_nonzero(found) if found.any() else 1.0
    return (false_positive, recall), (recall, precision)


def _finish_curves(roc: Axes, precision_recall: Axes, share: float) -> None:
    """Add the chance level, by the share of lesion voxels, axis labels and legends."""
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


def _plot(
    axes: Axes,
    x: NDArray[Any],
    y: NDArray[Any],
    colour: str,
    label: str | None = None,
    linewidth: float = 1.5,
) -> None:
    """Plot a curve, without points that are indistinguishable from the previous one."""
    places = np.round(np.stack([x, y]) * _CURVE_STEPS)
    keep = np.append(True, (np.diff(places) != 0).any(axis=0))
    keep[-1] = True
    axes.plot(x[keep], y[keep], color=colour, label=label, linewidth=linewidth)
