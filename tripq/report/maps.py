"""The page of a network's maps of one scan: slices, values, the network and the measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from tripq.report.page import Picture, make_picture, number, plural, write_page
from tripq.report.scan import view_scan
from tripq.report.slices import SLICE_INCHES, AxialSlices, name_sides, write_words
from tripq.scans import DWI

_SLICES = 5
_MOST_COMPONENTS = 6  # of a map with several values in a voxel
_BINS = 80
_USUAL = (1.0, 99.0)  # percentiles that the colours and the histogram span
_QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
_SIGNED, _POSITIVE = "RdBu_r", "viridis"


@dataclass(frozen=True, eq=False)
class ShownMap:
    """A map on a page.

    Parameters
    ----------
    name : str
        Of the map.
    values : (V,) or (V, C) array
        Of every voxel, in the order of ``np.argwhere(dwi.mask)``; numbers or booleans.
    unit : str
        Of the values; empty for none.
    """

    name: str
    values: NDArray[np.generic]
    unit: str = ""


@dataclass(frozen=True)
class _Component:
    """A component of a map: its name, and quantiles of its values."""

    name: str
    quantiles: tuple[float, ...]


@dataclass(frozen=True)
class _MapView:
    """A map as the template shows it."""

    name: str
    unit: str
    hidden: int
    components: tuple[_Component, ...]
    slices: Picture
    histogram: Picture


def write_maps_report(
    path: str | PathLike[str],
    dwi: DWI,
    maps: Sequence[ShownMap],
    settings: Mapping[str, str],
    *,
    network: Mapping[str, str],
    kind: str = "Maps",
) -> None:
    """Write the page of the maps of one scan.

    Parameters
    ----------
    path : path
        ``.html``; an existing page is replaced.
    dwi : DWI
        The scan.
    maps : sequence of ShownMap
        Of a map with many values in a voxel the first six are shown.
    settings : mapping of str to str
        Settings that determine the maps, shown as they are.  Each line under ``"caution"`` is shown
        at the top.
    network : mapping of str to str
        What the network is, shown as it is.
    kind : str
        Above the title.

    Raises
    ------
    ReportError
        If `path` is not the name of a page, or nothing can be written there.
    ValueError
        If a map does not have a row of finite values for every voxel.
    """
    for shown in maps:
        if len(shown.values) != len(dwi.b0) or shown.values.ndim > 2:
            raise ValueError(f"{shown.name}: {shown.values.shape} values for {len(dwi.b0)} voxels")
        if not np.isfinite(shown.values).all():
            raise ValueError(f"{shown.name}: some values are not finite")
    scan = view_scan(dwi)
    slices = AxialSlices(dwi)
    write_page(
        path,
        "maps.html.jinja",
        settings=settings,
        programs=("assets/sort.js", "assets/sphere.js"),
        title=scan.title,
        page_kind=kind,
        maps=[_view(shown, slices) for shown in maps],
        network=network,
        scan=scan,
    )


def maps_figure(
    values: NDArray[np.floating], names: Sequence[str], unit: str, slices: AxialSlices
) -> Figure:
    """Axial slices of a map, a row for each component, with a scale of its colours.

    Parameters
    ----------
    values : (V, C) array
        Of every voxel.
    names : sequence of str
        Of the components, beside the rows where there are several.
    unit : str
        Of the values.
    slices : AxialSlices
        Of the scan.
    """
    chosen = _spread(slices)
    rows, columns = slices.background.shape[1:]
    height = SLICE_INCHES * slices.aspect * rows / columns
    n_components = values.shape[1]
    size = (SLICE_INCHES * len(chosen) + 1.0, height * n_components)
    layout = ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.02, wspace=0, hspace=0)
    figure = Figure(figsize=size, layout=layout, facecolor="black")
    grid = figure.subplots(n_components, len(chosen), squeeze=False)
    for row, component, name in zip(grid, values.T, names, strict=True):
        low, high = _limits(component)
        colours = matplotlib.colormaps[_SIGNED if low < 0 < high else _POSITIVE].with_extremes(
            bad="black"
        )
        volume = np.where(slices.inside, slices.volume(component), np.nan)
        for axes, index in zip(row, chosen, strict=True):
            image = axes.imshow(
                volume[index],
                cmap=colours,
                vmin=low,
                vmax=high,
                aspect=slices.aspect,
                interpolation="none",
            )
            axes.set(xticks=[], yticks=[], facecolor="black")
            axes.spines[:].set_visible(False)
        if len(names) > 1:
            row[0].set_ylabel(name, color="white")
        bar = figure.colorbar(image, ax=list(row), aspect=25, pad=0.01)
        bar.set_label(unit, color="white")
        bar.ax.tick_params(colors="white")
        bar.outline.set_visible(False)
    for axes, index in zip(grid[0], chosen, strict=True):
        write_words(axes, 0.03, 0.92, f"z = {number(slices.height(index), 0)} mm", "left")
    name_sides(grid[-1, 0])
    return figure


def values_figure(values: NDArray[np.floating], names: Sequence[str], unit: str) -> Figure:
    """Histogram of every component of a map, in percent of the voxels.

    Parameters
    ----------
    values : (V, C) array
        Of every voxel.
    names : sequence of str
        Of the components.
    unit : str
        Of the values.
    """
    figure = Figure(figsize=(9.0, 2.6), layout="constrained")
    axes = figure.subplots()
    edges = np.linspace(*_usual(values), _BINS + 1)
    for component, name in zip(values.T, names, strict=True):
        counts, _ = np.histogram(component, edges)
        axes.stairs(100 * counts / len(values), edges, label=name)
    axes.set(xlabel=unit or "value", ylabel="% of voxels", xlim=(edges[0], edges[-1]))
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    if len(names) > 1:
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _view(shown: ShownMap, slices: AxialSlices) -> _MapView:
    values = np.asarray(shown.values, dtype=np.float64).reshape(len(shown.values), -1)
    drawn = values[:, :_MOST_COMPONENTS]
    one = values.shape[1] == 1
    names = [shown.name if one else f"component {i + 1}" for i in range(drawn.shape[1])]
    what = f"{shown.name}: {plural(drawn.shape[1], 'component')}"
    return _MapView(
        name=shown.name,
        unit=shown.unit,
        hidden=values.shape[1] - drawn.shape[1],
        components=tuple(
            _Component(name, tuple(np.quantile(column, _QUANTILES).tolist()))
            for name, column in zip(names, drawn.T, strict=True)
        ),
        slices=make_picture(
            maps_figure(drawn, names, shown.unit, slices), f"Axial slices of {what}", "png"
        ),
        histogram=make_picture(values_figure(drawn, names, shown.unit), f"Histogram of {what}"),
    )


def _limits(values: NDArray[np.floating]) -> tuple[float, float]:
    """What the colours of a map span: the usual values, about 0 if these have both signs."""
    low, high = _usual(values)
    if low < 0 < high:
        high = max(-low, high)
        low = -high
    return low, high


def _usual(values: NDArray[np.floating]) -> tuple[float, float]:
    """From the lowest usual value to the highest: all values, if most of them are the same."""
    low, high = np.percentile(values, _USUAL).tolist()
    if low == high:
        low, high = float(values.min()), float(values.max())
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _spread(slices: AxialSlices) -> list[int]:
    """Slices at even distances, from the top down."""
    places = np.linspace(0, len(slices.background) - 1, _SLICES + 2)[1:-1]
    chosen = {int(place) for place in np.rint(places) if slices.inside[int(place)].any()}
    return sorted(chosen, reverse=True)
