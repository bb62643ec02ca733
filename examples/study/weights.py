"""Notes in the file of a network about its training, and the card of a network that ships."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tripq.infra.files import write_text
from tripq.networks.card import card_header
from tripq.networks.checkpoint import read_notes
from tripq.scans import DWI


def notes(
    task: str, scans: Sequence[DWI], *, fewest: int, caution: str, data: str, step: int = 1
) -> dict[str, str]:
    """What the file of a network says about its training.

    Parameters
    ----------
    task : str
        Name of the task.
    scans : sequence of DWI
        Those of the training.
    fewest : int
        Directions that the network needs.
    caution, data : str
        About its use, and its training data.
    step : int
        To whose multiples b-values are rounded, in s/mm2.
    """
    edges = [edge for scan in scans for edge in scan.voxel_size]
    b_values = {round(shell.b_value / step) * step for scan in scans for shell in scan.shells}
    return {
        "task": task,
        "voxel_size_mm": f"{min(edges):.3g} {max(edges):.3g}",
        "b_values": " ".join(map(str, sorted(b_values))),
        "fewest_directions": str(fewest),
        "caution": caution,
        "data": data,
    }


def write_card(
    card: Path, template: Path, weights: Path, tags: Sequence[str], /, **cells: Any
) -> None:
    """Write the card of a network from a template, with what the notes of its file say.

    Besides `cells` the template may name ``kilobytes``, ``smallest`` and ``largest`` (edges of
    voxels), ``b_values``, ``lowest_b``, ``highest_b`` and ``fewest_directions``.
    """
    about = read_notes(weights)
    smallest, largest = about["voxel_size_mm"].split()
    b_values = [int(value) for value in about["b_values"].split()]
    text = template.read_text(encoding="utf-8").format(
        kilobytes=os.path.getsize(weights) / 1000,
        smallest=smallest,
        largest=largest,
        b_values=", ".join(map(str, b_values)),
        lowest_b=min(b_values),
        highest_b=max(b_values),
        fewest_directions=about["fewest_directions"],
        **cells,
    )
    write_text(card, f"{card_header(about, tags=tags)}\n{text}")
