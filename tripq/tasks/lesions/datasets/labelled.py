"""Diffusion scans with known lesions from any BIDS dataset, for training.

>>> from pathlib import Path
>>> def scans(data: Path) -> list[LabelledSubject]:
...     found = find_labelled(data, data / "derivatives" / "truth")
...     return [read_labelled(files) for files in found.files]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tripq.scans import Frame, read_dwi
from tripq.scans.bids import BIDSScan
from tripq.scans.nifti import open_nifti, read_mask
from tripq.tasks.datasets import FoundScans, ScanFiles
from tripq.tasks.layout import DatasetError
from tripq.tasks.lesions.datasets.cohort import LabelledSubject
from tripq.tasks.lesions.names import lesion_mask


@dataclass(frozen=True)
class LabelledFiles(ScanFiles):
    """Files of a scan with known lesions.

    Parameters
    ----------
    name, participant, scan, bval, bvec
        As in `tripq.tasks.datasets.ScanFiles`.
    brain, lesion : Path
        Masks on its grid.
    """

    brain: Path
    lesion: Path

    @classmethod
    def added(cls, scan: BIDSScan, truth: Path) -> Mapping[str, Path]:
        """``*_label-lesion_mask.nii.gz`` and ``*_desc-brain_mask.nii.gz``."""
        return {"lesion": lesion_mask(scan, truth), "brain": scan.brain_mask(truth)}


def find_labelled(data: Path, truth: Path, frame: Frame = "fsl") -> FoundScans[LabelledFiles]:
    """Find the scans of a dataset that have a lesion mask and a brain mask.

    Parameters
    ----------
    data, truth, frame
        As in `tripq.tasks.datasets.ScanFiles.find`.

    Raises
    ------
    tripq.scans.bids.BIDSError
        As by `tripq.tasks.datasets.ScanFiles.find`.
    DatasetError
        If the folder of the truth is missing.
    """
    if not truth.is_dir():
        raise DatasetError(f"{truth}: no such folder; the truth is a derivatives dataset.")
    return LabelledFiles.find(data, truth, frame)


def read_labelled(files: LabelledFiles, frame: Frame = "fsl") -> LabelledSubject:
    """Read a scan with its lesions.

    Parameters
    ----------
    files : LabelledFiles
        Files of the scan, from `find_labelled`.
    frame : {"fsl", "voxel", "world"}
        Frame of the gradient table.

    Raises
    ------
    tripq.scans.DWIError
        If a file is damaged, or the grids differ; the message names it.
    DatasetError
        If all lesions are outside the brain mask.
    """
    dwi = read_dwi(files.scan, files.bval, files.bvec, files.brain, frame)
    volume = read_mask(files.lesion, open_nifti(files.scan))
    lesion = volume[dwi.mask]
    if volume.any() and not lesion.any():
        raise DatasetError(f"{files.lesion}: all lesions are outside the brain in {files.brain}.")
    return LabelledSubject(files.name, dwi, lesion)
