"""Ship the lesion network that was trained with all heads: its file and its model card.

    python examples/train_on_heads.py --heads FOLDER --accept-licences
    python examples/measure_weights.py --heads FOLDER --accept-licences --left-out runs/heads --save
    python examples/ship_weights.py --heads FOLDER --accept-licences

The test patients are segmented on every kind of simulated scan.  For real heads, which this network
has all seen, the card has the results of the networks that have not (docs/real-heads.md).
"""

from __future__ import annotations

import os
from pathlib import Path

import typer
from measure_weights import ROOT, results_of
from paper.command import AcceptLicences, Data, Out
from paper.head_page import found_in_healthy_heads, people_table, summary
from paper.head_tests import Tests, simulated_scores
from paper.mixture import GRIDS
from paper.plan import OTHER_TABLES, ROTATED, USUAL, Condition
from paper.real_heads import Heads, list_licences
from paper.recipes import EQUIVARIANT
from rich.console import Console
from study.command import start
from train_on_heads import NETWORK, OUT, QUIET, Cohorts, Studio

from tripq.networks.blocks import graph_radius
from tripq.networks.checkpoint import load_network, read_notes, save_network
from tripq.tasks.lesions.command import LesionCommands
from tripq.tasks.lesions.datasets import open_ms
from tripq.tasks.lesions.segmentation import load_model
from tripq.tasks.lesions.task import LesionTask
from tripq.tasks.lesions.weights import weights_header
from tripq.training import read_record

CARD = ROOT / "docs" / "weights.md"
TEMPLATE = Path(__file__).parent / "paper" / "weights_card.md"

#: Kinds of simulated scans on the card.
CONDITIONS = (USUAL, ROTATED, *OTHER_TABLES, *GRIDS)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console()


@app.command()
def main(
    heads: Heads, out: Out = OUT, data: Data = None, accept_licences: AcceptLicences = False
) -> None:
    """Write the weights that come with tripq and their card."""
    sources = open_ms(accept_licences=accept_licences, local=data)
    studio = Studio(Cohorts.of_first_split(sources, out, heads))
    weights = LesionCommands().included_weights()
    ship(studio, Tests.read(results_of(EQUIVARIANT)), CONDITIONS, weights, CARD)
    console.print(f"written: {weights}, {CARD}", markup=False)


def ship(
    studio: Studio, real: Tests, conditions: tuple[Condition, ...], weights: Path, card: Path
) -> None:
    """Copy the network with a note on healthy heads, test it, and write its card."""
    trained = studio.folder("all") / NETWORK
    notes = {**read_notes(trained), "healthy_heads": found_in_healthy_heads(real)}
    network = load_network(trained)
    save_network(network, weights, notes)
    model, cohorts = load_model(weights), studio.cohorts
    rows = [
        f"| {condition.says} | " + " | ".join(f"{value:.3f}" for value in scores) + " |"
        for condition in conditions
        for scores in [simulated_scores(cohorts.under(condition, cohorts.split.test), model)]
    ]
    record = read_record(studio.folder("base"), LesionTask.mode)
    if record is None or not record.scores:
        raise typer.BadParameter(f"{studio.folder('base')}: the training is not finished.")
    score = record.scores[-1][1]
    smallest, largest = notes["voxel_size_mm"].split()
    heads = cohorts.heads
    page = TEMPLATE.read_text(encoding="utf-8")
    card.write_text(
        weights_header(notes)
        + "\n"
        + page.format(
            weights=sum(values.numel() for values in network.parameters()),
            kilobytes=os.path.getsize(weights) / 1000,
            radius=graph_radius(network),
            training=len(cohorts.split.training),
            validation=len(cohorts.split.validation),
            test=len(cohorts.split.test),
            scans=len(cohorts.pairs()),
            heads=len(heads),
            people=len(cohorts.people),
            smallest=smallest,
            largest=largest,
            fewest=notes["fewest_directions"],
            b_values=notes["b_values"].replace(" ", ", "),
            base_steps=record.steps,
            base_minutes=record.seconds / 60,
            score=score,
            head_steps=studio.recipe.with_heads.steps,
            threshold=model.threshold,
            min_volume=model.min_volume,
            quiet=QUIET,
            summary=summary(real),
            people_table=people_table(real),
            rows="\n".join(rows),
            licences=list_licences(heads),
        ),
        encoding="utf-8",
    )


if __name__ == "__main__":
    start(app)
