"""Training of a network for a task, on boxes cut out of scans, until other scans get no better.

The parts are those of Lightning, so that they can be used with a trainer of one's own:
`PatchDataModule` cuts the boxes and holds the scans to validate on, `TaskModule` has the loss of a
`Task`, the optimiser and the score of the validation, and `BudgetCallback` lets the learning rate
follow what is spent of the time or the steps that are given.  `train` puts them together; see
`tripq.tasks` for tasks.
"""

from __future__ import annotations

from tripq.training.batch import Batch
from tripq.training.budget import Budget, BudgetCallback, Progress, learning_rate_factor
from tripq.training.module import TaskModule, score_scans, settle_batch_norm
from tripq.training.patches import PatchDataModule, PatchDataset, cut_box
from tripq.training.run import (
    Stopping,
    TrainingRecord,
    choose_precision,
    train,
    training_state,
)
from tripq.training.task import Scan, Task

__all__ = [
    "Batch",
    "Budget",
    "BudgetCallback",
    "PatchDataModule",
    "PatchDataset",
    "Progress",
    "Scan",
    "Stopping",
    "Task",
    "TaskModule",
    "TrainingRecord",
    "choose_precision",
    "cut_box",
    "learning_rate_factor",
    "score_scans",
    "settle_batch_norm",
    "train",
    "training_state",
]
