"""A rough brain mask, for scans without one."""

from __future__ import annotations

import math
from dataclasses import replace
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tripq.scans import DWI, DWIError, Frame
from tripq.scans.read import survey_dwi

#: Radius in voxels and number of passes of the median filter.  Of dipy's 4 and 4 a whole head takes
#: a minute; these take seconds, and the largest region is what counts.
_MEDIAN_RADIUS, _PASSES = 2, 2


def find_brain(dwi: DWI) -> DWI:
    """Restrict a scan to its brain, by b0 intensity.

    Median filter and Otsu's threshold as in FSL's and MRtrix's quick masks, by dipy's
    ``median_otsu``.  The mask is rough: inspect it.

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
    mask, note = _find(dwi.volume(dwi.b0), dwi.mask, dwi.path)
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
    mask, note = _find(survey.b0_on_grid(), survey.mask, survey.path)
    return survey.read(mask, note, max_bytes=max_bytes)


def _find(
    b0: NDArray[np.float32], usable: NDArray[np.bool_], path: Path | None
) -> tuple[NDArray[np.bool_], str]:
    """Which of the usable voxels (X, Y, Z) are brain, and a note on it."""
    from dipy.segment.mask import median_otsu

    _, brain = median_otsu(b0, median_radius=_MEDIAN_RADIUS, numpass=_PASSES)
    mask = brain.astype(bool) & usable
    if not mask.any():
        raise DWIError(f"{path or 'scan'}: no brain found in b0; give a mask.")
    found, all_voxels = np.count_nonzero(mask), np.count_nonzero(usable)
    return mask, f"Brain found by median_otsu: {found} of {all_voxels} voxels."
