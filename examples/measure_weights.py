"""Measure the networks of examples/train_weights.py, and write their pages.

    python examples/train_weights.py --heads FOLDER --accept-licences
    python examples/measure_weights.py --heads FOLDER --accept-licences --save

Every real head is segmented by the network that has seen neither its person nor its scanner:

* as it is: whatever is marked is a false positive;
* with implanted lesions of the test patients: what is found of them, and how well the probabilities
  are calibrated.

The simulated scans of the test patients are segmented by the same networks, and under every
condition by the network that is shipped.  ``--network FILE`` measures one network on all heads
instead.  ``--pictures FOLDER`` writes, for each healthy head, the slice with most of what was
marked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from paper import head_page
from paper.command import AcceptLicences, Data, start
from paper.head_tests import (
    REPEATED,
    WITHOUT,
    Tests,
    measure_healthy,
    measure_implanted,
    measure_repeats,
    measure_simulated,
)
from paper.plan import USUAL, split_patients
from paper.real_heads import Heads
from rich.console import Console
from train_weights import IMPLANTED, NETWORK, OUT, PLAN, RADIUS, Cohorts, Studio

from tripq.networks.checkpoint import load_network, read_notes, save_network
from tripq.tasks.lesions.datasets import open_ms
from tripq.tasks.lesions.segmentation import Model, load_model
from tripq.tasks.lesions.weights import default_weights

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TEMPLATE = Path(__file__).parent / "paper" / "weights_card.md"
RESULTS = ROOT / "perf" / "results" / "laws" / "real_heads.json"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console()


@app.command()
def main(
    heads: Heads,
    out: Annotated[Path, typer.Option(help="Folder of examples/train_weights.py.")] = OUT,
    data: Data = None,
    accept_licences: AcceptLicences = False,
    network: Annotated[
        Path | None, typer.Option(help="One network for all heads, a .safetensors.")
    ] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder for pictures.")] = None,
    save: Annotated[bool, typer.Option("--save", help="Write results and pages.")] = False,
) -> None:
    """Segment real heads and simulated scans, and list what was marked and found."""
    if network is not None and save:
        raise typer.BadParameter("the pages are about the networks of a training: no --network.")
    sources = open_ms(accept_licences=accept_licences, local=data)
    split = split_patients(sources.patients, PLAN.n_validation, PLAN.n_test, PLAN.seeds)[0]
    cohorts = Cohorts(sources, split, out, heads)
    studio = Studio(cohorts)

    def unseen(person: str) -> Model:
        return load_model(network or studio.folder(f"without-{person}") / NETWORK)

    shipped = network or default_weights()
    tests = measure(cohorts, unseen, load_model(shipped), pictures)
    console.print(head_page.summary(tests), markup=False)
    if save:
        tests.write(RESULTS)
        notes = {**read_notes(shipped), "healthy_heads": head_page.found_on_healthy_heads(tests)}
        save_network(load_network(shipped), shipped, notes)
        head_page.write_page(tests, DOCS / "real-heads.md")
        (DOCS / "weights.md").write_text(card(studio, tests, default_weights()), encoding="utf-8")


def measure(
    cohorts: Cohorts, unseen: Callable[[str], Model], shipped: Model, pictures: Path | None
) -> Tests:
    """All tests; `unseen` gives the network that has not seen a person."""
    healthy, implanted, simulated = [], [], []
    for person in cohorts.people:
        model = unseen(person)
        scans = [head for head in cohorts.heads if head.person == person]
        for head in scans:
            healthy.append(measure_healthy(head, cohorts.data, model, pictures))
            console.print(healthy[-1], markup=False)
        for subject in cohorts.implanted("test", scans):
            implanted.append(measure_implanted(person, subject, cohorts.implants, model))
            console.print(implanted[-1], markup=False)
        usual = cohorts.under(USUAL, cohorts.split.test)
        simulated.append(measure_simulated(f"{WITHOUT}{person}", usual, model))
        console.print(simulated[-1], markup=False)
    for condition in cohorts.mixture.test:
        subjects = cohorts.under(condition, cohorts.split.test)
        simulated.append(measure_simulated(condition.says, subjects, shipped))
        console.print(simulated[-1], markup=False)
    repeats = tuple(
        row
        for person in cohorts.people
        if any(head.name == REPEATED for head in cohorts.heads if head.person == person)
        for row in measure_repeats(person, cohorts.data, unseen(person))
    )
    return Tests(tuple(healthy), tuple(implanted), tuple(simulated), repeats)


def card(studio: Studio, tests: Tests, weights: Path) -> str:
    """The model card of the shipped network."""
    cohorts, schedule = studio.cohorts, studio.schedule
    notes = read_notes(weights)
    network = load_network(weights)
    split, mixture = cohorts.split, cohorts.mixture
    return (TEMPLATE.read_text(encoding="utf-8")).format(
        summary=head_page.summary(tests),
        weights=sum(values.numel() for values in network.parameters()),
        kilobytes=weights.stat().st_size / 1000,
        radius=RADIUS,
        simulated=len(cohorts.pairs()),
        training=len(split.training),
        validation=len(split.validation),
        test=len(split.test),
        heads=len(cohorts.heads),
        people=len(cohorts.people),
        implanted=IMPLANTED["training"] * len(cohorts.people),
        voxel_sizes=" to ".join(notes["voxel_size_mm"].split()),
        b_values=", ".join(notes["b_values"].split()),
        fewest=notes["fewest_directions"],
        steps=schedule.base.steps,
        fine_steps=schedule.with_heads.steps,
        threshold=float(notes["threshold"]),
        min_volume=float(notes["min_volume_ml"]),
        mixture="\n".join(
            f"| {c.says} | {'random' if c.randomised else format(c.snr, 'g')} | "
            f"{'usual' if c.max_rotation < 180 else 'any'} |"
            for c in mixture.training
        ),
        simulated_table=head_page.simulated_table(tests.simulated),
    )


if __name__ == "__main__":
    start(app)
