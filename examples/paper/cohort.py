"""The scans of the experiment: written once for each condition, then read like anyone's files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from paper.plan import USUAL, Condition, VoxelSize
from tripq.scans import DWI, DWIError
from tripq.scans.angular import resample_directions
from tripq.simulate import Anatomy, Randomisation
from tripq.tasks.lesions.datasets import (
    LabelledSubject,
    OpenMS,
    cohort_anatomy,
    load_cohort,
    load_subject,
    write_cohort,
)


@dataclass(frozen=True)
class Scans:
    """Folders of the cohorts.

    Parameters
    ----------
    folder : Path
        With a cohort for each condition.
    """

    folder: Path

    def write(
        self,
        sources: OpenMS,
        condition: Condition,
        patients: Sequence[str],
        voxel_size: float,
    ) -> None:
        """Simulate what is missing."""
        missing = [p for p in patients if not (self.folder / condition.name / f"sub-{p}").is_dir()]
        if not missing:
            return
        write_cohort(
            self.folder / condition.name,
            sources,
            condition.table,
            seed=condition.seed,
            snr=condition.snr,
            max_rotation=condition.max_rotation,
            pose=condition.pose,
            turn_tables=condition.turn_tables,
            randomisation=Randomisation() if condition.randomised else None,
            anatomy=_anatomy(sources.fibres, condition.voxel_size or voxel_size),
            patients=missing,
        )

    def load(self, condition: Condition, patients: Sequence[str]) -> list[LabelledSubject]:
        """Read the subjects."""
        return load_cohort(self.folder / condition.name, [f"sub-{p}" for p in patients])

    def subjects(
        self,
        sources: OpenMS,
        condition: Condition,
        patients: Sequence[str],
        voxel_size: float,
    ) -> list[LabelledSubject]:
        """Simulate what is missing; the subjects are held in memory."""
        self.write(sources, condition, patients, voxel_size)
        return [read_once(self.folder / condition.name, f"sub-{p}") for p in patients]


@cache  # a program that trains several networks needs most of the scans for each of them
def read_once(cohort: Path, name: str) -> LabelledSubject:
    """Read a subject the first time."""
    return load_subject(cohort, name)


@cache  # most conditions have the same, and it takes seconds
def _anatomy(fibres: Path, voxel_size: VoxelSize) -> Anatomy:
    return cohort_anatomy(fibres, voxel_size)


def at_trained_shells(subject: LabelledSubject) -> LabelledSubject:
    """The subject without the shells that no network was trained on."""
    return replace(subject, dwi=subject.dwi.with_shells(USUAL.b_values))


def for_fixed_table(subject: LabelledSubject) -> LabelledSubject | None:
    """The subject with the usual table, for networks of fixed tables; None if it is impossible."""
    try:
        dwi: DWI = resample_directions(subject.dwi, USUAL.q)
    except DWIError:
        return None
    return replace(subject, dwi=dwi)
