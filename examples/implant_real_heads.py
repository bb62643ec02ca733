"""Implant lesions into real, healthy heads, and write them as a cohort with known truth.

    python examples/implant_real_heads.py --heads FOLDER --accept-licences

FOLDER holds one folder for each source of `paper.real_heads.HEADS`.  Subjects that exist already
are kept.  The signal is real, the lesions are modelled: see
`tripq.tasks.lesions.datasets.implanted`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from paper.command import AcceptLicences, Data
from paper.real_heads import Heads, Only, choose_heads
from study.command import start

from tripq.tasks.lesions.datasets import open_ms, write_implanted

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    heads: Heads,
    out: Annotated[Path, typer.Option(help="Folder of the cohort.")] = Path("runs/implanted"),
    data: Data = None,
    accept_licences: AcceptLicences = False,
    only: Only = None,
    patient: Annotated[list[str] | None, typer.Option(help="Again for more.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Subjects of each head and patient.")] = 1,
) -> None:
    """Write one subject for each head, patient and seed."""
    names = write_implanted(
        out,
        [head.head(heads) for head in choose_heads(only)],
        open_ms(accept_licences=accept_licences, local=data),
        seeds=range(seeds),
        patients=patient,
    )
    print(f"{len(names)} subjects in {out}")


if __name__ == "__main__":
    start(app)
