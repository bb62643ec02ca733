"""Scans of a BIDS dataset from which directions can be hidden."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from tripq.scans import DWI, Frame, read_dwi
from tripq.scans.bids import BIDSError, BIDSMissingError, BIDSScan, find_scans
from tripq.scans.brain import read_brain
from tripq.scans.gradients import has_only_b0
from tripq.scans.nifti import open_nifti


@dataclass(frozen=True, eq=False)
class MeasuredScan:
    """A scan with its name; a `tripq.training.Scan`."""

    name: str
    dwi: DWI


@dataclass(frozen=True)
class ScanFiles:
    """Files of a scan.

    Parameters
    ----------
    name : str
        Entities of the scan, such as ``sub-01_ses-a``.
    participant : str
        Label without ``sub-``.
    scan : Path
        The scan.
    bval : Path or None
        Its b-values; None for an MRtrix table.
    bvec : Path
        Its directions, or its MRtrix table.
    brain : Path or None
        Mask on its grid; by default the brain is extracted from b0.
    """

    name: str
    participant: str
    scan: Path
    bval: Path | None
    bvec: Path
    brain: Path | None

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file, in the order of the fields."""
        return tuple(p for p in (self.scan, self.bval, self.bvec, self.brain) if p is not None)

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


def find_files(data: Path, masks: Path, frame: Frame) -> tuple[list[ScanFiles], Mapping[str, str]]:
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
    files : list of ScanFiles
        Of each scan, sorted by name.
    left_out : mapping of str to str
        Reason of exclusion by the path of every other scan.

    Raises
    ------
    tripq.scans.bids.BIDSError
        If there is no diffusion-weighted scan, a table is missing, or two files apply equally.
    """
    files, left_out = [], {}
    for scan in find_scans(data):
        bval, bvec = scan.gradient_table(frame)
        if has_only_b0(bval or bvec):
            left_out[scan.relative.as_posix()] = "no diffusion-weighted volume"
            continue
        name = scan.path.name.partition(".")[0].removesuffix("_dwi")
        files.append(ScanFiles(name, scan.subject, scan.path, bval, bvec, _brain(scan, masks)))
    if not files:
        raise BIDSError(f"{data}: none of its {len(left_out)} scans is diffusion-weighted.")
    return files, left_out


def _brain(scan: BIDSScan, masks: Path) -> Path | None:
    try:
        return scan.brain_mask(masks)
    except BIDSMissingError:
        return None


def voxel_range(files: list[ScanFiles]) -> tuple[float, float]:
    """Shortest and longest edge of the voxels of all scans in mm; only headers are read."""
    edges = [nib.affines.voxel_sizes(open_nifti(item.scan).affine) for item in files]
    return round(float(np.min(edges)), 3), round(float(np.max(edges)), 3)
