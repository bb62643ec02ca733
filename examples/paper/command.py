"""Options that the programs of the experiment share."""

from __future__ import annotations

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
