"""Reading a scan into a `DWI`.

The image is read sequentially, with one volume in memory, as compressed files require.  `read_dwi`
reads the signal of all voxels of a mask into its final array and divides it by b0 in place.  If the
mask is computed from b0, `survey_dwi` first passes through the file and keeps a few numbers of each
voxel; a second pass reads the signal of the voxels that are needed.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from tripq.scans.errors import DWIError, about
from tripq.scans.frames import Frame, check_frame, to_world
from tripq.scans.gradients import (
    B0_THRESHOLD,
    MRTRIX_SUFFIX,
    find_b0,
    read_bval,
    read_bvec,
    read_mrtrix,
    unit_directions,
)
from tripq.scans.intensities import intensities_of, keep_rows, store, tally
from tripq.scans.nifti import (
    check_memory,
    open_mask,
    open_nifti,
    read_mask,
    read_volumes,
    split_name,
)
from tripq.scans.scan import B_REFERENCE, DWI
from tripq.scans.shells import SHELL_TOLERANCE, Shell, find_shells


def read_dwi(
    path: str | PathLike[str],
    bval: str | PathLike[str] | None = None,
    bvec: str | PathLike[str] | None = None,
    mask: str | PathLike[str] | ArrayLike | None = None,
    frame: Frame = "fsl",
    *,
    b0_threshold: float = B0_THRESHOLD,
    shell_tolerance: float = SHELL_TOLERANCE,
    max_bytes: float = math.inf,
) -> DWI:
    """Read a diffusion scan.

    The b0 volumes are averaged to one sample at q = 0, which comes first, and all intensities are
    divided by it.  Each q-vector has the length of its own b-value, ``|q| = sqrt(b / 1000 s/mm2)``:
    within a shell lengths differ as in the table.

    Unusable values are corrected as follows, and `DWI.notes` counts the corrections:

    * negative intensities (from interpolation) become 0, before b0 is averaged;
    * voxels are removed from the mask if any intensity is NaN or infinite, if b0 is 0 (or so small
      that the ratio overflows), or if all diffusion-weighted intensities are 0.

    Parameters
    ----------
    path : path
        Four-dimensional NIfTI image, ``.nii`` or ``.nii.gz``.
    bval, bvec : path, optional
        b-values in s/mm2 (one row or column) and gradient directions (3 rows of N numbers or N rows
        of 3).  Default: the files beside the image with its stem and the suffixes ``.bval`` or
        ``.bvals``, ``.bvec`` or ``.bvecs``.  A `bvec` with suffix ``.b`` is a gradient table of
        MRtrix, which contains both; it requires ``frame="world"`` and no `bval`.
    mask : path or (X, Y, Z) array-like, optional
        Voxels above 0 are used. By default all voxels with b0 above 0, background included.
    frame : {"fsl", "voxel", "world"}, optional
        The axes along which `bvec` is written, see `tripq.scans.frames`. It is never guessed.
    b0_threshold : float, optional
        Volumes with b-values up to this, in s/mm2, are b0 volumes.
    shell_tolerance : float, optional
        Neighbouring b-values of one shell differ by no more than this, in s/mm2.
    max_bytes : float, optional
        Largest memory for the signal.  In addition, reading takes two volumes as stored and about
        25 bytes for each voxel of the grid, for any number of volumes.

    Returns
    -------
    DWI

    Raises
    ------
    DWIError
        If a file is missing, damaged or contradicts another, or the signal exceeds `max_bytes`; the
        message names the file.
    """
    scan = _Scan.open(path, bval, bvec, frame, b0_threshold, shell_tolerance)
    candidates = _find_candidates(mask, scan.image)
    signal = scan.make_signal(int(np.count_nonzero(candidates)), max_bytes)
    intensities = intensities_of(read_volumes(scan.image, scan.path), candidates)
    b0, kept, notes = tally(
        store(intensities, scan.b0_volumes, signal), signal.shape[0], scan.b0_volumes
    )
    survey = scan.survey(candidates, b0, kept, notes, mask_given=mask is not None)
    keep_rows(signal, kept)
    signal[:, 1:] /= survey.b0[:, None]
    return scan.dwi(signal, survey.b0, survey.mask, survey.notes)


def survey_dwi(
    path: str | PathLike[str],
    bval: str | PathLike[str] | None = None,
    bvec: str | PathLike[str] | None = None,
    mask: str | PathLike[str] | ArrayLike | None = None,
    frame: Frame = "fsl",
    *,
    b0_threshold: float = B0_THRESHOLD,
    shell_tolerance: float = SHELL_TOLERANCE,
) -> Survey:
    """Pass through a diffusion scan without keeping its signal.

    Parameters
    ----------
    path, bval, bvec, mask, frame, b0_threshold, shell_tolerance
        As for `read_dwi`.

    Returns
    -------
    Survey
        Of the voxels that `read_dwi` would return.

    Raises
    ------
    DWIError
        As for `read_dwi`.
    """
    scan = _Scan.open(path, bval, bvec, frame, b0_threshold, shell_tolerance)
    candidates = _find_candidates(mask, scan.image)
    intensities = intensities_of(read_volumes(scan.image, scan.path), candidates)
    b0, kept, notes = tally(intensities, int(np.count_nonzero(candidates)), scan.b0_volumes)
    return scan.survey(candidates, b0, kept, notes, mask_given=mask is not None)


def check_files(
    path: str | PathLike[str],
    bval: str | PathLike[str] | None = None,
    bvec: str | PathLike[str] | None = None,
    mask: str | PathLike[str] | None = None,
    frame: Frame = "fsl",
) -> None:
    """Open the files of a diffusion scan and compare them, without reading intensities.

    Parameters
    ----------
    path, bval, bvec, mask, frame
        As for `read_dwi`.

    Raises
    ------
    DWIError
        As for `read_dwi`, if the headers or the table are the cause.
    """
    scan = _Scan.open(path, bval, bvec, frame, B0_THRESHOLD, SHELL_TOLERANCE)
    if mask is not None:
        open_mask(Path(mask), scan.image)


@dataclass(frozen=True, eq=False)
class Survey:
    """Voxels of a scan after a first pass, without their signal.

    Parameters
    ----------
    scan : object
        The files, opened and checked.
    mask : (X, Y, Z) bool array
        V voxels that can be used.
    b0 : (V,) float32 array
        Mean intensity of the b0 volumes.
    notes : tuple of str
        As those of a `DWI`.
    """

    scan: _Scan
    mask: NDArray[np.bool_]
    b0: NDArray[np.float32]
    notes: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Of the scan."""
        return self.scan.path

    @property
    def affine(self) -> NDArray[np.float64]:
        """From voxel indices to world coordinates in mm, (4, 4)."""
        return self.scan.image.affine

    @property
    def voxel_size(self) -> NDArray[np.float64]:
        """Edges of a voxel in mm, (3,)."""
        return nib.affines.voxel_sizes(self.affine)

    @property
    def shells(self) -> tuple[Shell, ...]:
        """Shells by ascending b-value."""
        return find_shells(self.scan.b_values, self.scan.shell_tolerance)

    @property
    def b0_volumes(self) -> int:
        """Number of b0 volumes."""
        return int(np.count_nonzero(self.scan.b0_volumes))

    def b0_on_grid(self) -> NDArray[np.float32]:
        """Mean b0 intensity, (X, Y, Z); 0 where a voxel cannot be used."""
        grid = np.zeros(self.mask.shape, dtype=np.float32)
        grid[self.mask] = self.b0
        return grid

    def read(self, within: NDArray[np.bool_], *notes: str, max_bytes: float = math.inf) -> DWI:
        """Read the signal of some of the voxels, in a second pass through the file.

        Parameters
        ----------
        within : (X, Y, Z) bool array
            Voxels that are read if they can be used.
        *notes : str
            What is added to those of the survey.
        max_bytes : float, optional
            As for `read_dwi`.

        Returns
        -------
        DWI
            Identical to the result of `read_dwi` for these voxels.

        Raises
        ------
        DWIError
            As for `read_dwi`.
        """
        mask = self.mask & within
        b0 = self.b0[within[self.mask]]
        signal = self.scan.make_signal(len(b0), max_bytes)
        intensities = intensities_of(read_volumes(self.scan.image, self.path), mask)
        deque(store(intensities, self.scan.b0_volumes, signal), maxlen=0)
        signal[:, 1:] /= b0[:, None]
        return self.scan.dwi(signal, b0, mask, (*self.notes, *notes))


@dataclass(frozen=True, eq=False)
class _Scan:
    """Matching files of a scan; N volumes, Q samples as in a `DWI`."""

    path: Path
    image: nib.Nifti1Image
    b_values: NDArray[np.float64]
    q: NDArray[np.float64]
    b0_volumes: NDArray[np.bool_]
    shell_tolerance: float

    @classmethod
    def open(
        cls,
        path: str | PathLike[str],
        bval: str | PathLike[str] | None,
        bvec: str | PathLike[str] | None,
        frame: Frame,
        b0_threshold: float,
        shell_tolerance: float,
    ) -> _Scan:
        """Open the image and read the table."""
        scan = Path(path)
        check_frame(frame)
        image = open_nifti(scan)
        if image.ndim != 4:
            raise DWIError(
                f"{scan}: an image of {image.ndim} dimensions, shape {image.shape}; a diffusion "
                "scan has 4: x, y, z and volume."
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
        q = np.sqrt(b_values / B_REFERENCE)[:, None] * directions
        return cls(scan, image, b_values, q, b0_volumes, shell_tolerance)

    def make_signal(self, voxels: int, max_bytes: float) -> NDArray[np.float32]:
        """Memory for the signal of some voxels, (voxels, Q): 1 in its first column."""
        with about(self.path):
            check_memory(4.0 * voxels * len(self.b_values), max_bytes)
        signal = np.empty((voxels, len(self.b_values)), dtype=np.float32)
        signal[:, 0] = 1
        return signal

    def survey(
        self,
        candidates: NDArray[np.bool_],
        b0: NDArray[np.float32],
        kept: NDArray[np.bool_],
        notes: tuple[str, ...],
        *,
        mask_given: bool,
    ) -> Survey:
        """What `tally` found of candidates (X, Y, Z)."""
        if not kept.any():
            raise DWIError(f"{self.path}: no voxel can be used. {' '.join(notes)}")
        if not mask_given:
            notes = (f"No mask was given; usable voxels: {np.count_nonzero(kept)}.", *notes)
        if self.image.header["sform_code"] == self.image.header["qform_code"] == 0:
            notes = (
                "The header gives no orientation: x is taken to run from right to left.",
                *notes,
            )
        used = np.zeros_like(candidates)
        used[candidates] = kept
        return Survey(self, used, b0[kept], notes)

    def dwi(
        self,
        signal: NDArray[np.float32],
        b0: NDArray[np.float32],
        mask: NDArray[np.bool_],
        notes: tuple[str, ...],
    ) -> DWI:
        """Put all together."""
        return DWI(
            signal=signal,
            b_values=self.b_values,
            q=self.q,
            mask=mask,
            affine=self.image.affine.copy(),
            b0=b0,
            header=self.image.header.copy(),
            path=self.path,
            notes=notes,
            shell_tolerance=self.shell_tolerance,
            b0_volumes=int(np.count_nonzero(self.b0_volumes)),
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
