"""Scans of a BIDS dataset from which directions can be hidden."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tripq.scans import DWI, Frame, read_dwi
from tripq.scans.bids import BIDSMissingError, BIDSScan
from tripq.scans.brain import read_brain
from tripq.tasks.datasets import ScanFiles, find_scan_files


@dataclass(frozen=True, eq=False)
class MeasuredScan:
    """A scan with its name; a `tripq.training.Scan`."""

    name: str
    dwi: DWI


@dataclass(frozen=True)
class MeasuredFiles(ScanFiles):
    """Files of a scan.

    Parameters
    ----------
    name, participant, scan, bval, bvec
        As in `tripq.tasks.datasets.ScanFiles`.
    brain : Path or None
        Mask on its grid; by default the brain is extracted from b0.
    """

    brain: Path | None

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


def find_files(
    data: Path, masks: Path, frame: Frame
) -> tuple[list[MeasuredFiles], Mapping[str, str]]:
    """Files of the diffusion scans of a dataset.

    Parameters
    ----------
    data : Path
        The dataset.
    masks : Path
        Derivatives with ``*_desc-brain_mask.nii.gz``; scans without one are used as well.
    frame : {"fsl", "voxel", "world"}
        Frame of the gradient tables.

    Returns
    -------
    files : list of MeasuredFiles
        Of each scan, sorted by name.
    left_out : mapping of str to str
        Reason of exclusion by the path of every other scan.

    Raises
    ------
    tripq.scans.bids.BIDSError
        If no scan is suitable, a table is missing, or two files apply equally.
    """

    def complete(scan: BIDSScan, files: ScanFiles) -> MeasuredFiles:
        try:
            return MeasuredFiles(**vars(files), brain=scan.brain_mask(masks))
        except BIDSMissingError:
            return MeasuredFiles(**vars(files), brain=None)

    return find_scan_files(data, frame, complete)
