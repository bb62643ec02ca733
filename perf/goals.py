"""Performance goals, and the verdict on each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rows import Row, Run

#: The method of the goals: the default back end.
DEFAULT = "auto"

Column = Literal["forward", "forward_backward", "peak_memory"]


@dataclass(frozen=True)
class Figure:
    """A column of the row of a method."""

    method: str
    column: Column


@dataclass(frozen=True)
class Goal:
    """A bound on a figure, or on the ratio of two of the same run.

    Attributes
    ----------
    device : {"cpu", "h200"}
        What the name of the device has in it.
    workload, quantity : str
        In words.
    figure, unit_figure : Figure
        What is bounded, and what it is divided by, if anything.
    bound : float
        In `unit`.
    unit : str
        Of the bound: "s", "ms", "MB", "GB", "C", or "times".
    at_least : bool
        Whether more is better.
    """

    device: Literal["cpu", "h200"]
    workload: str
    quantity: str
    figure: Figure
    bound: float
    unit: str
    per: Figure | None = None
    at_least: bool = False

    def value(self, runs: Sequence[Run]) -> float | str:
        """What was measured, in the goal's unit, or why there is nothing."""
        run = next((r for r in runs if r.workload == self.workload and r.dtype == "float32"), None)
        if run is None:
            return "not measured"
        value = _value(run, self.figure)
        unit = _UNITS.get(self.unit, 1.0) if self.per is None else _value(run, self.per)
        for given in (value, unit):
            if isinstance(given, str):
                return given
        return value / unit

    def verdict(self, runs: Sequence[Run]) -> str:
        """Met, missed by how much, or not measured."""
        value = self.value(runs)
        if isinstance(value, str):
            return value
        ratio = self.bound / value if self.at_least else value / self.bound
        return "met" if ratio <= 1 else f"missed by a factor of {ratio:.3f}"

    def show(self, value: float) -> str:
        """A value or the bound, with its unit."""
        return f"{_digits(value)} {self.unit}"

    @property
    def limit(self) -> str:
        """The bound in words."""
        return f"{'at least' if self.at_least else 'at most'} {self.show(self.bound)}"


_UNITS = {"ms": 1e-3, "MB": 1e6, "GB": 1e9}


def _value(run: Run, figure: Figure) -> float | str:
    row = run.row(figure.method) or Row(run.workload, figure.method)
    value = getattr(row, figure.column)
    if value is None and row.note:
        return f"not measured ({figure.method}: {row.note.removeprefix('not measured: ')})"
    return "not measured" if value is None else float(value)


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


_BOTH = Figure(DEFAULT, "forward_backward")
_FORWARD = Figure(DEFAULT, "forward")
_PEAK = Figure(DEFAULT, "peak_memory")
_C = Figure("conv3d", "forward")
_BOTH_WORDS = "forward + backward"
_FORWARD_WORDS = "forward"
_PEAK_WORDS = "peak memory"

GOALS = (
    Goal("cpu", "block", _BOTH_WORDS, _BOTH, 1, "C", _C),
    Goal("cpu", "block", _PEAK_WORDS, _PEAK, 500, "MB"),
    Goal("cpu", "block", _FORWARD_WORDS, _FORWARD, 1, "C", _C),
    Goal("cpu", "block2", _BOTH_WORDS, _BOTH, 0.5, "C", _C),
    Goal("cpu", "block2", _PEAK_WORDS, _PEAK, 200, "MB"),
    Goal("cpu", "block2", _FORWARD_WORDS, _FORWARD, 1, "C", _C),
    Goal(
        "cpu",
        "block2",
        "slow-down of e3nn, edge by edge, forward",
        Figure("e3nn", "forward"),
        3000,
        "times",
        _FORWARD,
        at_least=True,
    ),
    Goal(
        "cpu",
        "patch",
        "slow-down of `dense`, forward + backward",
        Figure("dense", "forward_backward"),
        5,
        "times",
        _BOTH,
        at_least=True,
    ),
    Goal(
        "cpu",
        "patch",
        "peak memory of `dense`, relative to tripq",
        Figure("dense", "peak_memory"),
        10,
        "times",
        _PEAK,
        at_least=True,
    ),
    Goal("cpu", "wide", "peak memory, forward + backward", _PEAK, 2, "GB"),
    Goal("cpu", "brain", "forward", _FORWARD, 30, "s"),
    Goal("cpu", "brain", _PEAK_WORDS, _PEAK, 3, "GB"),
    Goal(
        "cpu",
        "segmenter-step",
        "training step, relative to convolutions",
        _BOTH,
        1.1,
        "times",
        Figure("conv-network", "forward_backward"),
    ),
    Goal("cpu", "segmenter-brain", "time", _FORWARD, 60, "s"),
    Goal("cpu", "segmenter-brain", _PEAK_WORDS, _PEAK, 4, "GB"),
    Goal("h200", "brain-inner", "forward", _FORWARD, 40, "ms"),
    Goal("h200", "brain-inner", "forward + backward", _BOTH, 120, "ms"),
    Goal(
        "h200",
        "brain-inner",
        "slow-down of `dense` in TF32, forward + backward",
        Figure("dense-tf32", "forward_backward"),
        10,
        "times",
        _BOTH,
        at_least=True,
    ),
    Goal(
        "h200",
        "cloud",
        "time relative to OpenEquivariance, forward + backward",
        _BOTH,
        1,
        "times",
        Figure("openequivariance", "forward_backward"),
    ),
)


def judged(slug: str, runs: Sequence[Run]) -> list[tuple[Goal, str, str]]:
    """The goals for a device of that name, what was measured, and the verdict."""
    rows = []
    for goal in GOALS:
        if goal.device in slug:
            value = goal.value(runs)
            shown = value if isinstance(value, str) else goal.show(value)
            rows.append((goal, "—" if isinstance(value, str) else shown, goal.verdict(runs)))
    return rows
