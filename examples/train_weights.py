"""Train the network that comes with tripq, and write its model card.

    python examples/train_weights.py --accept-licences

It uses the patients of examples/reproduce_paper.py and their first split.  The training patients
are scanned with many voxel sizes, gradient tables, poses and levels of noise (`paper.mixture`);
the validation patients end the training and set the threshold; the test patients are segmented
once, for the card.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from paper.cohort import Scans
from paper.command import AcceptLicences, Data, Device, Out, start
from paper.mixture import FULL_MIXTURE, Mixture, shares
from paper.plan import FULL, SMALL, Condition, Plan, split_patients
from paper.statistics import lesions
from paper.work import CAUTION, choose_threshold, score_maps
from rich.console import Console

from tripq.networks.blocks import graph_radius
from tripq.networks.checkpoint import save_network
from tripq.tasks.lesions.datasets import LabelledSubject, OpenMS, open_ms
from tripq.tasks.lesions.segmentation import segment
from tripq.tasks.lesions.segmenter import LesionSegmenter
from tripq.tasks.lesions.task import LesionTask
from tripq.tasks.lesions.weights import default_weights
from tripq.training import Budget, PatchDataModule, Progress, Stopping, train

ROOT = Path(__file__).parents[1]
WEIGHTS = default_weights()
CARD = ROOT / "docs" / "weights.md"
TEMPLATE = Path(__file__).parent / "paper" / "weights_card.md"

#: Of the experiment; the voxels where a condition of the mixture says no size.
PLAN = replace(FULL, voxel_size=2.0)

#: Radius of the neighbourhoods in mm: maps on other grids differ least, see docs/sampling.md.
RADIUS = 4.4

LEARNING_RATE = 5e-3
WEIGHT_DECAY = 1e-2

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console()


@app.command()
def main(
    out: Out = Path("runs/weights"),
    data: Data = None,
    accept_licences: AcceptLicences = False,
    device: Device = "cpu",
    steps: Annotated[int, typer.Option(min=1, help="At most.")] = 2000,
) -> None:
    """Train, test, and write weights and card; training that was interrupted goes on."""
    sources = open_ms(accept_licences=accept_licences, local=data)
    ship(PLAN, FULL_MIXTURE, sources, out, WEIGHTS, CARD, steps=steps, every=200, device=device)


def ship(
    plan: Plan,
    mixture: Mixture,
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
    split = split_patients(patients, plan.n_validation, plan.n_test, plan.seeds)[0]
    scans = Scans(out / "cohorts")

    def simulated(condition: Condition, some: Sequence[str]) -> list[LabelledSubject]:
        console.print(f"scans: {condition.says}", markup=False)
        scans.write(sources, condition, some, plan.voxel_size)
        return scans.load(condition, some)

    shown = [
        subject
        for condition, some in shares(mixture.training, split.training, mixture.n_patients)
        for subject in simulated(condition, some)
    ]
    validation = [s for c in mixture.validation for s in simulated(c, split.validation)]
    torch.manual_seed(0)
    network = LesionSegmenter(p_radius=RADIUS, **SMALL)
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
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        precision="auto",
        device=device,
        report=report,
    )
    console.print(f"{record.steps:,} steps on the {device} in {record.precision}")
    network = network.to(device)
    maps = [segment(network, subject.dwi, device=device) for subject in validation]
    threshold = choose_threshold(validation, maps)
    b_values = sorted({round(shell.b_value) for s in shown for shell in s.dwi.shells})
    edges = [edge for s in shown for edge in s.dwi.voxel_size]
    voxel_sizes = dict.fromkeys(f"{edge:g}" for edge in (min(edges), max(edges)))
    save_network(
        network,
        weights,
        {
            "caution": CAUTION,
            "threshold": f"{threshold:.4f}",
            "voxel_size_mm": " ".join(voxel_sizes),
            "b_values": " ".join(map(str, b_values)),
            "fewest_directions": str(min(len(shell) for s in shown for shell in s.dwi.shells)),
            "data": "simulated diffusion signal, real lesion outlines (Lesjak et al. 2017)",
        },
    )
    rows = []
    for condition in mixture.test:
        subjects = simulated(condition, split.test)
        tested = score_maps(
            subjects, [segment(network, s.dwi, device=device) for s in subjects], threshold
        )
        counts = lesions(tested.subjects)
        values = (
            tested.pooled.roc_auc,
            tested.pooled.average_precision,
            tested.pooled.dice,
            counts.sensitivity,
            counts.precision,
        )
        rows.append(f"| {condition.says} | " + " | ".join(f"{v:.3f}" for v in values) + " |")
    step, score = record.best or (0, float("nan"))
    card.write_text(
        TEMPLATE.read_text(encoding="utf-8").format(
            weights=sum(values.numel() for values in network.parameters()),
            kilobytes=os.path.getsize(weights) / 1000,
            radius=RADIUS,
            training=len(split.training),
            validation=len(split.validation),
            test=len(split.test),
            scans=len(shown),
            voxel_sizes=" to ".join(voxel_sizes),
            mixture="\n".join(
                f"| {c.says} | {c.snr:g} | {'usual' if c.max_rotation < 180 else 'any'} |"
                for c in mixture.training
            ),
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


if __name__ == "__main__":
    start(app)
