"""Files that the commands read and write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ScanFiles:
    """Files of a scan; what is None is found."""

    scan: Path
    bval: Path | None = None
    bvec: Path | None = None
    mask: Path | None = None


@dataclass(frozen=True)
class Addresses:
    """BIDS URIs in the sidecars of results.

    Parameters
    ----------
    scan : str
        Of the scan, whose grid the results have.
    tables : tuple of str
        Of its gradient table.
    mask : str or None
        Of the brain mask, if a file was given.
    probability : str
        Of the map, from which the lesion mask is made.
    """

    scan: str
    tables: tuple[str, ...]
    mask: str | None
    probability: str

    @property
    def of_map(self) -> dict[str, Any]:
        """What the map is made from, and its grid, as BIDS names them."""
        masks = [] if self.mask is None else [self.mask]
        return {"Sources": [self.scan, *self.tables, *masks], "SpatialReference": self.scan}

    @property
    def of_mask(self) -> dict[str, Any]:
        """The same for the lesion mask."""
        return {"Sources": [self.probability], "SpatialReference": self.scan}


@dataclass(frozen=True)
class ResultFiles:
    """Files about a scan, in one folder: what is whole once the sidecar of the map is there."""

    probability: Path
    mask: Path
    mask_sidecar: Path
    report: Path
    sidecar: Path

    @classmethod
    def named(cls, name: Callable[[str, str], Path]) -> ResultFiles:
        """Name the files by a function of suffix and extension, as those of BIDS are."""
        return cls(
            probability=name("probseg", ".nii.gz"),
            mask=name("mask", ".nii.gz"),
            mask_sidecar=name("mask", ".json"),
            report=name("report", ".html"),
            sidecar=name("probseg", ".json"),
        )

    @property
    def expected(self) -> tuple[Path, ...]:
        """All that are written."""
        return (self.probability, self.mask, self.mask_sidecar, self.report, self.sidecar)

    @property
    def are_there(self) -> bool:
        """Whether all are written."""
        return all(path.is_file() for path in self.expected)
