"""Measure a lesion network in real heads, and on simulated scans.

    python examples/measure_weights.py --heads FOLDER --accept-licences           # that of tripq
    python examples/measure_weights.py --heads FOLDER --accept-licences --network FILE
    python examples/measure_weights.py --heads FOLDER --accept-licences --left-out runs/heads --save

Real heads are segmented as they are, where whatever is marked is a false positive, and with
implanted lesions of the test patients.  The network must not have seen them; ``--left-out`` takes
for each head the network of examples/train_on_heads.py that has seen neither its person nor its
scanner.  The simulated scans are those of the test patients.

``--save``, with ``--left-out``, keeps the results, which examples/ship_weights.py needs, and writes
docs/real-heads.md.  ``--recipe`` measures a rival in the same way.  ``--pictures FOLDER`` writes,
for each healthy head, the slice with most of what was marked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from paper import head_page
from paper.command import AcceptLicences, Data
from paper.head_tests import (
    Simulated,
    Tests,
    measure_healthy,
    measure_implanted,
    measure_repeats,
    measure_simulated,
)
from paper.plan import USUAL
from paper.real_heads import Heads
from paper.recipes import EQUIVARIANT, RECIPES, OfRecipe, Recipe
from rich.console import Console
from study.command import start
from train_on_heads import OUT, Cohorts, Studio

from tripq.tasks.lesions.command import LesionCommands
from tripq.tasks.lesions.datasets import open_ms
from tripq.tasks.lesions.segmentation import Model, load_model, segment_scan

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RESULTS = ROOT / "perf" / "results" / "lesions"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console()


@app.command()
def main(
    heads: Heads,
    out: Annotated[Path, typer.Option(help="Folder of the cohorts.")] = OUT,
    data: Data = None,
    accept_licences: AcceptLicences = False,
    network: Annotated[
        Path | None, typer.Option(help="A .safetensors.  [default: that of tripq]")
    ] = None,
    left_out: Annotated[
        Path | None, typer.Option(help="Folder of examples/train_on_heads.py, for its networks.")
    ] = None,
    recipe: OfRecipe = EQUIVARIANT.name,
    pictures: Annotated[Path | None, typer.Option(help="Folder for pictures.")] = None,
    save: Annotated[bool, typer.Option("--save", help="Write results and pages.")] = False,
) -> None:
    """Segment real heads and simulated scans, and list what was marked and found."""
    if recipe != EQUIVARIANT.name and not left_out:
        raise typer.BadParameter("a rival is measured with --left-out.", param_hint="--recipe")
    if save and (network or not left_out):
        raise typer.BadParameter(
            "the page is about networks that have not seen a head: it needs --left-out.",
            param_hint="--save",
        )
    sources = open_ms(accept_licences=accept_licences, local=data)
    cohorts = Cohorts.of_first_split(sources, out, heads)

    def unseen(person: str) -> Model:
        if left_out is None:
            return load_model(network or LesionCommands().included_weights())
        studio = Studio(replace(cohorts, folder=left_out), RECIPES[recipe])
        return load_model(studio.network_without(person))

    tests = measure(cohorts, unseen, pictures)
    console.print(head_page.summary(tests), markup=False)
    if save:
        tests.write(results_of(RECIPES[recipe]))
        write_page()


def results_of(recipe: Recipe) -> Path:
    """File of the results of a network that has not seen the heads."""
    return RESULTS / f"real_heads_{recipe.name}.json"


def write_page() -> None:
    """Write the tables of docs/real-heads.md from the results that are there."""
    if not results_of(EQUIVARIANT).is_file():
        console.print(f"no page before {results_of(EQUIVARIANT)} is there", markup=False)
        return
    done = [recipe for recipe in RECIPES.values() if results_of(recipe).is_file()]
    networks = {recipe: Tests.read(results_of(recipe)) for recipe in done}
    head_page.write_page(networks, DOCS / "real-heads.md")


def measure(cohorts: Cohorts, unseen: Callable[[str], Model], pictures: Path | None) -> Tests:
    """All tests; `unseen` gives a network that has not seen a person."""
    healthy, implanted, simulated, repeats = [], [], [], []
    usual = cohorts.under(USUAL, cohorts.split.test)
    of_network: dict[Path, Simulated] = {}  # one network may serve for all people
    for person in cohorts.people:
        model = unseen(person)
        scans = [head for head in cohorts.heads if head.person == person]
        found = {head.name: segment_scan(model, head.read(cohorts.data)) for head in scans}
        for head in scans:
            healthy.append(measure_healthy(head, found[head.name], model, pictures))
            console.print(healthy[-1], markup=False)
        for subject in cohorts.implanted("test", scans):
            implanted.append(measure_implanted(person, subject, cohorts.implants, model))
            console.print(implanted[-1], markup=False)
        if model.path not in of_network:
            of_network[model.path] = measure_simulated(person, usual, model)
        simulated.append(replace(of_network[model.path], person=person))
        console.print(simulated[-1], markup=False)
        repeats += measure_repeats(found)
    return Tests(tuple(healthy), tuple(implanted), tuple(simulated), tuple(repeats))


if __name__ == "__main__":
    start(app)
