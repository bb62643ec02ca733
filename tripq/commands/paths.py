"""Files that the commands read and write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ScanFiles:
    """Files of a scan; what is None is found."""

    scan: Path
    bval: Path | None = None
    bvec: Path | None = None
    mask: Path | None = None


@dataclass(frozen=True)
class ResultFiles:
    """Files about a scan, in one folder: what is whole once the sidecar is there."""

    probability: Path
    mask: Path
    report: Path
    sidecar: Path

    @classmethod
    def named(cls, name: Callable[[str, str], Path]) -> ResultFiles:
        """Name the files by a function of suffix and extension, as those of BIDS are."""
        return cls(
            probability=name("probseg", ".nii.gz"),
            mask=name("mask", ".nii.gz"),
            report=name("report", ".html"),
            sidecar=name("probseg", ".json"),
        )

    @property
    def expected(self) -> tuple[Path, ...]:
        """All that are written."""
        return (self.probability, self.mask, self.report, self.sidecar)

    @property
    def are_there(self) -> bool:
        """Whether all are written."""
        return all(path.is_file() for path in self.expected)
