"""Which voxels of a scan are brain, where no mask comes with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from dipy.segment.mask import median_otsu

from tripq.dwi import DWI, DWIError

#: Radius in voxels and number of passes of the median filter.  Of dipy's 4 and 4 a whole head takes
#: a minute; these take seconds, and the largest region is what counts.
_MEDIAN_RADIUS, _PASSES = 2, 2


def find_brain(dwi: DWI) -> DWI:
    """Keep the voxels that are brain by their b0 intensity.

    Median filter and Otsu's threshold as in FSL's and MRtrix's quick masks, by dipy's
    ``median_otsu``.  A rough mask: look at it.

    Parameters
    ----------
    dwi : DWI
        Of a whole head.

    Returns
    -------
    DWI
        The same scan with a smaller mask; a note tells how it was made.

    Raises
    ------
    DWIError
        If no voxel is brain.
    """
    _, brain = median_otsu(dwi.volume(dwi.b0), median_radius=_MEDIAN_RADIUS, numpass=_PASSES)
    kept = brain[dwi.mask]
    if not kept.any():
        raise DWIError(f"{dwi.path or 'scan'}: no brain found in b0; give a mask.")
    mask = np.zeros_like(dwi.mask)
    mask[dwi.mask] = kept
    note = f"Brain found by median_otsu: {np.count_nonzero(kept)} of {len(kept)} voxels."
    return replace(
        dwi, signal=dwi.signal[kept], b0=dwi.b0[kept], mask=mask, notes=(*dwi.notes, note)
    )
