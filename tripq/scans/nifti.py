"""NIfTI files, read one volume at a time.

Extensions of the header are skipped: they are not needed, and their number and sizes cannot be
trusted.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from tripq.infra.files import check_regular
from tripq.infra.memory import spell_bytes
from tripq.scans.errors import DWIError, about
from tripq.scans.frames import check_affine

SUFFIXES = (".nii.gz", ".nii")
"""Suffixes of the files that are read and written."""

MAX_GZIP_RATIO = 1032
"""The deflate format packs no more than 1032 bytes into one (zlib technical details)."""

MAX_HEADER_BYTES = 2**26
"""Largest start of the intensities of an image: a compressed file is unpacked up to there, and
extensions can be compressed by a factor of 1000."""

MAX_BYTES_BEHIND = 2**20
"""Largest number of bytes behind the intensities, besides the checksum."""

VOXEL_EDGES = (0.01, 100.0)
"""Shortest and longest edge of a voxel in mm: from diffusion microscopy to single voxels."""

MAX_PLACE = 1e5
"""Largest distance of the first voxel from the origin of the world along an axis, in mm."""

MASK_TOLERANCE = 0.1
"""Largest distance between corresponding voxel centres of scan and mask, in voxel edges.

Rounding of orientations in headers stays far below; a mask of another grid goes far above.
"""

_SCALED_BYTES = 8  # of an intensity, with its slope
_METRE, _MICRON = 1, 3  # codes of the lower three bits of xyzt_units in the NIfTI-1 standard
_GZIP = b"\x1f\x8b"  # how such files begin
_BROKEN = (OSError, EOFError, zlib.error)
_NO_NIFTI = (ImageFileError, HeaderDataError, WrapStructError, ValueError, ArithmeticError)


class _Skipped(nib.nifti1.Nifti1Extensions):
    """Extensions of a header, whose bytes are left unread."""

    @classmethod
    def from_fileobj(cls, fileobj: Any, size: int, byteswap: bool) -> _Skipped:
        """Return no extension."""
        return cls()


class _Header1(nib.Nifti1Header):
    exts_klass = _Skipped


class _Header2(nib.Nifti2Header):
    exts_klass = _Skipped


class _Image1(nib.Nifti1Image):
    header_class = _Header1


class _Image2(nib.Nifti2Image):
    header_class = _Header2


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
        If the file is missing, not NIfTI, smaller than its header says, or contains complex numbers
        or colours; if a volume does not fit into memory; if its affine cannot be used, is not in
        millimetres, or not that of a scan by `VOXEL_EDGES` and `MAX_PLACE`.
    """
    _, suffix = split_name(path)
    with about(path):
        try:
            check_regular(path)
        except FileNotFoundError:
            raise DWIError("there is no such file.") from None
        except OSError as error:
            raise DWIError(f"cannot be read: {error.strerror}.") from error
        try:
            _check_compression(path, suffix)
            # not nib.load, which knows other kinds of images, and programs to read them
            image = _image_class(path).from_filename(path)
        except DWIError:
            raise
        except (*_BROKEN, *_NO_NIFTI) as error:
            raise DWIError(f"cannot be read as NIfTI: {error}") from error
        proxy: Any = image.dataobj
        if proxy.dtype.kind not in "iuf":
            raise DWIError(f"contains {proxy.dtype} values; magnitudes are real numbers.")
        if min(proxy.shape, default=0) < 1:
            raise DWIError(f"the header gives an empty image of shape {proxy.shape}.")
        need = proxy.offset + prod(proxy.shape) * proxy.dtype.itemsize
        if need > path.stat().st_size * (MAX_GZIP_RATIO if suffix == ".nii.gz" else 1):
            raise DWIError(
                f"truncated, or its header is wrong: an image of shape {proxy.shape} takes {need} "
                f"bytes, and the file has {path.stat().st_size}."
            )
        check_memory(prod(proxy.shape[:3]) * (proxy.dtype.itemsize + _SCALED_BYTES))
        _check_place(check_affine(image.affine))
        unit = int(image.header["xyzt_units"]) & 7
        if unit in (_METRE, _MICRON):
            raise DWIError(
                f"the header gives lengths in {'metres' if unit == _METRE else 'micrometres'}; "
                "scale the affine to millimetres and set the unit to mm."
            )
        return image


def _image_class(path: Path) -> type[nib.Nifti1Image]:
    """The version of NIfTI that a file has, if its intensities begin shortly behind the header."""
    with ImageOpener(str(path), "rb") as file:
        start = file.read(nib.Nifti2Header.sizeof_hdr)
    for image_class in (_Image1, _Image2):
        header_class = image_class.header_class
        if header_class.may_contain_header(start):
            size = header_class.sizeof_hdr
            offset = float(header_class(start[:size], check=False)["vox_offset"])
            if not size <= offset <= MAX_HEADER_BYTES:
                raise DWIError(
                    f"the header is wrong: intensities cannot begin at byte {offset:g}, but only "
                    f"from {size} to {MAX_HEADER_BYTES}."
                )
            return image_class
    raise DWIError("cannot be read as NIfTI: it has no NIfTI header.")


def _check_compression(path: Path, suffix: str) -> None:
    """Check that a file is compressed if and only if its suffix says so."""
    with path.open("rb") as file:
        start = file.read(2)
    if not start:
        raise DWIError("cannot be read as NIfTI: it is empty.")
    if start == _GZIP and suffix == ".nii":
        raise DWIError("cannot be read as NIfTI: it is compressed by gzip. Rename it to .nii.gz.")
    if start != _GZIP and suffix == ".nii.gz":
        raise DWIError(
            "cannot be read as NIfTI: it is not compressed by gzip. If it is an image, rename it "
            "to .nii."
        )


def _check_place(affine: NDArray[np.float64]) -> None:
    """Check that an affine is plausible for a scan of a person or a smaller object."""
    edges = nib.affines.voxel_sizes(affine)
    shortest, longest = VOXEL_EDGES
    if edges.min() < shortest or edges.max() > longest:
        raise DWIError(
            f"the header gives voxels of {' x '.join(f'{edge:.3g}' for edge in edges)} mm; they "
            f"are from {shortest:g} to {longest:g} mm wide. Are they in another unit?"
        )
    if np.abs(affine[:3, 3]).max() > MAX_PLACE:
        raise DWIError(
            f"the header puts the first voxel at {affine[:3, 3].tolist()} mm, further than "
            f"{MAX_PLACE:g} mm from the origin. Restore its sform or qform."
        )


def check_memory(need: float, allowed: float = math.inf) -> None:
    """Check that this computer has enough memory.

    A compressed file of zeros can expand by a factor of 1000.

    Parameters
    ----------
    need : float
        Bytes.
    allowed : float, optional
        Largest number of bytes allowed.

    Raises
    ------
    DWIError
        If `need` is larger.
    """
    if need > (there := _physical_memory()):
        raise DWIError(
            f"takes {spell_bytes(need)} of memory to read, and this computer has "
            f"{spell_bytes(there)}. Is its header right? A mask of the brain reduces it."
        )
    if need > allowed:
        raise DWIError(
            f"the signal takes {spell_bytes(need)} of memory, and {spell_bytes(max(allowed, 0))} "
            f"are left for it: allow at least {spell_bytes(need - allowed)} more, or give a mask "
            "of fewer voxels."
        )


def _physical_memory() -> float:
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # not known on this system
        return math.inf


def read_volumes(image: nib.Nifti1Image, path: Path) -> Iterator[NDArray[Any]]:
    """Read the (X, Y, Z) volumes of an image one after the other, with slope and intercept applied.

    The file is read once, from beginning to end, with one volume in memory. For a compressed file
    this includes its checksum, which follows the last volume.

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
                        raise DWIError(
                            f"truncated: the file ends in volume {number}. Download it again."
                        )
                    volume = np.frombuffer(data, proxy.dtype).reshape(shape, order="F")
                    if (proxy.slope, proxy.inter) != (1, 0):
                        with np.errstate(over="ignore", invalid="ignore"):  # infinite, NaN
                            volume = volume * float(proxy.slope) + float(proxy.inter)
                    yield volume
                if len(file.read(MAX_BYTES_BEHIND + 1)) > MAX_BYTES_BEHIND:
                    raise DWIError(
                        f"contains much more data than the {proxy.shape} values of its header: one "
                        "of the two is wrong."
                    )
        except _BROKEN as error:
            reason = str(error).rstrip(".")
            raise DWIError(f"truncated or damaged: {reason}. Download it again.") from error


def read_mask(path: Path, scan: nib.Nifti1Image) -> NDArray[np.bool_]:
    """Mask of a scan from a file, (X, Y, Z): voxels with values above 0.

    Raises
    ------
    DWIError
        If the file cannot be read, or is on another grid than the scan.
    """
    (volume,) = read_volumes(open_mask(path, scan), path)
    return volume > 0


def open_mask(path: Path, scan: nib.Nifti1Image, what: str = "mask") -> nib.Nifti1Image:
    """Open the mask of a scan without reading its values.

    Parameters
    ----------
    path : Path
        The mask, or another image with one value per voxel.
    scan : Nifti1Image
        The scan.
    what : str
        What the image is, in the message.

    Raises
    ------
    DWIError
        If the file cannot be opened, or is on another grid than the scan.
    """
    image = open_nifti(path)
    with about(path):
        if image.shape[:3] != scan.shape[:3] or prod(image.shape[3:]) != 1:
            raise DWIError(f"a {what} of shape {image.shape}; the scan needs {scan.shape[:3]}.")
    check_grid(image, scan, path, f"the {what}")
    return image


def check_grid(
    image: nib.Nifti1Image,
    other: nib.Nifti1Image,
    path: Path,
    what: str,
    reference: str = "the scan",
) -> None:
    """Check that an image has the grid of another one.

    Parameters
    ----------
    image, other : Nifti1Image
        The image, and the one whose grid it should have.
    path : Path
        Of the image.
    what, reference : str
        What the two are, in the message.

    Raises
    ------
    DWIError
        If the shapes or the places of the voxels differ.
    """
    shape = other.shape[:3]
    with about(path):
        if image.shape[:3] != shape:
            raise DWIError(f"{what} has the grid {image.shape[:3]}; {reference} has {shape}.")
        distance = _grid_distance(image.affine, other.affine, shape)
        if not distance <= MASK_TOLERANCE * nib.affines.voxel_sizes(other.affine).min():
            raise DWIError(
                f"{what} is on another grid: its voxels are up to {distance:.3g} mm from those "
                f"of {reference}. Resample it to the grid of {reference}."
            )


def _grid_distance(
    first: NDArray[np.float64], second: NDArray[np.float64], shape: tuple[int, ...]
) -> float:
    """Largest distance in mm between equal indices under two affines; it occurs at a corner."""
    corners = np.stack(np.meshgrid(*((0, n - 1) for n in shape)), axis=-1).reshape(-1, 3)
    difference = nib.affines.apply_affine(first - second, corners)
    return float(np.linalg.norm(difference, axis=1).max())
