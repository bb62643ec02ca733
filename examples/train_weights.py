"""Train the network that comes with tripq, and write its model card.

    python examples/train_weights.py --accept-licences

It uses the cohort of examples/reproduce_paper.py and its first split: the training patients,
scanned in every way that is there (heads, poses, gradient tables, shells); the validation patients
end the training and set the threshold; the test patients are segmented once, for the card.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from paper.cohort import Scans
from paper.command import AcceptLicences, Data, Device, Out, start
from paper.plan import (
    CANDIDATES,
    FULL,
    MORE_HEADS,
    ROTATED,
    SNR,
    TURNED,
    USUAL,
    Plan,
    Split,
    split_patients,
)
from paper.statistics import headline
from paper.work import CAUTION, choose_threshold, score_maps
from reproduce_paper import write_cohorts
from rich.console import Console

from tripq.networks.blocks import graph_radius
from tripq.networks.checkpoint import read_notes, save_network
from tripq.tasks.lesions.datasets import LabelledSubject, OpenMS, open_ms
from tripq.tasks.lesions.segmentation import segment
from tripq.tasks.lesions.task import LesionTask
from tripq.tasks.lesions.weights import default_weights, weights_header
from tripq.training import Budget, PatchDataModule, Progress, Stopping, train

ROOT = Path(__file__).parents[1]
WEIGHTS = default_weights()
CARD = ROOT / "docs" / "weights.md"
TEMPLATE = Path(__file__).parent / "paper" / "weights_card.md"

#: Of the experiment, at a size of voxels that most research scans have or come near.
PLAN = replace(FULL, voxel_size=2.0, box_size=24, families=("equivariant",), variants=False)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console()


@app.command()
def main(
    out: Out = Path("runs/weights"),
    data: Data = None,
    accept_licences: AcceptLicences = False,
    device: Device = "cpu",
    steps: Annotated[int, typer.Option(min=1, help="At most.")] = 2400,
) -> None:
    """Train, test, and write weights and card; training that was interrupted goes on."""
    sources = open_ms(accept_licences=accept_licences, local=data)
    ship(PLAN, sources, out, WEIGHTS, CARD, steps=steps, every=200, device=device)


def ship(
    plan: Plan,
    sources: OpenMS,
    out: Path,
    weights: Path,
    card: Path,
    *,
    steps: int,
    every: int,
    device: str = "cpu",
) -> None:
    """Train on the first split of a plan, and write the weights and their card."""
    patients = plan.patients or sources.patients
    splits = split_patients(patients, plan.n_validation, plan.n_test, plan.seeds)
    scans, split = Scans(out / "cohorts"), splits[0]
    write_cohorts(scans, sources, plan, patients, splits)
    shown = scans_of(plan, sources, scans, splits)
    validation = scans.load(USUAL, split.validation)
    contender = CANDIDATES["equivariant"][0]
    torch.manual_seed(0)
    network = contender.build(plan.voxel_size)
    patches = PatchDataModule(
        shown,
        LesionTask(),
        radius=graph_radius(network),
        box_size=plan.box_size,
        n_boxes=plan.n_boxes,
        validation=validation,
    )

    def report(progress: Progress) -> None:
        if progress.steps % 50 == 0:
            console.print(f"step {progress.steps}, loss {progress.loss:.4f}")

    record = train(
        network,
        patches,
        Budget(steps=steps),
        stopping=Stopping(every, patience=5, falling=True),
        folder=out / "runs" / "weights",
        learning_rate=contender.learning_rate,
        weight_decay=contender.weight_decay,
        precision="auto",
        device=device,
        report=report,
    )
    console.print(f"{record.steps:,} steps on the {device} in {record.precision}")
    network = network.to(device)
    maps = [segment(network, subject.dwi, device=device) for subject in validation]
    threshold = choose_threshold(validation, maps)
    b_values = sorted({round(shell.b_value) for s in shown for shell in s.dwi.shells})
    save_network(
        network,
        weights,
        {
            "caution": CAUTION,
            "threshold": f"{threshold:.4f}",
            "voxel_size_mm": f"{plan.voxel_size:g}",
            "b_values": " ".join(map(str, b_values)),
            "fewest_directions": str(min(len(shell) for s in shown for shell in s.dwi.shells)),
            "data": "simulated diffusion signal, real lesion outlines (Lesjak et al. 2017)",
        },
    )
    rows = []
    for condition in (USUAL, ROTATED, *plan.other_tables):
        subjects = scans.load(condition, split.test)
        tested = score_maps(
            subjects, [segment(network, s.dwi, device=device) for s in subjects], threshold
        )
        rows.append(
            f"| {condition.says} | " + " | ".join(f"{v:.3f}" for v in headline(tested)) + " |"
        )
    step, score = record.best or (0, float("nan"))
    page = TEMPLATE.read_text(encoding="utf-8")
    card.write_text(
        weights_header(read_notes(weights))
        + "\n"
        + page.format(
            weights=sum(values.numel() for values in network.parameters()),
            kilobytes=os.path.getsize(weights) / 1000,
            network=json.dumps(contender.says),
            training=len(split.training),
            validation=len(split.validation),
            test=len(split.test),
            scans=len(shown),
            voxel_size=plan.voxel_size,
            snr=SNR,
            steps=record.steps,
            minutes=record.seconds / 60,
            step=step,
            score=score,
            threshold=threshold,
            b_values=", ".join(map(str, b_values)),
            rows="\n".join(rows),
        ),
        encoding="utf-8",
    )
    console.print(f"written: {weights}, {card}", markup=False)


def scans_of(
    plan: Plan, sources: OpenMS, scans: Scans, splits: Sequence[Split]
) -> list[LabelledSubject]:
    """All scans of the training patients, and other tables of those whom other splits test."""
    training = splits[0].training
    shown = []
    for condition in (USUAL, TURNED, *MORE_HEADS):
        scans.write(sources, condition, training, plan.voxel_size)
        shown += scans.load(condition, training)
    elsewhere = {patient for split in splits[1:] for patient in split.test}
    if both := [patient for patient in training if patient in elsewhere]:
        for condition in (ROTATED, *plan.other_tables):
            shown += scans.load(condition, both)
    return shown


if __name__ == "__main__":
    start(app)
