"""What was measured, and the tables of docs/tissue.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from paper.head_page import table, write_between

from tissue_study.heads import CLASSES, TESTS, TRAINING
from tripq.infra.files import write_text
from tripq.tasks.tissue.simulated import TISSUE


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


def write_pilots(pilots: Sequence[Pilot], path: Path) -> None:
    """Write them as JSON."""
    write_text(path, json.dumps([asdict(one) for one in pilots], indent=1) + "\n")


def read_pilots(path: Path) -> tuple[Pilot, ...]:
    """Read them."""
    return tuple(Pilot(**one) for one in json.loads(path.read_text(encoding="utf-8")))


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
        One for each learning rate.
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
        write_text(folder / "training.json", json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Trained:
        """Read it."""
        return cls.of(json.loads((folder / "training.json").read_text(encoding="utf-8")))

    @classmethod
    def of(cls, content: dict) -> Trained:
        """The content of a JSON file."""
        pilots = tuple(Pilot(**pilot) for pilot in content.pop("pilots"))
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
        By the labels of the classes.
    """

    test: str
    head: str
    resampled: bool
    dice: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Mean of the classes."""
        return float(np.mean(list(self.dice.values())))

    @property
    def tissue(self) -> float:
        """Mean of the classes of tissue, without that of lesions."""
        return float(np.mean([self.dice[label] for _, label in TISSUE]))


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

    def mean(self, test: str) -> float:
        """Mean Dice of the classes and heads of a condition."""
        return float(np.mean([row.mean for row in self.of(test)]))

    def write(self, path: Path) -> None:
        """Write them as JSON."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read them."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(Trained.of(content["trained"]), tuple(Row(**row) for row in content["rows"]))


def trainings_table(results: Sequence[Results]) -> str:
    """How each network was trained."""
    return table(
        "network | heads of the training | weights | rate | pilots | steps | kept after | CPU, s | "
        "validation",
        [
            f"{one.says} | {_poses(one)} | {one.weights:,} | {one.rate:g} | "
            + ", ".join(f"{pilot.rate:g}: {pilot.score:.3f}" for pilot in one.pilots)
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
            lines.append(f"{name} | {poses} | {_cells(rows)}")
    return table(f"unseen heads | network | heads of the training | {_HEADS}", lines)


def summary(ours: Results, others: Sequence[Results]) -> str:
    """Dice of a network in every condition, and means of the best other one there."""
    lines = []
    for test in TESTS:
        best = max(others, key=lambda one: one.mean(test.name))
        rows = best.of(test.name)
        lines.append(
            f"{test.says} | {_cells(ours.of(test.name))} | {best.trained.says}, "
            f"{_poses(best.trained)}: {_spread([row.mean for row in rows])}, tissue "
            f"{_spread([row.tissue for row in rows])}"
        )
    return table(f"unseen heads | {_HEADS} | best other network", lines)


_HEADS = " | ".join(["all classes (heads)", "tissue (heads)", *CLASSES.labels])


def _cells(rows: Sequence[Row]) -> str:
    """Dice of all classes, of tissue, and of each class."""
    means = (_spread([row.mean for row in rows]), _spread([row.tissue for row in rows]))
    classes = (f"{np.mean([row.dice[label] for row in rows]):.3f}" for label in CLASSES.labels)
    return " | ".join([*means, *classes])


def _spread(scores: Sequence[float]) -> str:
    """Mean over heads, and the lowest and the highest head."""
    return f"{np.mean(scores):.3f} ({min(scores):.3f} to {max(scores):.3f})"


def _poses(trained: Trained) -> str:
    return TRAINING[trained.poses][0].says


def write_page(results: Sequence[Results], page: Path) -> None:
    """Put the tables into a page."""
    for name, text in (
        ("trainings", trainings_table(results)),
        ("dice", dice_table(results)),
    ):
        write_between(page, name, text)
