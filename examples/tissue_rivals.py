"""Tissue of unseen simulated heads: the network of the task `tissue`, and convolutions.

    python examples/tissue_rivals.py
    python examples/tissue_rivals.py --save --ship FOLDER

Every network is trained on the same heads (`tissue_study.heads`): in usual poses with one table, or
in any pose with other tables.  Its learning rate is that of the best of some short pilots on the
validation head; the weights with the best validation are kept.  Rivals:

* the reference of the experiment: 3D convolutions whose channels are the directions.  It needs one
  table; scans with another one are resampled by spherical harmonics;
* convolutions on the norms of the harmonics of order 0, 2 and 4, which any table gives and no
  rotation changes;
* convolutions on FA, MD, AD and RD.

The network that comes with tripq is the equivariant one with the classes of tissue only: lesions of
the training have no label.  It is trained as the one with the class lesion, without pilots of its
own.

Convolutions on maps that are trained in any pose see their boxes in the 48 ways that map a grid
onto itself, too.  Heads, networks and results are kept in the folder of the results: finished ones
are read.  ``--save`` writes the tables of docs/tissue.md and the results.  ``--ship FOLDER`` writes
the network that comes with tripq, and its card; FOLDER has one folder for each source of
`paper.real_heads.HEADS`, on which the network is applied.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from study import kept
from study.command import Save, start
from study.weights import write_card
from tissue_study.contenders import CONTENDERS, NETWORK, SHIPPED, Study
from tissue_study.heads import TURNED, USUAL
from tissue_study.real import Volumes, measure, simulated, volumes_table
from tissue_study.results import TABLES, Results, summary, write_page

from tripq.tasks.layout import ICBM
from tripq.tasks.tissue.command import TissueCommands

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tissue.md"
CARD = ROOT / "docs" / "tissue-weights.md"
RESULTS = ROOT / "perf" / "results" / "tissue"
TEMPLATE = Path(__file__).parent / "tissue_study" / "card.md"
WEIGHTS = ROOT / "tripq" / "tasks" / "tissue" / "weights" / TissueCommands.weights

OUT = Path("runs/tissue")

BOX_SIZE, SECONDS = 24, 240.0

VOLUMES = "real-heads.json"

SEEN = """\
In the pictures of both heads white and grey matter follow the gyri, and the ventricles, also narrow
ones, and the cisterns at the base of the brain are labelled fluid. The volumes are near those of
adults (about 400 to 550 ml of white and 600 to 800 ml of grey matter); the grey matter of
`tractseg` is too large. What is wrong:

- Fluid of sulci, and in `nlsam` that between the hemispheres, is labelled grey matter.
- Parts of the thalami are labelled white matter, and much of the white matter of the cerebellum is
  labelled grey matter.
- Much of the border of the mask is labelled fluid, whatever is there."""
"""What was seen in the pictures of the labels of `tissue_study.real.USED`."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console()


def kept_results() -> list[Results]:
    """The results that are kept beside the page, in the order of the networks."""
    paths = (RESULTS / f"{one.name}.json" for one in CONTENDERS)
    return [Results.read(path) for path in paths if path.is_file()]


def describe_shipped(results: Sequence[Results]) -> None:
    """Write the card of the network that comes with tripq, from what is kept."""
    (ours,) = (one for one in results if one.trained.name == SHIPPED.name)
    write_card(
        CARD,
        TEMPLATE,
        WEIGHTS,
        ["image-segmentation"],
        heads=USUAL.heads,
        summary=summary(ours, [one for one in results if one is not ours]),
        volumes=volumes_table(kept.rows_of(Volumes, kept.read(RESULTS / VOLUMES))),
        seen=SEEN,
        weights=ours.trained.weights,
        scans=TURNED.heads,
        healthy=TURNED.heads // TURNED.healthy,
        most=max(number for shells in TURNED.shells for number in shells.values()),
        steps=ours.trained.steps,
        kept=ours.trained.best[0],
        box=BOX_SIZE,
        seconds=ours.trained.seconds,
        licence=str(ICBM),
    )


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder of heads, networks and results.")] = OUT,
    only: Annotated[list[str] | None, typer.Option(help="Some networks; again for more.")] = None,
    seconds: Annotated[float, typer.Option(help="Of each training, on one core.")] = SECONDS,
    tune: Annotated[bool, typer.Option("--tune", help="Run the pilots only.")] = False,
    save: Save = False,
    ship: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the scans of healthy heads: write the network that comes with tripq "
            "and its card."
        ),
    ] = None,
) -> None:
    """Train, test, and keep the results."""
    study = Study(out, BOX_SIZE, seconds, lambda line: console.print(line, markup=False))
    chosen = [one for one in CONTENDERS if only is None or one.name in only]
    if tune:
        for one in chosen:
            study.pilots(one)
        return
    results = [study.results(one) for one in chosen]
    console.print(*(make(results) for make in TABLES.values()), sep="\n\n", markup=False)
    if save:
        for result in results:
            result.write(RESULTS / f"{result.trained.name}.json")
        write_page(kept_results(), PAGE)
    if ship is not None:
        WEIGHTS.parent.mkdir(exist_ok=True)
        shutil.copyfile(out / SHIPPED.name / NETWORK, WEIGHTS)
        kept.write_rows(RESULTS / VOLUMES, [*measure(WEIGHTS, ship), *simulated(out / "heads")])
        describe_shipped(kept_results())


if __name__ == "__main__":
    start(app)
