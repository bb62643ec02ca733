"""Training of a network for a task, on boxes cut out of scans, with early stopping.

The parts are Lightning modules and can be used with any Lightning trainer: `PatchDataModule` cuts
the boxes and contains the validation scans, `TaskModule` computes the loss of a `Task` and the
validation score and has the optimiser, and `BudgetCallback` schedules the learning rate by the
spent fraction of the time or the steps.  `train` combines them.  See `tripq.tasks` for tasks.
"""

from __future__ import annotations

from tripq.training.augment import Augment, Augmentation
from tripq.training.batch import Batch
from tripq.training.budget import Budget, BudgetCallback, Progress, learning_rate_factor
from tripq.training.module import TaskModule, score_scans, settle_batch_norm
from tripq.training.patches import PatchDataModule, PatchDataset, cut_box
from tripq.training.run import (
    Stopping,
    TrainingRecord,
    choose_precision,
    read_record,
    train,
    training_state,
)
from tripq.training.task import Scan, Task

__all__ = [
    "Augment",
    "Augmentation",
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
    "read_record",
    "score_scans",
    "settle_batch_norm",
    "train",
    "training_state",
]
