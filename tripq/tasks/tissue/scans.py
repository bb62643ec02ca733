"""Diffusion scans with label images from any BIDS dataset, for training.

>>> from functools import partial
>>> from pathlib import Path
>>> def scans(data: Path) -> list[LabelledScan]:
...     files = LabelledFiles.find(data, data / "derivatives" / "truth").files
...     return [read_labelled(item, common_classes(files), "fsl") for item in files]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tripq.infra.files import write_text
from tripq.scans import DWI, Frame, read_dwi, write_dwi, write_map
from tripq.scans.bids import BIDSError, BIDSScan
from tripq.scans.nifti import open_mask, open_nifti, read_volumes
from tripq.tasks.datasets import ScanFiles
from tripq.tasks.tissue.classes import UNLABELLED, Classes, ClassTable, number_voxels, read_classes

ENDING = "dseg"
"""Ending of the names of label images."""


@dataclass(frozen=True, eq=False)
class LabelledScan:
    """A scan with a class in every voxel; a `tripq.training.Scan`.

    Parameters
    ----------
    name : str
        Of the scan.
    dwi : DWI
        The scan, V voxels.
    labels : (V,) int8 array
        Places of the classes, from 0, in the order of ``np.argwhere(dwi.mask)``;
        `tripq.tasks.tissue.classes.UNLABELLED` for no label.
    classes : Classes
        The classes.
    """

    name: str
    dwi: DWI
    labels: NDArray[np.int8]
    classes: Classes


@dataclass(frozen=True)
class LabelledFiles(ScanFiles):
    """Files of a scan with a label image.

    Parameters
    ----------
    name, participant, scan, bval, bvec
        As in `tripq.tasks.datasets.ScanFiles`.
    brain, image : Path
        Brain mask and label image on its grid.
    table : Path
        Of the label image.
    """

    brain: Path
    image: Path
    table: Path

    @classmethod
    def added(cls, scan: BIDSScan, truth: Path) -> Mapping[str, Path]:
        """``*_dseg.nii.gz``, its table, and ``*_desc-brain_mask.nii.gz``.

        The table ``*_dseg.tsv`` is beside the image or further up, by the inheritance principle.
        """
        image = scan.image(truth, ENDING)
        brain = scan.brain_mask(truth)
        return {"image": image, "brain": brain, "table": BIDSScan(truth, image).table(".tsv")}


def common_classes(files: Sequence[LabelledFiles]) -> Classes:
    """The classes of all scans, in the order of the first table.

    Raises
    ------
    BIDSError
        If a table is invalid or has other names than the first one, or if there is only one class.
    """
    tables = [read_classes(path) for path in dict.fromkeys(item.table for item in files)]
    classes = tables[0].classes
    for table in tables:
        table.rank(classes)
    if len(classes.names) < 2:
        raise BIDSError(
            f"{tables[0].path}: {classes.names[0]!r} is the only class: a network needs two or "
            "more. Name the other voxels, too, such as 0 for the background."
        )
    return classes


def read_labelled(files: LabelledFiles, classes: Classes, frame: Frame) -> LabelledScan:
    """Read a scan with its labels.

    Parameters
    ----------
    files : LabelledFiles
        Files of the scan.
    classes : Classes
        Of all scans; see `common_classes`.
    frame : {"fsl", "voxel", "world"}
        Frame of the gradient table.

    Raises
    ------
    tripq.scans.DWIError
        If a file is damaged, or the grids differ; the message names it.
    BIDSError
        If a value in the brain is not in the table, or no voxel in the brain has a label.
    """
    dwi = read_dwi(files.scan, files.bval, files.bvec, files.brain, frame)
    table = read_classes(files.table)
    labels = read_labels(files.image, table, classes, open_nifti(files.scan), dwi.mask)
    return LabelledScan(files.name, dwi, labels, classes)


def read_labels(
    path: Path,
    table: ClassTable,
    classes: Classes,
    scan: nib.Nifti1Image,
    brain: NDArray[np.bool_],
) -> NDArray[np.int8]:
    """Read a label image in the voxels of a brain.

    Parameters
    ----------
    path : Path
        The image.
    table : ClassTable
        Its table.
    classes : Classes
        Their order decides about the numbers that are returned.
    scan : Nifti1Image
        Image on the same grid.
    brain : (X, Y, Z) bool array
        V voxels.

    Returns
    -------
    (V,) int8 array
        See `LabelledScan`.

    Raises
    ------
    tripq.scans.DWIError
        If the file is damaged or on another grid; the message names it.
    BIDSError
        If a value in the brain is not in the table, the table has other names, or no voxel in the
        brain has a label.
    """
    (volume,) = read_volumes(open_mask(path, scan, "label image"), path)
    labels = number_voxels(volume[brain], table.rank(classes), path, table.path)
    if (labels == UNLABELLED).all():
        raise BIDSError(f"{path}: no voxel in the brain has a label.")
    return labels


def write_labelled(root: Path, scan: LabelledScan) -> None:
    """Write a scan and its labels into a BIDS dataset, for `LabelledFiles.find`.

    The scan is ``sub-*/dwi/sub-*_dwi.nii.gz`` with its table; the label image, its table and the
    brain mask are in ``derivatives/truth``.

    Parameters
    ----------
    root : Path
        Of the dataset; existing files of the scan are replaced.
    scan : LabelledScan
        Its name is ``sub-`` and a label.
    """
    raw = root / scan.name / "dwi"
    truth = root / "derivatives" / "truth" / scan.name / "dwi"
    for folder in (raw, truth):
        folder.mkdir(parents=True, exist_ok=True)
    named = np.where(scan.labels == UNLABELLED, UNLABELLED, scan.labels + 1).astype(np.int8)
    brain = np.ones(len(scan.labels), dtype=bool)
    write_map(brain, scan.dwi, truth / f"{scan.name}_desc-brain_mask.nii.gz")
    write_map(named, scan.dwi, truth / f"{scan.name}_{ENDING}.nii.gz")
    write_text(truth / f"{scan.name}_{ENDING}.tsv", scan.classes.table)
    write_dwi(scan.dwi, raw / f"{scan.name}_dwi.nii.gz")
