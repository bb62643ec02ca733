"""Diffusion scans of a BIDS dataset, their derivatives, and the paths of results.

The Brain Imaging Data Structure (https://bids-specification.readthedocs.io) names files by
entities: ``sub-01_ses-02_run-1_dwi.nii.gz``.
"""

from __future__ import annotations

from tripq.scans.bids.names import (
    BIDS_VERSION,
    IGNORED_MAPS,
    BIDSError,
    BIDSMissingError,
    BIDSName,
    BIDSScan,
    bids_uri,
    model_map,
)
from tripq.scans.bids.search import (
    check_folder,
    dataset_name,
    find_brain_mask,
    find_images,
    find_maps,
    find_masks,
    find_namesakes,
    find_scans,
)

__all__ = [
    "BIDS_VERSION",
    "IGNORED_MAPS",
    "BIDSError",
    "BIDSMissingError",
    "BIDSName",
    "BIDSScan",
    "bids_uri",
    "check_folder",
    "dataset_name",
    "find_brain_mask",
    "find_images",
    "find_maps",
    "find_masks",
    "find_namesakes",
    "find_scans",
    "model_map",
]
