"""Files that the commands read and write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ScanFiles:
    """Files of a scan; if None, the table is searched beside it and the brain extracted from b0."""

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
        URI of the scan; the results have its grid.
    tables : tuple of str
        URIs of its gradient table.
    mask : str or None
        URI of the brain mask, if a file was given.
    probability : str
        URI of the map, from which the lesion mask is made.
    """

    scan: str
    tables: tuple[str, ...]
    mask: str | None
    probability: str

    @property
    def of_map(self) -> dict[str, Any]:
        """Sources and spatial reference of the map, with the keys of BIDS."""
        masks = [] if self.mask is None else [self.mask]
        return {"Sources": [self.scan, *self.tables, *masks], "SpatialReference": self.scan}

    @property
    def of_mask(self) -> dict[str, Any]:
        """The same for the lesion mask."""
        return {"Sources": [self.probability], "SpatialReference": self.scan}


@dataclass(frozen=True)
class ResultFiles:
    """Result files of a scan, in one folder; they are complete once the map's sidecar exists."""

    probability: Path
    mask: Path
    mask_sidecar: Path
    report: Path
    sidecar: Path

    @classmethod
    def named(cls, name: Callable[[str, str], Path]) -> ResultFiles:
        """Name the files by a function of their BIDS suffix and extension."""
        return cls(
            probability=name("probseg", ".nii.gz"),
            mask=name("mask", ".nii.gz"),
            mask_sidecar=name("mask", ".json"),
            report=name("report", ".html"),
            sidecar=name("probseg", ".json"),
        )

    @property
    def expected(self) -> tuple[Path, ...]:
        """All result files."""
        return (self.probability, self.mask, self.mask_sidecar, self.report, self.sidecar)

    @property
    def are_there(self) -> bool:
        """Whether all result files exist."""
        return all(path.is_file() for path in self.expected)
