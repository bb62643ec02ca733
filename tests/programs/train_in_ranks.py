"""Trains a small network as one of several processes, which saves what it has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from tests.conftest import FEW_SETTLING
from tests.training.test_training import equivariant, labelled_scan
from tripq.infra.rank import Rank
from tripq.tasks.lesions.task import LesionTask
from tripq.training import Budget, PatchDataModule, Stopping, module, train


def main(out: Path, n_validation: int, seconds: float | None = None) -> None:
    budget = Budget(steps=6) if seconds is None else Budget(seconds=seconds)
    network = equivariant()
    patches = PatchDataModule(
        [labelled_scan(0), labelled_scan(1)],
        LesionTask(),
        radius=2.6,
        box_size=8,
        n_boxes=4,
        validation=[labelled_scan(seed) for seed in range(2, 2 + n_validation)],
    )
    stopping = Stopping(every=3, patience=1000, warm_up=4)
    record = train(network, patches, budget, stopping=stopping, folder=out / "checkpoints")
    torch.save(
        {"weights": network.state_dict(), **asdict(record)}, out / f"rank-{Rank.here().number}.pt"
    )


def run(environment: Mapping[str, str], out: Path, n_validation: int, *seconds: float) -> None:
    """In a process of its own."""
    os.environ.update(environment)
    module.N_SETTLING = FEW_SETTLING
    main(out, n_validation, *seconds)
