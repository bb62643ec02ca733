"""NIfTI files, read one volume at a time."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from tripq.dwi.errors import DWIError, about
from tripq.dwi.frames import check_affine

SUFFIXES = (".nii.gz", ".nii")
"""Names of the files that are read and written."""

MAX_GZIP_RATIO = 1032
"""The deflate format packs no more than 1032 bytes into one (zlib technical details)."""

MASK_TOLERANCE = 0.1
"""Largest distance between corresponding voxel centres of scan and mask, in voxel edges.

Rounding of orientations in headers stays far below; a mask of another grid goes far above.
"""

_METRE, _MICRON = 1, 3  # codes of the lower three bits of xyzt_units in the NIfTI-1 standard
_BROKEN = (OSError, EOFError, zlib.error)


def split_name(path: Path) -> tuple[str, str]:
    """Stem and suffix of the name of a NIfTI file.

    >>> split_name(Path("sub-01/dwi.run-1.nii.gz"))
    ('dwi.run-1', '.nii.gz')

    Raises
    ------
    DWIError
        If the name has another suffix.
    """
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix), suffix
    raise DWIError(f"{path}: not the name of a NIfTI file ({' or '.join(SUFFIXES)}).")


def open_nifti(path: Path) -> nib.Nifti1Image:
    """Open an image without reading its intensities.

    Raises
    ------
    DWIError
        If the file is missing, not NIfTI, smaller than its header says, or holds complex numbers or
        colours; if its affine cannot be used, or is not in millimetres.
    """
    _, suffix = split_name(path)
    with about(path):
        if not path.is_file():
            raise DWIError("there is no such file.")
        try:
            image = nib.load(path)
        except (ImageFileError, HeaderDataError, WrapStructError, ValueError, *_BROKEN) as error:
            raise DWIError(f"cannot be read as NIfTI: {error}") from error
        if not isinstance(image, nib.Nifti1Image):
            raise DWIError(f"not a NIfTI file but a {type(image).__name__}.")
        proxy: Any = image.dataobj
        if proxy.dtype.kind not in "iuf":
            raise DWIError(f"holds {proxy.dtype} values; magnitudes are real numbers.")
        if min(proxy.shape, default=0) < 1:
            raise DWIError(f"the header gives an empty image of shape {proxy.shape}.")
        need = proxy.offset + prod(proxy.shape) * proxy.dtype.itemsize
        if need > path.stat().st_size * (MAX_GZIP_RATIO if suffix == ".nii.gz" else 1):
            raise DWIError(
                f"truncated, or its header is wrong: an image of shape {proxy.shape} takes {need} "
                f"bytes, and the file has {path.stat().st_size}."
            )
        check_affine(image.affine)
        unit = int(image.header["xyzt_units"]) & 7
        if unit in (_METRE, _MICRON):
            raise DWIError(
                f"the header gives lengths in {'metres' if unit == _METRE else 'micrometres'}; "
                "scale the affine to millimetres and set the unit to mm."
            )
        return image


def read_volumes(image: nib.Nifti1Image, path: Path) -> Iterator[NDArray[Any]]:
    """Read the (X, Y, Z) volumes of an image one after the other, with slope and intercept applied.

    The file is read once, from beginning to end, with one volume in memory. For a compressed file
    this includes its checksum, which is seen only behind the last volume.

    Raises
    ------
    DWIError
        If the file is truncated or damaged.
    """
    proxy: Any = image.dataobj
    shape = proxy.shape[:3]
    size = prod(shape) * proxy.dtype.itemsize
    with about(path):
        try:
            with image.file_map["image"].get_prepare_fileobj("rb") as file:
                file.seek(proxy.offset)
                for number in range(prod(proxy.shape[3:])):
                    data = file.read(size)
                    if len(data) < size:
                        raise DWIError(f"truncated: the file ends in volume {number}.")
                    volume = np.frombuffer(data, proxy.dtype).reshape(shape, order="F")
                    if (proxy.slope, proxy.inter) != (1, 0):
                        with np.errstate(over="ignore", invalid="ignore"):  # infinite, NaN
                            volume = volume * float(proxy.slope) + float(proxy.inter)
                    yield volume
                while file.read(1 << 20):
                    pass
        except _BROKEN as error:
            raise DWIError(f"truncated or damaged: {error}") from error


def read_mask(path: Path, scan: nib.Nifti1Image) -> NDArray[np.bool_]:
    """Mask of a scan from a file, (X, Y, Z): voxels with values above 0.

    Raises
    ------
    DWIError
        If the file cannot be read, or lies on another grid than the scan.
    """
    image = open_nifti(path)
    with about(path):
        if image.shape[:3] != scan.shape[:3] or prod(image.shape[3:]) != 1:
            raise DWIError(f"a mask of shape {image.shape}; the scan needs {scan.shape[:3]}.")
        distance = _grid_distance(image.affine, scan.affine, scan.shape[:3])
        if not distance <= MASK_TOLERANCE * nib.affines.voxel_sizes(scan.affine).min():
            raise DWIError(
                f"the mask lies on another grid: its voxels are up to {distance:.3g} mm from those "
                "of the scan. Resample it to the grid of the scan."
            )
    (volume,) = read_volumes(image, path)
    return volume > 0


def _grid_distance(
    first: NDArray[np.float64], second: NDArray[np.float64], shape: tuple[int, ...]
) -> float:
    """Largest distance in mm between equal indices under two affines: it lies at a corner."""
    corners = np.stack(np.meshgrid(*((0, n - 1) for n in shape)), axis=-1).reshape(-1, 3)
    difference = nib.affines.apply_affine(first - second, corners)
    return float(np.linalg.norm(difference, axis=1).max())
