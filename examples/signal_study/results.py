"""What was measured, and the tables of docs/signal.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study import kept
from study.pages import table, write_between

RIVALS = ("harmonics", "process", "tensor")


@dataclass(frozen=True)
class Row:
    """Scores at the directions that are not shown, of one head.

    Parameters
    ----------
    head, scanner : str
        See `paper.real_heads.RealHead`.
    shown, hidden : int
        Directions.
    voxels : int
        Of the head.
    floor : float or None
        RMS of the noise.
    scores : mapping
        By method; see `tripq.tasks.signal.scoring.Differences.scores`.
    """

    head: str
    scanner: str
    shown: int
    hidden: int
    voxels: int
    floor: float | None
    scores: Mapping[str, Mapping[str, float]]

    def best_rival(self, score: str = "rms_error") -> str:
        """The rival with the least error on this head."""
        return min(RIVALS, key=lambda name: self.scores[name][score])

    @property
    def excess(self) -> float | None:
        """Excess error of the network over the noise floor, relative to that of the best rival.

        Mean squares are compared, as the noise adds to them.
        """
        if self.floor is None:
            return None
        ours, theirs = (
            self.scores[name]["rms_error"] ** 2 - self.floor**2
            for name in ("network", self.best_rival())
        )
        return ours / theirs


@dataclass(frozen=True)
class Denoised:
    """A scan that was denoised, against the mean of its repetitions.

    Parameters
    ----------
    method : str
        How.
    rms_error, psnr : float
        Of the signal divided by b0; in dB.
    anatomy : float
        Correlation of the mean of what was removed with b0.
    """

    method: str
    rms_error: float
    psnr: float
    anatomy: float


@dataclass(frozen=True)
class Results:
    """The results of one fold.

    Parameters
    ----------
    fold : str
        Its name.
    chosen : bool
        It was seen when the settings of the network were chosen.
    rows : tuple of Row
        One for each head and number of directions.
    denoised : tuple of Denoised
        Empty if no repeated scan is tested.
    """

    fold: str
    chosen: bool
    rows: tuple[Row, ...]
    denoised: tuple[Denoised, ...]

    def write(self, path: Path) -> None:
        """Write a file of JSON."""
        kept.write(path, self)

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read what `write` wrote."""
        return cls.of(kept.read(path))

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Results:
        """The results in a JSON object."""
        rows, denoised = kept.rows_of(Row, found["rows"]), kept.rows_of(Denoised, found["denoised"])
        return cls(found["fold"], found["chosen"], rows, denoised)


def write_all(results: Sequence[Results], path: Path) -> None:
    """Write the results of all folds into one file of JSON."""
    kept.write_rows(path, results)


def read_all(path: Path) -> list[Results]:
    """Read what `write_all` wrote."""
    return [Results.of(found) for found in kept.read(path)]


def _rows(results: Sequence[Results]) -> Iterator[tuple[str, Row]]:
    """All rows with the names of their heads, those of chosen folds with a star."""
    for one in results:
        for row in one.rows:
            yield f"{row.head}{' *' if one.chosen else ''}", row


def directions_table(results: Sequence[Results]) -> str:
    """Errors at the directions that are not shown."""
    return table(
        "head | shown | hidden | network | harmonics | Gaussian process | tensor | noise | excess "
        "of the network",
        [
            f"{head} | {row.shown} | {row.hidden} | "
            + " | ".join(f"{row.scores[name]['rms_error']:.4f}" for name in ("network", *RIVALS))
            + f" | {_number(row.floor, '.4f')} | {_number(row.excess, '.2f')}"
            for head, row in _rows(results)
        ],
    )


def tensors_table(results: Sequence[Results]) -> str:
    """Errors of FA and of the main direction, of the network and of the best rival in each."""
    lines = []
    for head, row in _rows(results):
        cells = []
        for score, digits in (("fa_error", ".3f"), ("main_direction_error", ".1f")):
            rival = row.best_rival(score)
            ours, theirs = (row.scores[name][score] for name in ("network", rival))
            cells.append(f"{ours:{digits}} | {theirs:{digits}} ({rival})")
        lines.append(f"{head} | {row.shown} | {' | '.join(cells)}")
    return table(
        "head | shown | error of FA: network | best rival | angle of the main direction, degrees: "
        "network | best rival",
        lines,
    )


def denoising_table(results: Sequence[Results]) -> str:
    """Errors of denoised scans."""
    return table(
        "method | RMS error | PSNR, dB | correlation of what was removed with b0",
        [
            f"{row.method} | {row.rms_error:.4f} | {row.psnr:.1f} | {row.anatomy:.2f}"
            for one in results
            for row in one.denoised
        ],
    )


def summary(results: Sequence[Results]) -> str:
    """Errors of the network, and of the best rival on each head."""
    return table(
        "head | scanner | directions shown | RMS error | best other method",
        [
            f"{head} | {row.scanner} | {row.shown} | {row.scores['network']['rms_error']:.4f}"
            f" | {row.scores[rival]['rms_error']:.4f} ({rival})"
            for head, row in _rows(results)
            for rival in [row.best_rival()]
        ],
    )


TABLES = {
    "directions": directions_table,
    "tensors": tensors_table,
    "denoising": denoising_table,
}
"""The tables of the page, by the names of their markers."""


def write_page(results: Sequence[Results], page: Path) -> None:
    """Put the tables into a page."""
    write_between(page, {name: make(results) for name, make in TABLES.items()})


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"
