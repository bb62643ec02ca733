"""Signs that a readable scan differs from the description in its files.

Each threshold follows from physics or anatomy, and every real scan of the tests is far from it
(``tests/scans/test_cautions.py``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tripq.scans.gradients import B0_THRESHOLD
from tripq.scans.scan import DWI
from tripq.scans.shells import TENSOR_DIRECTIONS, count_directions

MAX_BRIGHTNESS = 0.99
"""Brightness of a diffusion-weighted volume over b0, both summed over the voxels.

Diffusion only attenuates the signal: by 3.5 % in tissue at 50 s/mm2, the lower limit of weighted
volumes.  In 21 real scans the ratio is 0.45 or less, from b = 700 s/mm2 on.  If a weighted volume
is read as b0 and b0 as a weighted volume, it is above 1.
"""

MIN_VARIATION = 0.05
"""Standard deviation over mean, from voxel to voxel, of the volume that varies most.

Fluid is several times as bright as tissue in b0: the brains of 21 real scans vary by 0.27 or more.
"""


def find_cautions(dwi: DWI) -> tuple[str, ...]:
    """Warnings about a scan, in whole sentences.

    Parameters
    ----------
    dwi : DWI
        Within the brain.

    Returns
    -------
    tuple of str
        Empty for a normal scan.
    """
    return (*_directions(dwi), *_constant(dwi), *_brightness(dwi))


def _directions(dwi: DWI) -> list[str]:
    """Shells with too few different directions."""
    return [
        f"The {len(shell)} volumes of b = {shell.b_value:.0f} s/mm2 have {count} different "
        f"direction{'' if count == 1 else 's'} only: {TENSOR_DIRECTIONS} are needed to tell how "
        "diffusion depends on direction. Is it the right table?"
        for shell in dwi.shells
        if (count := count_directions(dwi.q[shell.indices])) < min(TENSOR_DIRECTIONS, len(shell))
    ]


def _constant(dwi: DWI) -> list[str]:
    """An image that is the same everywhere."""
    variation = 0.0
    for column in dwi.signal.T:  # the first is 1: b0 itself
        values = column.astype(np.float64) * dwi.b0
        variation = max(variation, float(values.std() / (values.mean() or 1)))
        if variation >= MIN_VARIATION:
            return []
    return [
        f"The image is nearly constant: from voxel to voxel, no volume varies by more than "
        f"{variation:.1%}. This is not a scan of a brain."
    ]


def _brightness(dwi: DWI) -> list[str]:
    """Diffusion-weighted volumes that are no darker than b0."""
    ratios = _over_b0(dwi)
    count = int(np.count_nonzero(ratios > MAX_BRIGHTNESS))
    if not count:
        return []
    return [
        f"{count} of {len(ratios)} diffusion-weighted volumes are not darker than b0 (up to "
        f"{ratios.max():.2f} times as bright, over all voxels): above b = {B0_THRESHOLD:.0f} s/mm2 "
        "they must be. Are volumes and gradient table in the same order?"
    ]


def _over_b0(dwi: DWI) -> NDArray[np.float64]:
    """Brightness of each weighted volume over that of b0, (Q - 1,)."""
    b0 = dwi.b0.astype(np.float64)
    return np.array([column.astype(np.float64) @ b0 for column in dwi.signal.T[1:]]) / b0.sum()
