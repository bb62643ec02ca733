"""The page of scores of the maps of several scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tripq.report.page import make_picture, write_page

_BINS = 100
_USUAL = (0.1, 99.9)  # percentiles that the axes span


def write_scores_report(
    path: str | PathLike[str],
    rows: Sequence[tuple[str, Mapping[str, float]]],
    columns: Mapping[str, str],
    settings: Mapping[str, str],
    *,
    title: str,
    figure: Figure,
    remark: str = "",
    alternative: str = "Values of the maps over the known values",
) -> None:
    """Write a page of scores.

    Parameters
    ----------
    path : path
        ``.html``; an existing page is replaced.
    rows : sequence of (str, mapping of str to float)
        Names and scores of the scans, and last of all together; NaN for what does not exist.
    columns : mapping of str to str
        Which scores are shown, and their titles.
    settings : mapping of str to str
        Shown as they are; the value of ``"caution"`` at the top.
    title : str
        Such as the name of the network.
    figure : Figure
        Above the table.
    remark : str
        Below the table.
    alternative : str
        What the figure shows, for readers who do not see it.

    Raises
    ------
    ReportError
        If `path` is not the name of a page, or nothing can be written there.
    """
    *scans, pooled = rows
    write_page(
        path,
        "scores.html.jinja",
        settings=settings,
        title=title,
        scans=scans,
        pooled=pooled,
        columns=columns,
        picture_of_all=make_picture(figure, alternative, "png"),
        remark=remark,
    )


def agreement_figure(
    found: NDArray[np.floating], known: NDArray[np.floating], unit: str = ""
) -> Figure:
    """Histogram of map values and known values, with the line of equality.

    Parameters
    ----------
    found, known : arrays of the same shape
        Values of all maps.
    unit : str
        Of the values.
    """
    both = np.concatenate([found.ravel(), known.ravel()])
    low, high = np.percentile(both, _USUAL).tolist()
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, _BINS + 1)
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axes = figure.subplots()
    counts, _, _ = np.histogram2d(known.ravel(), found.ravel(), (edges, edges))
    drawn = axes.pcolormesh(edges, edges, np.where(counts > 0, counts, np.nan).T, norm=LogNorm())
    axes.plot((low, high), (low, high), color="0.4", linestyle=":")
    suffix = f", {unit}" if unit else ""
    axes.set(xlabel=f"known value{suffix}", ylabel=f"value of the map{suffix}", aspect="equal")
    axes.spines[["top", "right"]].set_visible(False)
    figure.colorbar(drawn, label="values")
    return figure
