"""Implanted lesions of the experiment: which outlines go into which healthy head."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from paper.cohort import read_once
from paper.real_heads import RealHead
from tripq.tasks.lesions.datasets import LabelledSubject, OpenMS, write_implanted

Pair = tuple[RealHead, str]
"""A head, and the patient whose outlines are implanted."""


def pair_heads(heads: Sequence[RealHead], patients: Sequence[str], number: int) -> list[Pair]:
    """The same number of subjects for every person, with the scans and the patients in turn.

    Examples
    --------
    >>> from paper.real_heads import HEADS
    >>> [(head.name, patient) for head, patient in pair_heads(HEADS[4:7], ["01", "02", "03"], 2)]
    [('pd701', '01'), ('pd701', '02'), ('canon3000', '03'), ('canon5000', '01')]
    """
    pairs: list[Pair] = []
    for person in dict.fromkeys(head.person for head in heads):
        scans = [head for head in heads if head.person == person]
        for k in range(number):
            pairs.append((scans[k % len(scans)], patients[len(pairs) % len(patients)]))
    return pairs


@dataclass(frozen=True)
class Implanted:
    """A cohort with implanted lesions.

    Parameters
    ----------
    folder : Path
        Of the cohort.
    heads : Path
        Of the scans of the healthy heads.
    """

    folder: Path
    heads: Path

    def write(self, sources: OpenMS, pairs: Iterable[Pair]) -> None:
        """Implant what is missing."""
        patients: dict[RealHead, list[str]] = {}
        for head, patient in pairs:
            patients.setdefault(head, []).append(patient)
        for head, some in patients.items():
            write_implanted(self.folder, [head.head(self.heads)], sources, patients=sorted(some))

    def subjects(self, sources: OpenMS, pairs: Sequence[Pair]) -> list[LabelledSubject]:
        """Implant what is missing; the subjects are held in memory."""
        self.write(sources, pairs)
        return [read_once(self.folder, self.name(pair)) for pair in pairs]

    @staticmethod
    def name(pair: Pair) -> str:
        """Name of the subject of a pair."""
        head, patient = pair
        return f"sub-{head.name}P{patient}S0"
