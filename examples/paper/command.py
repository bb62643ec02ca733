"""Options and error messages that the programs of the experiment share."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

Out = Annotated[Path, typer.Option(help="Folder of all results.")]
Data = Annotated[
    Path | None,
    typer.Option(help="Folder with the sources of the cohort.  [default: they are fetched]"),
]
AcceptLicences = Annotated[
    bool, typer.Option("--accept-licences", help="That you keep to the licences of the data.")
]


def _available(device: str) -> str:
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("there is no CUDA device")
    return device


Device = Annotated[str, typer.Option(callback=_available, help="cpu, or cuda.")]

#: Where results go unless another folder is named.
OUT = Path("runs/paper")


def start(app: typer.Typer) -> None:
    """Run a program; an error in its input is reported in one line."""
    # A job that a cluster ends takes its runs with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        app()
    except OSError as error:
        reason = error.strerror or str(error)
        sys.exit(f"error: {error.filename}: {reason}" if error.filename else f"error: {reason}")
    except (ValueError, FloatingPointError) as error:
        sys.exit("error: " + " ".join(str(error).split()))
