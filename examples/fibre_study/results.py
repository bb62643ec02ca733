"""What was measured, and the tables of docs/fibres.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from study import kept
from study.pages import table, write_between

NETWORK, VOXELWISE, CSD, DENOISED = "network", "voxelwise network", "CSD", "CSD after MP-PCA"
RIDGE, RIDGE_DENOISED = "CSD with a ridge", "CSD with a ridge after MP-PCA"
DECONVOLUTIONS = (CSD, DENOISED, RIDGE, RIDGE_DENOISED)
METHODS = (NETWORK, VOXELWISE, *DECONVOLUTIONS)

MAIN_B_VALUE = 1000.0
"""Of the table of all scores, in s/mm2."""


@dataclass(frozen=True)
class Row:
    """Scores of one simulated head.

    Parameters
    ----------
    head : str
        Its name.
    b_value : float
        In s/mm2.
    directions : int
        That are shown.
    voxels : int
        That are scored.
    scores : mapping
        By method; see `tripq.tasks.fibres.scoring.score_fibres`.
    """

    head: str
    b_value: float
    directions: int
    voxels: int
    scores: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class RealRow:
    """Angles of a method on the real scan, in degrees, in voxels that the peaks beside it choose.

    Parameters
    ----------
    method : str
        See `METHODS`.
    own_single, own_crossing : float
        Peaks from few directions to those of the same method from all.
    few_single, few_crossing : float
        Peaks from few directions to those beside the scan.
    all_single, all_crossing : float
        Peaks from all directions to those beside the scan.
    few_found, all_found : float
        Share of the crossings with two peaks, from few and from all directions.
    """

    method: str
    own_single: float
    own_crossing: float
    few_single: float
    few_crossing: float
    all_single: float
    all_crossing: float
    few_found: float
    all_found: float


@dataclass(frozen=True)
class Setting:
    """What was chosen for a deconvolution, and its mean error on the heads of the validation."""

    method: str
    b_value: float
    directions: int
    order: int
    penalty: float
    threshold: float
    patch_radius: int
    crossing_error: float


@dataclass(frozen=True)
class Training:
    """A training: its heads and steps, and the number of weights of the network."""

    network: str
    heads: int
    steps: int
    weights: int


@dataclass(frozen=True)
class Results:
    """All of them.

    Parameters
    ----------
    trainings : tuple of Training
        Of both networks.
    settings : tuple of Setting
        Of the deconvolutions.
    rows : tuple of Row
        One for each head, b-value and number of directions.
    real : tuple of RealRow
        One for each method; empty without the real scan.
    """

    trainings: tuple[Training, ...]
    settings: tuple[Setting, ...]
    rows: tuple[Row, ...]
    real: tuple[RealRow, ...]

    def write(self, path: Path) -> None:
        """Write them as JSON."""
        kept.write(path, self)

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read them."""
        found = kept.read(path)
        kinds = {"trainings": Training, "settings": Setting, "rows": Row, "real": RealRow}
        return cls(**{name: kept.rows_of(kind, found[name]) for name, kind in kinds.items()})

    def cells(self) -> Iterator[tuple[float, int]]:
        """All pairs of a b-value and a number of directions, in the order of the rows."""
        yield from dict.fromkeys((row.b_value, row.directions) for row in self.rows)

    def of_heads(self, score: str, method: str, b_value: float, directions: int) -> list[float]:
        """A score of every head."""
        return [
            row.scores[method][score]
            for row in self.rows
            if (row.b_value, row.directions) == (b_value, directions)
        ]

    def mean(self, score: str, method: str, b_value: float, directions: int) -> float:
        """Mean of a score over the heads."""
        return float(np.mean(self.of_heads(score, method, b_value, directions)))

    def reference(self, b_value: float) -> float:
        """Error at crossings of the best deconvolution from most directions."""
        most = max(directions for _, directions in self.cells())
        return min(self.mean("crossing_error", name, b_value, most) for name in DECONVOLUTIONS)


def scores_table(results: Results) -> str:
    """All scores at the main b-value: mean over the heads, and the lowest and the highest."""
    lines = []
    for b_value, directions in results.cells():
        if b_value != MAIN_B_VALUE:
            continue
        for method in METHODS:
            cell = (method, b_value, directions)
            ratio = results.mean("crossing_error", *cell) / results.reference(b_value)
            lines.append(
                f"{method} | {directions} | {_spread(results.of_heads('crossing_error', *cell))} | "
                f"{ratio:.2f} | {_spread(results.of_heads('single_error', *cell))} | "
                f"{results.mean('crossings_found', *cell):.2f} | "
                f"{results.mean('angular_correlation', *cell):.3f}"
            )
    return table(
        "method | directions | error at crossings | relative to CSD from 32 | single fibres | "
        "crossings with two peaks | angular correlation",
        lines,
    )


def b_values_table(results: Results) -> str:
    """Errors at crossings at all b-values."""
    return table(
        "b-value | directions | " + " | ".join(METHODS),
        [
            f"{b_value:.0f} | {directions} | "
            + " | ".join(
                _spread(results.of_heads("crossing_error", method, b_value, directions))
                for method in METHODS
            )
            for b_value, directions in results.cells()
        ],
    )


def settings_table(results: Results) -> str:
    """What was chosen for the deconvolutions."""
    return table(
        "method | b-value | directions | order | λ or μ | τ | radius of MP-PCA | error that chose "
        "them",
        [
            f"{one.method} | {one.b_value:.0f} | {one.directions} | {one.order} | {one.penalty:g} |"
            f" {one.threshold:g} | {one.patch_radius or '-'} | {one.crossing_error:.1f}°"
            for one in results.settings
        ],
    )


def repeatability_table(results: Results) -> str:
    """Angles on the real scan between the peaks of a method from 12 and from 32 directions."""
    return table(
        "method | single fibres | crossings",
        [f"{one.method} | {one.own_single:.1f}° | {one.own_crossing:.1f}°" for one in results.real],
    )


def agreement_table(results: Results) -> str:
    """Angles on the real scan to the peaks that lie beside it, and crossings found."""
    return table(
        "method | 12 directions: single fibres | crossings | two peaks found | 32 directions: "
        "single fibres | crossings | two peaks found",
        [
            f"{one.method} | {one.few_single:.1f}° | {one.few_crossing:.1f}° | "
            f"{one.few_found:.2f} | {one.all_single:.1f}° | {one.all_crossing:.1f}° | "
            f"{one.all_found:.2f}"
            for one in results.real
        ],
    )


TABLES = {
    "scores": scores_table,
    "b-values": b_values_table,
    "settings": settings_table,
    "repeatability": repeatability_table,
    "agreement": agreement_table,
}
"""The tables of the page, by the names of their markers."""


def write_page(results: Results, page: Path) -> None:
    """Put the tables into a page."""
    write_between(page, {name: make(results) for name, make in TABLES.items()})


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1f}° ({min(values):.1f} to {max(values):.1f})"
