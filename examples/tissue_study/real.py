"""What the network finds in real, healthy heads, which have no known labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from paper.head_page import table
from paper.real_heads import choose_heads

from tissue_study.heads import CLASSES, USUAL, read_heads
from tripq.infra.files import write_text
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
        """Volume of the mask."""
        return sum(self.ml.values())


def measure(weights: Path, data: Path) -> list[Volumes]:
    """Volumes that a network finds in the real heads of a folder."""
    model, found = load_model(weights), []
    for head in choose_heads(USED):
        dwi = head.read(data)
        output = apply_model(model, dwi, predict=TissueCommands().predict).output
        counts = np.bincount(output.argmax(axis=1), minlength=len(CLASSES.labels))
        edges = " x ".join(f"{edge:.3g}" for edge in dwi.voxel_size)
        found.append(Volumes(head.name, head.scanner, edges, _in_ml(counts, dwi.affine)))
    return found


def simulated(folder: Path) -> list[Volumes]:
    """The known volumes of the unseen simulated heads."""
    found = []
    for scan in read_heads(USUAL, folder):
        counts = np.bincount(scan.labels, minlength=len(CLASSES.labels))
        edges = " x ".join(f"{edge:.3g}" for edge in scan.dwi.voxel_size)
        ml = _in_ml(counts, scan.dwi.affine)
        found.append(Volumes(f"{scan.name}, known", "simulated", edges, ml))
    return found


def _in_ml(counts: np.ndarray, affine: np.ndarray) -> dict[str, float]:
    ml = counts * voxel_ml(affine)
    return {label: round(float(one), 1) for label, one in zip(CLASSES.labels, ml, strict=True)}


def write_volumes(volumes: Sequence[Volumes], path: Path) -> None:
    """Write them as JSON."""
    write_text(path, json.dumps([asdict(one) for one in volumes], indent=1) + "\n")


def read_volumes(path: Path) -> list[Volumes]:
    """Read them."""
    return [Volumes(**one) for one in json.loads(path.read_text(encoding="utf-8"))]


def volumes_table(volumes: Sequence[Volumes]) -> str:
    """Shares of the classes in the mask, and its volume."""
    return table(
        "head | scanner | voxels, mm | mask, ml | "
        + " | ".join(f"{label}, %" for label in CLASSES.labels)
        + f" | {CLASSES.labels[-1]}, ml",
        [
            f"{one.head} | {one.scanner} | {one.voxels} | {one.total:.0f} | "
            + " | ".join(f"{100 * one.ml[label] / one.total:.1f}" for label in CLASSES.labels)
            + f" | {one.ml[CLASSES.labels[-1]]:.1f}"
            for one in volumes
        ],
    )
