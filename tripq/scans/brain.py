"""A rough brain mask, for scans without one."""

from __future__ import annotations

import math
from dataclasses import replace
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tripq.scans import DWI, DWIError, Frame
from tripq.scans.read import survey_dwi

#: Radius in voxels and number of passes of the median filter.  Of dipy's 4 and 4 a whole head takes
#: a minute; these take seconds, and the largest region is what counts.
_MEDIAN_RADIUS, _PASSES = 2, 2

#: Radius in mm of the ball that opens the mask.  The optic nerves and the vessels and nerves of the
#: skull base are thinner than 12 mm; the brainstem and the lobes of the brain are thicker.  The
#: extra 0.001 mm allows for rounded voxel sizes: 6 mm is a multiple of many edges.
_OPENING = 6.001

#: Regions of an opened mask that are this large, relative to the largest, are brain, too: slabs may
#: cut a brain into parts.  An eye is a hundredth of a brain.
_PART = 0.2


def find_brain(dwi: DWI) -> DWI:
    """Restrict a scan to its brain, by b0 intensity.

    Median filter and Otsu's threshold as in FSL's and MRtrix's quick masks: dipy's
    ``median_otsu`` as it is with scikit-image.  Eyes and muscles are as bright as the brain: an
    opening by a ball of 6 mm separates them, large regions are kept, and holes within them are
    filled.  (Holes that reach the edge of the grid remain, and a mask that is nowhere as thick is
    not opened.)  The mask is rough: inspect it.

    Parameters
    ----------
    dwi : DWI
        Of a whole head.

    Returns
    -------
    DWI
        The same scan with a smaller mask; a note describes the method.

    Raises
    ------
    DWIError
        If no voxel is brain.
    """
    mask, note = _find(dwi.volume(dwi.b0), dwi.mask, dwi.affine, dwi.path)
    kept = mask[dwi.mask]
    return replace(
        dwi, signal=dwi.signal[kept], b0=dwi.b0[kept], mask=mask, notes=(*dwi.notes, note)
    )


def read_brain(
    path: str | PathLike[str],
    bval: str | PathLike[str] | None = None,
    bvec: str | PathLike[str] | None = None,
    frame: Frame = "fsl",
    *,
    max_bytes: float = math.inf,
) -> DWI:
    """Read the brain of a whole-head scan, with the mask of `find_brain`.

    The file is read twice, and only the signal of the brain is kept: the whole head takes several
    times as much memory.

    Parameters
    ----------
    path, bval, bvec, frame, max_bytes
        As for `tripq.scans.read_dwi`.

    Returns
    -------
    DWI
        Identical to ``find_brain(read_dwi(path, bval, bvec, frame=frame))``.

    Raises
    ------
    DWIError
        As for `tripq.scans.read_dwi`; and if no voxel is brain.
    """
    survey = survey_dwi(path, bval, bvec, frame=frame)
    mask, note = _find(survey.b0_on_grid(), survey.mask, survey.affine, survey.path)
    return survey.read(mask, note, max_bytes=max_bytes)


def _find(
    b0: NDArray[np.float32],
    usable: NDArray[np.bool_],
    affine: NDArray[np.float64],
    path: Path | None,
) -> tuple[NDArray[np.bool_], str]:
    """Which of the usable voxels (X, Y, Z) are brain, and a note on it."""
    from dipy.segment.mask import multi_median

    smooth = multi_median(b0, _MEDIAN_RADIUS, _PASSES)
    mask = _large_regions(smooth > _otsu(smooth), affine) & usable
    if not mask.any():
        raise DWIError(f"{path or 'scan'}: no brain found in b0; give a mask.")
    found, all_voxels = np.count_nonzero(mask), np.count_nonzero(usable)
    return mask, f"Brain found by median_otsu: {found} of {all_voxels} voxels."


def _large_regions(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The large regions of an opened mask (X, Y, Z), without holes; the mask if none is thick.

    Beyond the grid the mask is taken to go on: slabs of a head have no edge above and below.
    """
    ball = _ball(affine)
    cores, number = ndimage.label(ndimage.binary_erosion(mask, ball, border_value=1))
    if number == 0:
        return mask
    size = np.bincount(cores.ravel())
    size[0] = 0  # the background
    kept = (size >= _PART * size.max())[cores]
    # an opening lies within its mask: the argument `mask` only makes it faster
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(
        ndimage.binary_dilation(kept, ball, mask=mask)
    )
    return filled


def _ball(affine: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The voxels whose centres are within `_OPENING` of that in the middle."""
    axes = affine[:3, :3]
    # of a sheared grid: the extent of a ball along an axis of the index is a row of the inverse
    extent = np.floor(_OPENING * np.linalg.norm(np.linalg.inv(axes), axis=1)).astype(int)
    offsets = np.indices(2 * extent + 1) - extent[:, None, None, None]
    distances = np.linalg.norm(np.einsum("ij,j...->i...", axes, offsets), axis=0)
    return np.asarray(distances <= _OPENING)


def _otsu(image: NDArray[np.float32]) -> float:
    """Otsu's threshold: the centre of the bin that separates the two most distant classes.

    That of scikit-image.  dipy takes it from there if that is installed, and otherwise has its own,
    half a bin lower: the mask would depend on what else is installed.
    """
    if image.min() == image.max():
        return float(image.max())
    counts, edges = np.histogram(image, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    number, total = np.cumsum(counts), np.cumsum(counts * centres)
    # of both classes, for each bin that can be the last of the lower one
    below, above = number[:-1], number[-1] - number[:-1]
    distance = total[:-1] / below - (total[-1] - total[:-1]) / above
    return float(centres[np.argmax(below * above * distance**2)])
