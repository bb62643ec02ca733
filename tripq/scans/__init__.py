"""Diffusion scans: reading, writing, gradient frames, and maps on the grid of a scan.

>>> from tripq.scans import read_dwi, write_map  # dwi = read_dwi("dwi.nii.gz", mask="mask.nii.gz")
"""

from __future__ import annotations

from tripq.scans.errors import DWIError
from tripq.scans.frames import Frame, from_world, orthogonal_part, to_world
from tripq.scans.gradients import B0_THRESHOLD
from tripq.scans.read import read_dwi
from tripq.scans.scan import B_REFERENCE, DWI, cubic_edge, voxel_ml
from tripq.scans.shells import SHELL_TOLERANCE, Shell, find_shells
from tripq.scans.write import write_dwi, write_map

__all__ = [
    "B0_THRESHOLD",
    "B_REFERENCE",
    "DWI",
    "SHELL_TOLERANCE",
    "DWIError",
    "Frame",
    "Shell",
    "cubic_edge",
    "find_shells",
    "from_world",
    "orthogonal_part",
    "read_dwi",
    "to_world",
    "voxel_ml",
    "write_dwi",
    "write_map",
]
