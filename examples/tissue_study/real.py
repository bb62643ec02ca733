"""What the network finds in real, healthy heads, which have no known labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from paper.real_heads import choose_heads
from study.pages import table

from tissue_study.heads import TISSUE_CLASSES, USUAL, read_heads, without_lesions
from tripq.networks.apply import apply_model, load_model
from tripq.scans import voxel_ml
from tripq.tasks.tissue.command import TissueCommands

USED = ("tractseg", "nlsam")


@dataclass(frozen=True)
class Volumes:
    """Volumes of the classes in a head.

    Parameters
    ----------
    head, scanner : str
        Names; the scanner of a simulated head is the simulator.
    voxels : str
        Their edges in mm.
    ml : mapping
        By the labels of the classes.
    """

    head: str
    scanner: str
    voxels: str
    ml: Mapping[str, float]

    @property
    def total(self) -> float:
        """Volume of all classes."""
        return sum(self.ml.values())


def measure(weights: Path, data: Path) -> list[Volumes]:
    """Volumes that a network finds in the real heads of a folder."""
    model, found = load_model(weights), []
    for head in choose_heads(USED):
        dwi = head.read(data)
        output = apply_model(model, dwi, predict=TissueCommands().predict).output
        ml = _in_ml(output.argmax(axis=1), dwi.affine)
        edges = " x ".join(f"{edge:.3g}" for edge in dwi.voxel_size)
        found.append(Volumes(head.name, head.scanner, edges, ml))
    return found


def simulated(folder: Path) -> list[Volumes]:
    """The known volumes of the unseen simulated heads, without their lesions."""
    found = []
    for scan in map(without_lesions, read_heads(USUAL, folder)):
        edges = " x ".join(f"{edge:.3g}" for edge in scan.dwi.voxel_size)
        ml = _in_ml(scan.labels, scan.dwi.affine)
        found.append(Volumes(f"{scan.name}, known", "simulated", edges, ml))
    return found


def _in_ml(labels: np.ndarray, affine: np.ndarray) -> dict[str, float]:
    size = voxel_ml(affine)
    return {
        label: round(float(np.count_nonzero(labels == number) * size), 1)
        for number, label in enumerate(TISSUE_CLASSES.labels)
    }


def volumes_table(volumes: Sequence[Volumes]) -> str:
    """Volumes of the classes, and their shares."""
    return table(
        "head | scanner | voxels, mm | "
        + " | ".join(f"{label}, ml | {label}, %" for label in TISSUE_CLASSES.labels),
        [
            f"{one.head} | {one.scanner} | {one.voxels} | "
            + " | ".join(
                f"{one.ml[label]:.0f} | {100 * one.ml[label] / one.total:.1f}"
                for label in TISSUE_CLASSES.labels
            )
            for one in volumes
        ],
    )
