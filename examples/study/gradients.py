"""Gradient tables for dipy."""

from __future__ import annotations

import numpy as np
from dipy.core.gradients import GradientTable, gradient_table

from tripq.scans import DWI


def dipy_table(dwi: DWI) -> GradientTable:
    """The gradient table of a scan for dipy, in world axes."""
    length = np.linalg.norm(dwi.q, axis=1, keepdims=True)
    return gradient_table(
        dwi.b_values, bvecs=dwi.q / np.where(length > 0, length, 1), b0_threshold=10
    )
