"""Writing maps and scans: the counterpart of `tripq.scans.read`."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from tripq.infra.files import replacing, staged
from tripq.scans.errors import DWIError
from tripq.scans.frames import Frame, from_world
from tripq.scans.gradients import MRTRIX_SUFFIX
from tripq.scans.nifti import split_name
from tripq.scans.scan import DWI

_B_VALUE, _COMPONENT = "%.10g", "%.10f"


def write_map(values: ArrayLike, dwi: DWI, path: str | PathLike[str]) -> None:
    """Write the values of every voxel as an image on the grid of the scan.

    The image has the scan's shape, affine, sform and qform codes and units; outside the mask it is
    0.  It is written under a temporary name in the same folder and then renamed, so `path` never
    contains a partial file, even after an interruption.

    Parameters
    ----------
    values : (V,) or (V, C) array-like
        In the order of ``np.argwhere(dwi.mask)``; C > 1 values in a voxel make an image of C
        volumes.
        Booleans are written as uint8, integers of 8 bits as they are, other numbers as float32.
    dwi : DWI
        The scan.
    path : path
        ``.nii`` or ``.nii.gz``. An existing file is replaced, but never the scan itself.

    Raises
    ------
    DWIError
        If there is not a real value for each voxel, or nothing can be written at `path`.
    """
    target = Path(path)
    split_name(target)
    array = np.asarray(values)
    one = array.shape == dwi.b0.shape
    if not one and (array.ndim != 2 or len(array) != len(dwi.b0) or array.shape[1] < 2):
        raise DWIError(
            f"{target}: values has shape {array.shape}; a map of this scan needs {dwi.b0.shape}."
        )
    if array.dtype.kind not in "biuf":
        raise DWIError(f"{target}: a map must contain real numbers or booleans, not {array.dtype}.")
    _check_not_the_scan(target, dwi)
    image = _make_image(array.astype(_stored(array.dtype)), dwi)
    try:
        with replacing(target) as part:
            image.to_filename(part)
    except OSError as error:
        raise DWIError(f"{target}: cannot be written: {error.strerror or error}.") from error


def write_dwi(dwi: DWI, path: str | PathLike[str], frame: Frame = "fsl") -> None:
    """Write a scan with its gradient table, as `tripq.scans.read_dwi` and other programs read it.

    The mean of the b0 volumes comes first, then the other volumes in their order; intensities are
    those of the scanner, float32, and 0 outside the mask.

    Parameters
    ----------
    dwi : DWI
        The scan.
    path : path
        ``.nii`` or ``.nii.gz``.  The table is written beside it, with the same stem: ``.bval`` and
        ``.bvec``, or with ``frame="world"`` a table of MRtrix, ``.b``.  Existing files are
        replaced, but never the scan that was read.
    frame : {"fsl", "voxel", "world"}
        The axes along which the directions are written, see `tripq.scans.frames`.

    Raises
    ------
    DWIError
        If the frame is unknown, the affine sheared (unless the frame is ``"world"``), the scan
        scaled by its response, or nothing can be written at `path`.
    """
    target = Path(path)
    if dwi.response is not None:
        raise DWIError(f"{target}: a scan that is scaled by its response is no measurement.")
    stem, _ = split_name(target)
    _check_not_the_scan(target, dwi)
    length = np.linalg.norm(dwi.q, axis=1)
    directions = from_world(dwi.q / np.where(length > 0, length, 1.0)[:, None], dwi.affine, frame)
    image = _make_image(dwi.signal * dwi.b0[:, None], dwi)
    try:
        with staged(target.parent, last=target.name) as part:
            if frame == "world":
                rows = np.column_stack([directions, dwi.b_values])
                formats = [*3 * [_COMPONENT], _B_VALUE]
                np.savetxt(part / f"{stem}{MRTRIX_SUFFIX}", rows, fmt=formats)
            else:
                np.savetxt(part / f"{stem}.bval", dwi.b_values[None], fmt=_B_VALUE)
                np.savetxt(part / f"{stem}.bvec", directions.T, fmt=_COMPONENT)
            image.to_filename(part / target.name)
    except OSError as error:
        raise DWIError(f"{target}: cannot be written: {error.strerror or error}.") from error


def _stored(kind: np.dtype[Any]) -> np.dtype[Any]:
    """Type of the values of a map in its file."""
    if kind.kind == "b":
        return np.dtype(np.uint8)
    return kind if kind.kind in "iu" and kind.itemsize == 1 else np.dtype(np.float32)


def _check_not_the_scan(target: Path, dwi: DWI) -> None:
    if dwi.path is not None and target.exists() and target.samefile(dwi.path):
        raise DWIError(f"{target}: this is the scan itself; choose another name.")


def _make_image(values: NDArray[Any], dwi: DWI) -> nib.Nifti1Image:
    """Image with the grid fields of the scan's header, and no other fields."""
    if dwi.header is None:
        header = nib.Nifti1Header()
        header.set_xyzt_units("mm")
    else:
        header = dwi.header.copy()
    header.set_data_dtype(values.dtype)
    header.set_intent("none")
    header["descrip"] = header["aux_file"] = b""
    header["cal_min"] = header["cal_max"] = 0
    header.extensions.clear()
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    return kind(dwi.volume(values), dwi.affine, header)
