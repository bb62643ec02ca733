"""The experiment of Müller et al. (arXiv:2102.06942): whether equivariance needs fewer scans.

    python examples/reproduce_paper.py --accept-licences

simulates diffusion scans of 30 patients with multiple sclerosis, with their real lesion outlines;
tunes an equivariant network, one of 3D convolutions and their rivals (see paper/rivals.py) on a few
of the patients; trains the best of each family on growing shares of the others; and tests them on
patients that none has seen: in the usual pose, with heads and gradient tables turned at random, and
with other gradient tables. It takes days on a small machine, in as many sittings as you like: a
finished run is never repeated, and an interrupted one goes on from its last validation. Families
that need MONAI are left out unless it is there: pip install 'tripq[bench]'.

Into the output folder it writes results.jsonl (every run), the networks, the figures and a page.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Annotated

import typer
from paper.cohort import Scans
from paper.command import OUT, AcceptLicences, Data, Device, Out
from paper.page import COMPARED, write_page
from paper.plan import (
    FULL,
    MORE_HEADS,
    QUICK,
    ROTATED,
    USUAL,
    VARIANTS,
    Plan,
    Split,
    split_patients,
)
from paper.results import Results
from paper.schedule import (
    Experiment,
    candidates,
    chosen,
    do,
    installed,
    main_runs,
    other_runs,
    tuning_runs,
)
from rich.console import Console
from study.command import start

from tripq.tasks.lesions.datasets import OpenMS, open_ms

DOCS = Path(__file__).parents[1] / "docs"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console()


@app.command()
def main(
    out: Out = OUT,
    data: Data = None,
    accept_licences: AcceptLicences = False,
    device: Device = "cpu",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at once.  [default: cores; 1 on cuda]")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Minutes: it shows that all works, and no more.")
    ] = False,
    save: Annotated[
        bool, typer.Option("--save", help="Write docs/experiment.md from the results, too.")
    ] = False,
    page_only: Annotated[
        bool, typer.Option("--page", help="Do no runs: write figures and page from the results.")
    ] = False,
) -> None:
    """Compare equivariant networks with others on growing shares of the scans."""
    number = jobs or (1 if device == "cuda" else os.cpu_count() or 1)
    sources = open_ms(accept_licences=accept_licences, local=data)
    failures = reproduce(
        QUICK if quick else FULL, sources, out, device=device, jobs=0 if page_only else number
    )
    if save:
        publish(out)
    console.print(f"results: {out}", markup=False)
    if failures:
        raise ValueError(f"{len(failures)} runs failed; start again to repeat them")


def reproduce(
    plan: Plan, sources: OpenMS, out: Path, *, device: str = "cpu", jobs: int = 1
) -> list[str]:
    """Do the runs that are missing, as many at once as there are jobs, and write the page.

    Returns what failed.
    """
    results = Results(out / "results.jsonl")
    able = installed(plan)
    for family in plan.families:
        if jobs and family not in able.families:
            console.print(f"left out: {family}: pip install 'tripq\\[bench]' adds it")
    patients = plan.patients or sources.patients
    splits = split_patients(patients, plan.n_validation, plan.n_test, plan.seeds)
    experiment = Experiment(plan, splits, Scans(out / "cohorts"), out, device)
    failures: list[str] = []
    if jobs:
        write_cohorts(experiment.scans, sources, able, patients, splits)
        failures += do(tuning_runs(able), results, experiment, jobs, console)
        if not failures:
            failures += do(main_runs(results, able), results, experiment, jobs, console)
            failures += do(other_runs(results, able), results, experiment, jobs, console)
    if all(family in chosen(results, plan) for family in COMPARED):
        write_page(out, results, experiment)
    elif not failures:
        raise ValueError(f"{results.path}: no page before {' and '.join(COMPARED)} are tuned")
    return failures


def write_cohorts(
    scans: Scans, sources: OpenMS, plan: Plan, patients: tuple[str, ...], splits: tuple[Split, ...]
) -> None:
    """Simulate the scans that are not there yet."""
    tested = [p for p in patients if any(p in split.test for split in splits)]
    trained = [p for p in patients if any(p in split.training for split in splits)]
    wanted = [(USUAL, list(patients)), (ROTATED, tested)]
    wanted += [(condition, tested) for condition in (*plan.other_tables, *plan.other_grids)]
    contenders = [c for some in candidates(plan).values() for c in some]
    if plan.variants:
        contenders += VARIANTS
        wanted += [(condition, trained) for condition in MORE_HEADS]
    wanted += [(c.scans, list(patients)) for c in contenders if c.scans is not USUAL]
    shown = dict.fromkeys(condition for c in contenders for condition in c.more)
    wanted += [(condition, trained) for condition in shown]
    for condition, some in wanted:
        console.print(f"cohort: {condition.says}")
        scans.write(sources, condition, some, plan.voxel_size)


def publish(out: Path) -> None:
    """Put the page, its figures and the results where the documentation has them."""
    shutil.copy(out / "results.jsonl", DOCS / "experiment.jsonl")
    shutil.copy(out / "experiment.md", DOCS / "experiment.md")
    for figure in (out / "images").glob("experiment-*.png"):
        shutil.copy(figure, DOCS / "images" / figure.name)


if __name__ == "__main__":
    start(app)
