"""Results of runs in one file of JSON lines: a line is a finished run, and is never changed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tripq.tasks.lesions.scores import LesionCounts, Scores, without_nan

#: Logits at which the curves of a run are kept.
LOGITS = np.linspace(-12.0, 12.0, 97)


@dataclass(frozen=True)
class Run:
    """A network on a share of the training patients of a split.

    Parameters
    ----------
    stage : str
        "tuning", "main", "variants" or "baselines".
    contender : str
        Name of the network.
    fraction : float
        Of the training patients.
    seed : int
        Of the split, the weights and the boxes.
    """

    stage: str
    contender: str
    fraction: float
    seed: int

    @property
    def key(self) -> str:
        """Such as ``main-eq-100-0``; a name for a folder."""
        return f"{self.stage}-{self.contender}-{100 * self.fraction:g}-{self.seed}"


@dataclass(frozen=True)
class SubjectResult:
    """Scores of one subject.

    Parameters
    ----------
    name : str
        Such as ``sub-01``.
    load_ml : float
        Volume of its lesions.
    found_ml : float
        Volume that was found.
    scores : Scores
        Voxel by voxel.
    lesions : LesionCounts
        Lesion by lesion.
    curve : tuple of (int, int)
        Healthy and lesion voxels with a logit of `LOGITS` or more.
    """

    name: str
    load_ml: float
    found_ml: float
    scores: Scores
    lesions: LesionCounts
    curve: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Tested:
    """Scores of all test subjects of a run under one condition."""

    pooled: Scores
    subjects: tuple[SubjectResult, ...]


@dataclass(frozen=True)
class Result:
    """A finished run.

    Parameters
    ----------
    run : Run
        What was run.
    settings : dict
        Everything that a repetition needs to know; for readers, not for the program.
    weights : int
        Of the network.
    steps, seconds : int, float
        Of the training.
    validation : tuple of (int, float)
        Step and average precision of each validation.
    threshold : float
        On the probability, for Dice and lesions; from the validation patients.
    tests : dict
        From the name of a condition to the scores.
    """

    run: Run
    settings: dict[str, Any]
    weights: int
    steps: int
    seconds: float
    validation: tuple[tuple[int, float], ...]
    threshold: float
    tests: dict[str, Tested]

    @property
    def best(self) -> float:
        """Average precision on the validation patients."""
        return max(score for _, score in self.validation)


class Results:
    """The file of the finished runs.

    Parameters
    ----------
    path : Path
        Made with the first result.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._results = {result.run: result for result in _read(path)}

    def __iter__(self) -> Iterator[Result]:
        return iter(self._results.values())

    def __contains__(self, run: Run) -> bool:
        return run in self._results

    def __getitem__(self, run: Run) -> Result:
        return self._results[run]

    def of(self, stage: str) -> list[Result]:
        """Those of a stage, in the order in which they finished."""
        return [result for result in self if result.run.stage == stage]

    def add(self, result: Result) -> None:
        """Append a line; it is on the disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(without_nan(asdict(result)), allow_nan=False) + "\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._results[result.run] = result


def curve_of(
    probability: NDArray[np.floating], lesion: NDArray[np.bool_]
) -> tuple[tuple[int, int], ...]:
    """Healthy and lesion voxels with a logit of `LOGITS` or more."""
    thresholds = 1 / (1 + np.exp(-LOGITS))
    ranked = [np.sort(probability[kind]) for kind in (~lesion, lesion)]
    below = [np.searchsorted(values, thresholds, side="left") for values in ranked]
    counts = [len(v) - b for v, b in zip(ranked, below, strict=True)]
    return tuple((int(healthy), int(sick)) for healthy, sick in zip(*counts, strict=True))


def _read(path: Path) -> Iterator[Result]:
    if not path.is_file():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            yield _result(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: not a result of this program ({error}): remove the line, "
                "and the run is repeated."
            ) from error


def _result(content: dict[str, Any]) -> Result:
    tests = {
        name: Tested(
            Scores(**_with_nan(tested["pooled"])),
            tuple(
                SubjectResult(
                    **{
                        **subject,
                        "scores": Scores(**_with_nan(subject["scores"])),
                        "lesions": LesionCounts(**subject["lesions"]),
                        "curve": tuple((h, s) for h, s in subject["curve"]),
                    }
                )
                for subject in tested["subjects"]
            ),
        )
        for name, tested in content["tests"].items()
    }
    validation = tuple((int(step), float(score)) for step, score in content["validation"])
    return Result(
        **{**content, "run": Run(**content["run"]), "validation": validation, "tests": tests}
    )


def _with_nan(value: dict[str, Any]) -> dict[str, Any]:
    return {key: math.nan if item is None else item for key, item in value.items()}
