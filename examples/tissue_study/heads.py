"""Simulated heads of the comparison: who is trained on, who validates, who is tested, and how."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tripq.scans import B_REFERENCE
from tripq.scans.angular import resample_directions
from tripq.simulate import (
    Anatomy,
    GradientTable,
    Randomisation,
    default_anatomy,
    random_rotation,
    simulate_scan,
)
from tripq.tasks.lesions.simulate import Lesions
from tripq.tasks.shelf import Shelf, shelf_key
from tripq.tasks.tissue.classes import UNLABELLED, Classes
from tripq.tasks.tissue.scans import LabelledScan
from tripq.tasks.tissue.simulated import TISSUE, label_scan

LESION = ("lesion", "L")
"""Name and label of the class beside those of tissue."""

CLASSES = Classes.named(*zip(*TISSUE, LESION, strict=True))

TISSUE_CLASSES = Classes.named(*zip(*TISSUE, strict=True))

Shells = dict[int, int]
"""Directions by b-value in s/mm2."""

USUAL_SHELLS: Shells = {1000: 32}

TURN = 180.0
"""Of heads in any pose, in degrees."""


@dataclass(frozen=True)
class Condition:
    """Some heads, and how they are scanned.

    Tissue, noise and artefacts of every scan are drawn by `tripq.simulate.Randomisation`.  The
    heads of two conditions with the same first seed are the same persons.

    Parameters
    ----------
    name : str
        Of the folder.
    says : str
        What the page calls it.
    first : int
        Seed of the first head; those of the others follow.
    heads : int
        How many.
    shells : tuple of dict
        Directions of each shell, used in turn.
    voxels : tuple of float
        Edges in mm, used in turn.
    max_rotation : float
        Largest rotation of a head, in degrees.
    turn_tables : bool
        Whether every table is turned in a way of its own.
    healthy : int
        Every so many heads one has no lesions; 0 for none.
    """

    name: str
    says: str
    first: int
    heads: int
    shells: tuple[Shells, ...] = (USUAL_SHELLS,)
    voxels: tuple[float, ...] = (2.5,)
    max_rotation: float = 10.0
    turn_tables: bool = False
    healthy: int = 0

    def in_any_pose(self, name: str, says: str) -> Condition:
        """The same heads in any pose, with turned tables."""
        return replace(self, name=name, says=says, max_rotation=TURN, turn_tables=True)


_TRAINING = Condition("training", "usual poses and table", 1, 8, voxels=(2.5, 2.0, 3.0), healthy=4)
_VALIDATION = Condition("validation", "usual pose and table", 101, 1)

USUAL = Condition("usual", "usual pose and table", 201, 3)

TURNED = replace(
    _TRAINING.in_any_pose("turned-training", "any pose and table"),
    shells=({1000: 32}, {1000: 20}, {1000: 45}, {1000: 24, 2000: 24}),
)

TRAINING = {"usual": (_TRAINING, _VALIDATION)}
TRAINING["any"] = (TURNED, _VALIDATION.in_any_pose("turned-validation", "any pose and table"))
"""Training and validation heads by poses."""

TESTS = (
    USUAL,
    USUAL.in_any_pose("turned", "any pose and table"),
    replace(
        USUAL.in_any_pose("twelve", "12 directions, any pose"),
        shells=({1000: 12},),
    ),
    replace(
        USUAL.in_any_pose("shells", "two shells of 30 and 60 directions, any pose"),
        shells=({1000: 30, 2000: 60},),
    ),
    replace(
        USUAL.in_any_pose("voxels", "voxels of 3.5 mm, any pose"),
        voxels=(3.5,),
    ),
)
"""The same unseen heads in all of them."""


def table_of(shells: Shells) -> GradientTable:
    """The table with so many directions on each shell."""
    return GradientTable.from_shells(list(shells), list(shells.values()))


def usual_q() -> NDArray[np.float64]:
    """The q-vectors of the usual table, (33, 3), b0 first."""
    table = table_of(USUAL_SHELLS)
    length = np.sqrt(table.b_values / B_REFERENCE)[:, None]
    return np.where(table.b0[:, None], 0.0, length * table.directions)


def has_usual_table(scan: LabelledScan) -> bool:
    """Whether the directions of a scan are those of the usual table, in its order."""
    q = usual_q()
    return scan.dwi.q.shape == q.shape and bool(np.allclose(scan.dwi.q, q, atol=1e-3))


def at_usual_table(scan: LabelledScan) -> LabelledScan:
    """The scan resampled to the usual table by harmonics, if it has another one."""
    if has_usual_table(scan):
        return scan
    return replace(scan, dwi=resample_directions(scan.dwi, usual_q()))


def without_lesions(scan: LabelledScan) -> LabelledScan:
    """The scan with the classes of tissue; its lesions have no label."""
    lesion = scan.labels == CLASSES.labels.index(LESION[1])
    labels = np.where(lesion, UNLABELLED, scan.labels).astype(np.int8)
    return replace(scan, labels=labels, classes=TISSUE_CLASSES)


@cache  # it takes seconds
def anatomy(voxel_size: float) -> Anatomy:
    """The anatomy of all heads."""
    return default_anatomy(voxel_size)


def simulate(condition: Condition, number: int) -> LabelledScan:
    """Simulate a head of a condition."""
    seed = condition.first + number
    of_pose, of_table, of_scan = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(3))
    table = table_of(condition.shells[number % len(condition.shells)])
    if condition.turn_tables:
        table = table.rotated(random_rotation(of_table)).with_random_signs(of_table)
    head = anatomy(condition.voxels[number % len(condition.voxels)])
    lesions = Lesions.draw(head, seed)
    if condition.healthy and number % condition.healthy == condition.healthy - 1:
        lesions = replace(lesions, coverage=0 * lesions.coverage, damage=0 * lesions.damage)
    scan = simulate_scan(
        head,
        table,
        seed,
        [lesions],
        rotation=random_rotation(of_pose, condition.max_rotation),
        flip=bool(seed % 2),
        **vars(Randomisation().draw(of_scan)),
    )
    return label_scan(scan, f"sub-{seed:03}", [LESION])


def read_heads(condition: Condition, folder: Path) -> list[LabelledScan]:
    """The heads of a condition; those that are missing in the folder are simulated first."""
    shelf = Shelf(folder, 0.0, partial(LabelledScan, classes=CLASSES))
    return [
        shelf.keep(shelf_key(repr(condition), str(number)), partial(simulate, condition, number))
        for number in range(condition.heads)
    ]
