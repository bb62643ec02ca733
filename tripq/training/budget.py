"""Length of a training, and the schedule of the learning rate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L

from tripq.training.module import TaskModule

#: Fraction of the budget in which the learning rate rises; in the rest it falls like a cosine.
WARM_UP = 0.1


@dataclass(frozen=True)
class Budget:
    """Length of a training; it ends when either number is reached.

    Parameters
    ----------
    seconds : float
        Time of training, without the preparation before the first step.
    steps : int, optional
        Steps of the optimiser.  With steps alone training is exactly reproducible.

    Raises
    ------
    ValueError
        If neither is given, or one is not above 0.
    """

    seconds: float = math.inf
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.steps is None and math.isinf(self.seconds):
            raise ValueError("a budget needs seconds or steps")
        if not self.seconds > 0 or (self.steps is not None and self.steps < 1):
            raise ValueError(f"a budget must be above 0, not {self}")

    def spent(self, seconds: float, steps: float) -> float:
        """Spent fraction of the budget, from 0 to 1.

        Examples
        --------
        >>> Budget(seconds=60, steps=100).spent(seconds=15, steps=50)
        0.5
        """
        by_steps = steps / self.steps if self.steps is not None else 0.0
        return min(1.0, max(seconds / self.seconds, by_steps))


def learning_rate_factor(spent: float) -> float:
    """Fraction of the highest learning rate: a rise, then half a cosine to 0.

    Examples
    --------
    >>> [round(learning_rate_factor(spent), 3) for spent in (0.05, 0.1, 0.55, 1.0)]
    [0.5, 1.0, 0.5, 0.0]
    """
    if spent < WARM_UP:
        return spent / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (spent - WARM_UP) / (1 - WARM_UP)))


@dataclass(frozen=True)
class Progress:
    """The progress of a training.

    Attributes
    ----------
    spent : float
        Spent fraction of the budget, from 0 to 1.
    steps : int
        Finished steps.
    loss : float
        Loss of the last batch.
    scores : tuple of (int, float)
        Step and score of every validation so far.
    """

    spent: float
    steps: int
    loss: float
    scores: tuple[tuple[int, float], ...] = ()


class BudgetCallback(L.Callback):
    """Ends training with the budget, and schedules the learning rate by its spent fraction.

    A schedule in steps would need the number of steps that the time allows.  This schedule ends at
    a low rate on any machine.

    Parameters
    ----------
    budget : Budget
        Length of the training.
    report : callable, optional
        Called with a `Progress` after every step.
    warm_up : int, optional
        Steps in which the learning rate rises; then it is constant.  By default it rises and falls
        with the budget; see `learning_rate_factor`.
    """

    def __init__(
        self,
        budget: Budget,
        report: Callable[[Progress], None] | None = None,
        *,
        warm_up: int | None = None,
    ) -> None:
        self.budget = budget
        self.report = report
        self.warm_up = warm_up
        self.losses: list[float] = []
        self.scores: list[tuple[int, float]] = []
        self.seconds = 0.0
        self._start = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start or resume the clock."""
        self._start = time.perf_counter() - self.seconds

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the learning rate for the middle of the next step."""
        assert isinstance(pl_module, TaskModule)
        middle = len(self.losses) + 0.5
        if self.warm_up is not None:
            factor = min(1.0, middle / self.warm_up)
        else:
            elapsed = self._elapsed(trainer)
            half = 0.5 * (elapsed / len(self.losses) if self.losses else 0.0)
            factor = learning_rate_factor(self.budget.spent(elapsed + half, middle))
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = factor * pl_module.learning_rate

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Record the loss, report progress, and stop when the budget is spent."""
        self.losses.append(
            float(trainer.strategy.reduce(outputs["loss"].clone(), reduce_op="mean"))
        )
        self.seconds = self._elapsed(trainer)
        spent = self.budget.spent(self.seconds, len(self.losses))
        if self.report is not None:
            self.report(Progress(spent, len(self.losses), self.losses[-1], tuple(self.scores)))
        if spent >= 1:
            trainer.should_stop = True

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the score."""
        assert isinstance(pl_module, TaskModule)
        score = trainer.callback_metrics[pl_module.task.score]
        self.scores.append((trainer.global_step, float(score)))

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint: the losses, the scores and the seconds so far."""
        return {"losses": self.losses, "scores": self.scores, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a checkpoint."""
        self.losses = list(state_dict["losses"])
        self.scores = [(int(step), float(score)) for step, score in state_dict["scores"]]
        self.seconds = float(state_dict["seconds"])

    def _elapsed(self, trainer: L.Trainer) -> float:
        elapsed = time.perf_counter() - self._start
        if math.isinf(self.budget.seconds):
            return elapsed
        return trainer.strategy.broadcast(elapsed)  # all processes stop at the same step
