"""Scans of a BIDS dataset with known orientation distributions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tripq.scans import DWI, DWIError, Frame, read_dwi
from tripq.scans.bids import BIDSScan, find_brain_mask
from tripq.scans.nifti import check_grid, open_nifti, read_volumes
from tripq.scans.response import scale_by_response
from tripq.so3.mrtrix import from_mrtrix, highest_order
from tripq.tasks.datasets import ReadableFiles
from tripq.tasks.fibres.names import FODF

AnyFibreScan = TypeVar("AnyFibreScan", bound="FibreScan")


@dataclass(frozen=True, eq=False)
class FibreScan:
    """A scan with known fibres.

    Parameters
    ----------
    name : str
        Of the scan.
    dwi : DWI
        The scan, V voxels; for training and networks in units of its response (`scaled`).
    fodf : (V, C) float32 array
        Coefficients of the orientation distributions; orthonormal, in e3nn's basis.
    """

    name: str
    dwi: DWI
    fodf: NDArray[np.float32]

    def scaled(self: AnyFibreScan) -> AnyFibreScan:
        """The same with the scan in units of its response."""
        return replace(self, dwi=scale_by_response(self.dwi))


@dataclass(frozen=True)
class FibreFiles(ReadableFiles):
    """Files of a scan with known fibres.

    Parameters
    ----------
    name, participant, scan, bval, bvec
        As in `tripq.tasks.datasets.ScanFiles`.
    fodf : Path
        Orientation distributions, in MRtrix' harmonics, on the grid of the scan.
    brain : Path or None
        Mask of the brain; by default all voxels of the scan.
    """

    fodf: Path
    brain: Path | None

    @classmethod
    def added(cls, scan: BIDSScan, truth: Path) -> Mapping[str, Path | None]:
        """The known fODF, ``*_model-fibres_param-fodf_dwimap.nii.gz``, and a brain mask if any."""
        return {"fodf": scan.image(truth, FODF), "brain": find_brain_mask(scan, truth)}

    def read(self, frame: Frame) -> FibreScan:
        """Read the voxels of the mask, and scale the scan by its response.

        Raises
        ------
        tripq.scans.DWIError
            If a file is damaged, or not on the grid of the scan; the message names it.
        """
        dwi = read_dwi(self.scan, self.bval, self.bvec, self.brain, frame)
        check_grid(
            open_nifti(self.fodf),
            open_nifti(self.scan),
            self.fodf,
            "the known distributions",
            f"the scan {self.scan}",
        )
        fodf = from_mrtrix(read_voxels(self.fodf, dwi.mask))
        return FibreScan(self.name, dwi, fodf).scaled()


def read_voxels(path: Path, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Distributions of the voxels of a mask, (V, C), as a file has them: in MRtrix' harmonics.

    Raises
    ------
    tripq.scans.DWIError
        If the file is damaged, its number of volumes that of no even order, or a value no number.
    """
    image = open_nifti(path)
    n = image.shape[3] if len(image.shape) == 4 else 1
    try:
        highest_order(n)
    except ValueError as error:
        raise DWIError(f"{path}: {error}") from error
    values = np.stack([volume[mask] for volume in read_volumes(image, path)], axis=1)
    if not np.isfinite(values).all():
        raise DWIError(f"{path}: some values in the brain are not finite.")
    return values.astype(np.float32)
