"""Training on boxes cut out of labelled scans, until other scans are segmented no better.

The parts are those of Lightning, so that they can be used with a trainer of one's own:
`PatchDataModule` cuts the boxes and holds the scans to validate on, `SegmentationModule` has the
loss, the optimiser and the score of the validation, and `BudgetCallback` lets the learning rate
follow what is spent of the time or the steps that are given.  `train` puts them together:

>>> from tripq.tasks.lesions.segmenter import LesionSegmenter
>>> from tripq.simulate import default_anatomy, simulate_cohort
>>> anatomy = default_anatomy(5.0).within((-40, -60, 0), (40, 40, 30))
>>> scans = list(simulate_cohort(1, seed=0, anatomy=anatomy))
>>> network = LesionSegmenter(p_radius=6.0, n_p_layers=1)
>>> patches = PatchDataModule(scans, radius=6.0, box_size=6)
>>> train(network, patches, Budget(steps=2)).steps
2
"""

from __future__ import annotations

from tripq.tasks.lesions.training import build_segmenter, train_segmenter
from tripq.training.budget import Budget, BudgetCallback, Progress, learning_rate_factor
from tripq.training.module import (
    VALIDATION_SCORE,
    SegmentationModule,
    initialise,
    settle_batch_norm,
)
from tripq.training.patches import Batch, LabelledScan, PatchDataModule, PatchDataset, cut_box
from tripq.training.run import (
    Stopping,
    TrainingRecord,
    choose_precision,
    train,
    training_state,
)

__all__ = [
    "VALIDATION_SCORE",
    "Batch",
    "Budget",
    "BudgetCallback",
    "LabelledScan",
    "PatchDataModule",
    "PatchDataset",
    "Progress",
    "SegmentationModule",
    "Stopping",
    "TrainingRecord",
    "build_segmenter",
    "choose_precision",
    "cut_box",
    "initialise",
    "learning_rate_factor",
    "settle_batch_norm",
    "train",
    "train_segmenter",
    "training_state",
]
