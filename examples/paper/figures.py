"""The three figures of the paper, of the runs that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from paper.results import Result, Run
from paper.statistics import Estimate
from tripq.report.slices import AxialSlices
from tripq.tasks.lesions.datasets import LabelledSubject
from tripq.tasks.lesions.figures import (
    NETWORK_COLOURS,
    comparison_figure,
    overlay_probability,
    overlay_truth,
)

SIMULATED = "simulated diffusion signal, outlines of real lesions"


def has_maps(folder: Path, run: Run) -> bool:
    """Whether the maps of a run are there; of results from elsewhere they are not."""
    return (folder / "runs" / run.key / "maps.npz").is_file()


def read_maps(folder: Path, run: Run, subjects: Sequence[LabelledSubject]) -> list[NDArray]:
    """The probability maps of a run, one for each of its test subjects."""
    with np.load(folder / "runs" / run.key / "maps.npz") as maps:
        return [maps[subject.name].astype(np.float32) for subject in subjects]


def figure_1(
    folder: Path, results: Mapping[str, Result], subjects: Sequence[LabelledSubject]
) -> Figure:
    """Slices of the test subject with the median load, and the curves of all."""
    maps = {name: read_maps(folder, result.run, subjects) for name, result in results.items()}
    shown = int(np.argsort([subject.lesion.sum() for subject in subjects])[len(subjects) // 2])
    return comparison_figure(
        subjects[shown].dwi,
        subjects[shown].lesion,
        {name: some[shown] for name, some in maps.items()},
        np.concatenate([subject.lesion for subject in subjects]),
        {name: np.concatenate(some) for name, some in maps.items()},
        title=f"A test patient, and the curves of all {len(subjects)} of a split\n({SIMULATED})",
    )


def figure_2(scores: Mapping[str, Mapping[str, Mapping[float, Estimate]]]) -> Figure:
    """Scores against the share of the training patients.

    Parameters
    ----------
    scores : mapping
        From the name of a score to networks, to shares.
    """
    figure = Figure(figsize=(4.2 * len(scores), 3.8), layout="constrained")
    for axes, (score, networks) in zip(
        figure.subplots(1, len(scores)), scores.items(), strict=True
    ):
        styles = product((("-", "o"), ("--", "s")), NETWORK_COLOURS)
        for (name, by_share), ((line, marker), colour) in zip(
            networks.items(), styles, strict=False
        ):
            shares = sorted(by_share)
            middle = [by_share[share].value for share in shares]
            percent = [100 * share for share in shares]
            axes.plot(percent, middle, line, marker=marker, color=colour, label=name)
            axes.fill_between(
                percent,
                [by_share[share].low for share in shares],
                [by_share[share].high for share in shares],
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
        if best := [by_share for name, by_share in networks.items() if 1.0 in by_share][1:]:
            axes.axhline(best[0][1.0].value, color="0.5", linestyle=":")
        axes.set(xlabel="training patients (%)", ylabel=score, xscale="log")
        ticks = sorted({100 * share for by_share in networks.values() for share in by_share})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(f"Scores on test patients ({SIMULATED}); 95 % intervals over patients")
    return figure


def figure_3(
    folder: Path,
    results: Mapping[str, Mapping[float, Result]],
    subjects: Sequence[LabelledSubject],
) -> Figure:
    """One slice as it is segmented after training on growing shares."""
    shown = int(np.argsort([subject.lesion.sum() for subject in subjects])[len(subjects) // 2])
    subject = subjects[shown]
    slices = AxialSlices(subject.dwi)
    truth = slices.volume(subject.lesion)
    (index,) = slices.choose(truth, 1)
    shares = sorted({share for by_share in results.values() for share in by_share})
    figure = Figure(
        figsize=(2.3 * (len(shares) + 1), 2.9 * len(results) + 0.6), layout="constrained"
    )
    grid = figure.subplots(len(results), len(shares) + 1, squeeze=False)
    for row, (name, by_share) in zip(grid, results.items(), strict=True):
        slices.draw(row[0], index)
        overlay_truth(slices, row[0], truth[index])
        row[0].set_ylabel(name)
        for axes, share in zip(row[1:], shares, strict=True):
            slices.draw(axes, index)
            if share in by_share:
                probability = read_maps(folder, by_share[share].run, subjects)[shown]
                overlay_probability(slices, axes, slices.volume(probability)[index])
    grid[0, 0].set_title("truth")
    for axes, share in zip(grid[0, 1:], shares, strict=True):
        axes.set_title(f"{100 * share:g} %")
    figure.suptitle(
        f"A test patient, by the share of training patients\n({SIMULATED})", fontsize=11
    )
    return figure
