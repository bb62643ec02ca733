"""From the files of a scan to a `DWI`."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from tripq.dwi.errors import DWIError, about
from tripq.dwi.frames import Frame, check_frame, to_world
from tripq.dwi.gradients import (
    B0_THRESHOLD,
    MRTRIX_SUFFIX,
    find_b0,
    read_bval,
    read_bvec,
    read_mrtrix,
    unit_directions,
)
from tripq.dwi.nifti import check_memory, open_nifti, read_mask, read_volumes, split_name
from tripq.dwi.scan import B_REFERENCE, DWI
from tripq.dwi.shells import SHELL_TOLERANCE


def read_dwi(
    path: str | PathLike[str],
    bval: str | PathLike[str] | None = None,
    bvec: str | PathLike[str] | None = None,
    mask: str | PathLike[str] | ArrayLike | None = None,
    frame: Frame = "fsl",
    *,
    b0_threshold: float = B0_THRESHOLD,
    shell_tolerance: float = SHELL_TOLERANCE,
) -> DWI:
    """Read a diffusion scan.

    The b0 volumes are averaged to one sample at q = 0, which comes first, and everything is divided
    by it. Each q-vector takes the b-value of its own volume, ``|q| = sqrt(b / 1000 s/mm2)``: within
    a shell lengths differ as the table says, because that is what was measured.

    What cannot be used is put right as follows, and `DWI.notes` tells how often:

    * negative intensities (interpolation makes them) become 0, before b0 is averaged;
    * voxels leave the mask where any intensity is NaN or infinite, where b0 is 0 (or so small
      that the ratio overflows), and where all diffusion-weighted intensities are 0.

    Parameters
    ----------
    path : path
        Four-dimensional NIfTI image, ``.nii`` or ``.nii.gz``.
    bval, bvec : path, optional
        b-values in s/mm2 (one row or column) and gradient directions (3 rows of N numbers or N rows
        of 3). By default the files beside the image with its stem and the suffixes ``.bval`` or
        ``.bvals``, ``.bvec`` or ``.bvecs``. A `bvec` with suffix ``.b`` is a gradient table of
        MRtrix, which holds both; it goes with ``frame="world"`` and without `bval`.
    mask : path or (X, Y, Z) array-like, optional
        Voxels above 0 are used. By default all voxels with b0 above 0, background included.
    frame : {"fsl", "voxel", "world"}, optional
        The axes along which `bvec` is written, see `tripq.dwi.frames`. It is never guessed.
    b0_threshold : float, optional
        Volumes with b-values up to this, in s/mm2, are b0 volumes.
    shell_tolerance : float, optional
        Neighbouring b-values of one shell differ by no more than this, in s/mm2.

    Returns
    -------
    DWI

    Raises
    ------
    DWIError
        If a file is missing, damaged or contradicts another; the message names it.
    """
    scan = Path(path)
    check_frame(frame)
    image = open_nifti(scan)
    if image.ndim != 4:
        raise DWIError(
            f"{scan}: an image of {image.ndim} dimensions, shape {image.shape}; a diffusion scan "
            "has 4: x, y, z and volume."
        )
    bval_file, bvec_file = find_table(scan, bval, bvec, frame)
    b_values, directions = _read_table(bval_file, bvec_file)
    for file, entries in ((bval_file, b_values), (bvec_file, directions)):
        if len(entries) != image.shape[3]:
            raise DWIError(
                f"{file}: {len(entries)} entries, but {scan} has {image.shape[3]} volumes."
            )
    with about(bval_file):
        b0_volumes = find_b0(b_values, b0_threshold)
    with about(bvec_file):
        directions = unit_directions(directions, b_values, b0_volumes)
    with about(scan):
        directions = to_world(directions[~b0_volumes], image.affine, frame)
    b_values = np.concatenate([[0.0], b_values[~b0_volumes]])
    directions = np.concatenate([np.zeros((1, 3)), directions])

    candidates = _find_candidates(mask, image)
    with about(scan):  # twice: volume by volume as they are read, and voxel by voxel
        check_memory(2 * 4 * float(np.count_nonzero(candidates)) * len(b_values))
    signal, b0, kept, notes = _normalise(read_volumes(image, scan), candidates, b0_volumes)
    if not kept.any():
        raise DWIError(f"{scan}: no voxel can be used. {' '.join(notes)}")
    if mask is None:
        notes = (f"No mask was given; usable voxels: {len(b0)}.", *notes)
    if image.header["sform_code"] == image.header["qform_code"] == 0:
        notes = ("The header gives no orientation: x is taken to run from right to left.", *notes)
    used = np.zeros_like(candidates)
    used[candidates] = kept
    return DWI(
        signal=signal,
        b_values=b_values,
        q=np.sqrt(b_values / B_REFERENCE)[:, None] * directions,
        mask=used,
        affine=image.affine.copy(),
        b0=b0,
        header=image.header.copy(),
        path=scan,
        notes=notes,
        shell_tolerance=shell_tolerance,
        b0_volumes=int(np.count_nonzero(b0_volumes)),
    )


def find_table(
    scan: Path,
    bval: str | PathLike[str] | None = None,
    bvec: str | PathLike[str] | None = None,
    frame: Frame = "fsl",
) -> tuple[Path, Path]:
    """Files of the b-values and of the directions that `read_dwi` reads; an MRtrix table is both.

    Raises
    ------
    DWIError
        If one is not given and not found beside the scan, or an MRtrix table is given with a
        `bval` or for another frame than the world's.
    """
    if bvec is not None and Path(bvec).suffix == MRTRIX_SUFFIX:
        if bval is not None or frame != "world":
            raise DWIError(
                f"{bvec}: a gradient table of MRtrix holds the b-values and is written in world "
                f"axes: give it without bval and with frame='world' (not {frame!r})."
            )
        return Path(bvec), Path(bvec)
    return (
        _beside(scan, (".bval", ".bvals")) if bval is None else Path(bval),
        _beside(scan, (".bvec", ".bvecs")) if bvec is None else Path(bvec),
    )


def _read_table(
    bval_file: Path, bvec_file: Path
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """b-values (N,) and directions as written (N, 3)."""
    if bvec_file.suffix == MRTRIX_SUFFIX:
        return read_mrtrix(bvec_file)
    return read_bval(bval_file), read_bvec(bvec_file)


def _beside(scan: Path, suffixes: tuple[str, ...]) -> Path:
    """Find the file beside a scan with its stem and one of the suffixes."""
    stem, _ = split_name(scan)
    for suffix in suffixes:
        if (found := scan.with_name(stem + suffix)).is_file():
            return found
    raise DWIError(
        f"{scan}: no {stem}{f' or {stem}'.join(suffixes)} beside it. Name the file: "
        f"{suffixes[0].removeprefix('.')}=... (--{suffixes[0].removeprefix('.')} of the command)."
    )


def _find_candidates(
    mask: str | PathLike[str] | ArrayLike | None, image: nib.Nifti1Image
) -> NDArray[np.bool_]:
    """Voxels that the caller asks for, (X, Y, Z)."""
    shape = image.shape[:3]
    if mask is None:
        return np.ones(shape, dtype=bool)
    if isinstance(mask, str | PathLike):
        name, array = str(mask), read_mask(Path(mask), image)
    else:
        name, array = "mask", np.asarray(mask) > 0
    if array.shape != shape:
        raise DWIError(f"{name}: a mask of shape {array.shape}; the scan needs {shape}.")
    if not array.any():
        raise DWIError(f"{name}: the mask is empty.")
    return array


def _normalise(
    volumes: Iterable[NDArray[np.generic]],
    candidates: NDArray[np.bool_],
    b0_volumes: NDArray[np.bool_],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], tuple[str, ...]]:
    """Signal over b0.

    Parameters
    ----------
    volumes : iterable of N arrays, (X, Y, Z)
        Intensities.
    candidates : (X, Y, Z) bool array
        C voxels are candidates.
    b0_volumes : (N,) bool array
        The b0 volumes.

    Returns
    -------
    signal : (V, Q) float32 array
        Divided by b0, which comes first.
    b0 : (V,) float32 array
        Mean of the b0 volumes.
    kept : (C,) bool array
        The candidates that can be used.
    notes : tuple of str
        What was done to the others, and to negative intensities.
    """
    count = np.count_nonzero(candidates)
    weighted = np.empty((np.count_nonzero(~b0_volumes), count), dtype=np.float32)
    mean = np.zeros(count)
    peak = np.zeros(count, dtype=np.float32)
    finite = np.ones(count, dtype=bool)
    negative = np.zeros(count, dtype=np.int32)
    rows = iter(weighted)
    for volume, is_b0 in zip(volumes, b0_volumes, strict=True):
        with np.errstate(over="ignore"):  # what overflows float32 is infinite, and so taken out
            values = volume[candidates].astype(np.float32)
        finite &= np.isfinite(values)
        negative += values < 0
        np.maximum(values, 0, out=values)
        if is_b0:
            mean += values
        else:
            next(rows)[:] = values
            np.maximum(peak, values, out=peak)
    b0 = (mean / np.count_nonzero(b0_volumes)).astype(np.float32)

    with np.errstate(all="ignore"):
        has_b0 = (b0 > 0) & np.isfinite(peak / b0)
    kept = finite & has_b0 & (peak > 0)
    changes = (
        (np.count_nonzero(~finite), "Voxels removed because an intensity is NaN or infinite"),
        (np.count_nonzero(finite & ~has_b0), "Voxels removed because b0 is not above 0"),
        (
            np.count_nonzero(finite & has_b0 & (peak == 0)),
            "Voxels removed because all diffusion-weighted intensities are 0",
        ),
        (int(negative[kept].sum()), "Negative intensities set to 0"),
    )
    b0 = b0[kept]
    signal = np.ones((len(b0), 1 + len(weighted)), dtype=np.float32)
    for column, row in enumerate(weighted, start=1):
        np.divide(row[kept], b0, out=signal[:, column])
    return signal, b0, kept, tuple(f"{what}: {number}." for number, what in changes if number)
