"""Scans of a BIDS dataset from which directions can be hidden."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tripq.scans import DWI, Frame, read_dwi
from tripq.scans.bids import BIDSScan, find_brain_mask
from tripq.scans.brain import read_brain
from tripq.tasks.datasets import ReadableFiles


@dataclass(frozen=True, eq=False)
class MeasuredScan:
    """A scan with its name; a `tripq.training.Scan`."""

    name: str
    dwi: DWI


@dataclass(frozen=True)
class MeasuredFiles(ReadableFiles):
    """Files of a scan.

    Parameters
    ----------
    name, participant, scan, bval, bvec
        As in `tripq.tasks.datasets.ScanFiles`.
    brain : Path or None
        Mask on its grid; by default the brain is extracted from b0.
    """

    brain: Path | None

    @classmethod
    def added(cls, scan: BIDSScan, truth: Path) -> Mapping[str, Path | None]:
        """``*_desc-brain_mask.nii.gz``, where there is one."""
        return {"brain": find_brain_mask(scan, truth)}

    def read(self, frame: Frame) -> MeasuredScan:
        """Read the brain.

        Raises
        ------
        tripq.scans.DWIError
            If a file is damaged; the message names it.
        """
        if self.brain is None:
            return MeasuredScan(self.name, read_brain(self.scan, self.bval, self.bvec, frame))
        dwi = read_dwi(self.scan, self.bval, self.bvec, self.brain, frame)
        return MeasuredScan(self.name, dwi)
