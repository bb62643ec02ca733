"""What was measured, and the tables of docs/tissue.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from study import kept
from study.pages import table, write_between

from tissue_study.heads import CLASSES, TESTS, TISSUE_CLASSES, TRAINING
from tripq.tasks.tissue.classes import Classes


@dataclass(frozen=True)
class Pilot:
    """A short training with a learning rate.

    Parameters
    ----------
    rate : float
        The highest.
    seconds : float
        Of the processor.
    score : float
        Mean Dice of the validation head.
    """

    rate: float
    seconds: float
    score: float


@dataclass(frozen=True)
class Trained:
    """How a network was trained.

    Parameters
    ----------
    name, says, poses : str
        See `tissue_study.contenders.Contender`.
    weights : int
        Their number.
    pilots : tuple of Pilot
        One for each learning rate; none if those of another network were used.
    rate : float
        The chosen learning rate.
    steps : int
        Of the training, without pilots.
    seconds : float
        Of the processor, validation included.
    validation : tuple of (int, float)
        Steps and mean Dice of the validation head.
    """

    name: str
    says: str
    poses: str
    weights: int
    pilots: tuple[Pilot, ...]
    rate: float
    steps: int
    seconds: float
    validation: tuple[tuple[int, float], ...]

    @property
    def best(self) -> tuple[int, float]:
        """Step and score of the best validation, whose weights are kept."""
        return max(self.validation, key=lambda one: one[1])

    def write(self, folder: Path) -> None:
        """Write it as JSON."""
        kept.write(folder / "training.json", self)

    @classmethod
    def read(cls, folder: Path) -> Trained:
        """Read it."""
        return cls.of(kept.read(folder / "training.json"))

    @classmethod
    def of(cls, content: dict) -> Trained:
        """The content of a JSON file."""
        pilots = kept.rows_of(Pilot, content.pop("pilots"))
        validation = tuple((step, score) for step, score in content.pop("validation"))
        return cls(**content, pilots=pilots, validation=validation)


@dataclass(frozen=True)
class Row:
    """Scores of an unseen head.

    Parameters
    ----------
    test : str
        Name of its condition.
    head : str
        Name of the head.
    resampled : bool
        Whether it was resampled to the table of the network.
    dice : mapping
        By the labels of the classes of the network.
    """

    test: str
    head: str
    resampled: bool
    dice: Mapping[str, float]

    @property
    def mean(self) -> float | None:
        """Mean of all classes; none for a network without one of them."""
        if any(label not in self.dice for label in CLASSES.labels):
            return None
        return float(np.mean(list(self.dice.values())))

    @property
    def tissue(self) -> float:
        """Mean of the classes of tissue, without that of lesions."""
        return float(np.mean([self.dice[label] for label in TISSUE_CLASSES.labels]))


@dataclass(frozen=True)
class Results:
    """Of one network.

    Parameters
    ----------
    trained : Trained
        How it was trained.
    rows : tuple of Row
        For every unseen head in every condition.
    """

    trained: Trained
    rows: tuple[Row, ...]

    def of(self, test: str) -> list[Row]:
        """The heads of a condition."""
        return [row for row in self.rows if row.test == test]

    def tissue(self, test: str) -> float:
        """Mean Dice of tissue of the heads of a condition."""
        return float(np.mean([row.tissue for row in self.of(test)]))

    def write(self, path: Path) -> None:
        """Write them as JSON."""
        kept.write(path, self)

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read them."""
        content = kept.read(path)
        return cls(Trained.of(content["trained"]), kept.rows_of(Row, content["rows"]))


def trainings_table(results: Sequence[Results]) -> str:
    """How each network was trained."""
    return table(
        "network | heads of the training | weights | rate | pilots | steps | kept after | CPU, s | "
        "validation",
        [
            f"{one.says} | {_poses(one)} | {one.weights:,} | {one.rate:g} | "
            + (", ".join(f"{pilot.rate:g}: {pilot.score:.3f}" for pilot in one.pilots) or "-")
            + f" | {one.steps} | {one.best[0]} | {one.seconds:.0f} | {one.best[1]:.3f}"
            for one in (result.trained for result in results)
        ],
    )


def dice_table(results: Sequence[Results]) -> str:
    """Dice over the heads of each condition."""
    lines = []
    for test in TESTS:
        for one in results:
            rows, poses = one.of(test.name), _poses(one.trained)
            name = f"{test.says} | {one.trained.says}"
            if any(row.resampled for row in rows):
                lines.append(f"{name} | {poses} | cannot" + " | -" * (1 + len(CLASSES.labels)))
                name += ", resampled"
            every = _spread([row.mean for row in rows])
            lines.append(f"{name} | {poses} | {every} | {_cells(rows, CLASSES)}")
    return table(
        "unseen heads | network | heads of the training | all classes (heads) | " + _heads(CLASSES),
        lines,
    )


def summary(ours: Results, others: Sequence[Results]) -> str:
    """Dice of tissue of a network in every condition, and that of the best other one there."""
    lines = []
    for test in TESTS:
        best = max(others, key=lambda one: one.tissue(test.name))
        lines.append(
            f"{test.says} | {_cells(ours.of(test.name), TISSUE_CLASSES)} | {best.trained.says}, "
            f"{_poses(best.trained)}: {_spread([row.tissue for row in best.of(test.name)])}"
        )
    return table(f"unseen heads | {_heads(TISSUE_CLASSES)} | best other network", lines)


def _heads(classes: Classes) -> str:
    return " | ".join(["tissue (heads)", *classes.labels])


def _cells(rows: Sequence[Row], classes: Classes) -> str:
    """Dice of tissue and of each class."""
    means = (_mean([row.dice.get(label) for row in rows]) for label in classes.labels)
    return " | ".join([_spread([row.tissue for row in rows]), *means])


def _mean(scores: Sequence[float | None]) -> str:
    known = [score for score in scores if score is not None]
    return f"{np.mean(known):.3f}" if known else "-"


def _spread(scores: Sequence[float | None]) -> str:
    """Mean over heads, and the lowest and the highest head."""
    known = [score for score in scores if score is not None]
    return f"{_mean(known)} ({min(known):.3f} to {max(known):.3f})" if known else "-"


def _poses(trained: Trained) -> str:
    return TRAINING[trained.poses][0].says


TABLES = {"trainings": trainings_table, "dice": dice_table}
"""The tables of the page, by the names of their markers."""


def write_page(results: Sequence[Results], page: Path) -> None:
    """Put the tables into a page."""
    write_between(page, {name: make(results) for name, make in TABLES.items()})
