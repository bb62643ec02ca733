"""Start of a program, and the options that several have."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option(help="Folder of networks and results.")]
Save = Annotated[bool, typer.Option("--save", help="Write the tables of the page.")]
ToShip = Annotated[
    bool, typer.Option("--ship", help="Write the network that comes with tripq, and its card.")
]


def start(app: typer.Typer) -> None:
    """Run a program; an error in its input is reported in one line."""
    # A job that a cluster ends takes its runs with it.
    usual = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        app()
    except OSError as error:
        reason = error.strerror or str(error)
        sys.exit(f"error: {error.filename}: {reason}" if error.filename else f"error: {reason}")
    except (ValueError, FloatingPointError) as error:
        sys.exit("error: " + " ".join(str(error).split()))
    finally:
        signal.signal(signal.SIGTERM, usual or signal.SIG_DFL)
