"""Trains a small network in as many processes as torchrun starts; each saves what it has.

[torchrun --nproc-per-node N] train_in_ranks.py OUT N_VALIDATION [SECONDS]
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

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


if __name__ == "__main__":
    module.N_SETTLING = FEW_SETTLING
    main(Path(sys.argv[1]), int(sys.argv[2]), *map(float, sys.argv[3:]))
