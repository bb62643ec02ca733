"""Maps on the grid of a scan."""

from __future__ import annotations

import os
from contextlib import suppress
from os import PathLike
from pathlib import Path
from uuid import uuid4

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike

from tripq.scans.errors import DWIError
from tripq.scans.nifti import split_name
from tripq.scans.scan import DWI


def write_map(values: ArrayLike, dwi: DWI, path: str | PathLike[str]) -> None:
    """Write one value per voxel as an image on the grid of the scan.

    The image has the scan's shape, affine, sform and qform codes and units; outside the mask it is
    0. It is written under another name in the same folder and then renamed, so that `path` never
    holds half a file, whatever interrupts.

    Parameters
    ----------
    values : (V,) array-like
        In the order of ``np.argwhere(dwi.mask)``. Booleans are written as uint8, numbers as
        float32.
    dwi : DWI
        The scan.
    path : path
        ``.nii`` or ``.nii.gz``. An existing file is replaced, but never the scan itself.

    Raises
    ------
    DWIError
        If there is not one real value for each voxel, or nothing can be written at `path`.
    """
    target = Path(path)
    stem, suffix = split_name(target)
    array = np.asarray(values)
    if array.shape != dwi.b0.shape:
        raise DWIError(
            f"{target}: values has shape {array.shape}; a map of this scan needs {dwi.b0.shape}."
        )
    if array.dtype.kind not in "biuf":
        raise DWIError(f"{target}: a map holds real numbers or booleans, not {array.dtype}.")
    if dwi.path is not None and target.exists() and target.samefile(dwi.path):
        raise DWIError(f"{target}: this is the scan itself; give the map another name.")
    image = _make_image(array.astype(np.uint8 if array.dtype.kind == "b" else np.float32), dwi)
    part = target.with_name(f".{stem}.{uuid4().hex}{suffix}")
    try:
        image.to_filename(part)
        os.replace(part, target)
    except OSError as error:
        raise DWIError(f"{target}: cannot be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            part.unlink()


def _make_image(values: np.ndarray, dwi: DWI) -> nib.Nifti1Image:
    """Image of a map, with what the scan's header says about the grid and nothing else of it."""
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
