"""BIDS names for lesions: ``label-lesion`` in maps, masks and pages.

>>> scan = BIDSScan(Path("data"), Path("data/sub-01/dwi/sub-01_dwi.nii.gz"))
>>> print(lesion_result(scan, "probseg", ".nii.gz").as_posix())
sub-01/dwi/sub-01_space-orig_label-lesion_probseg.nii.gz
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tripq.scans import bids
from tripq.scans.bids import BIDSScan

LABEL = "lesion"
"""BIDS label of all files about lesions."""

HEALTHY_HEADS = "Healthy heads"
"""Setting of a page: sentence on what the network marked on healthy heads."""

MAX_MIN_VOLUME = 1000.0
"""Maximum of the minimum volume of a candidate in ml; a brain has about 1,200 ml."""


def lesion_result(scan: BIDSScan, suffix: str, extension: str) -> Path:
    """Path of a result about the lesions of a scan; see `tripq.scans.bids.BIDSScan.result`."""
    return scan.result(LABEL, suffix, extension)


def lesion_mask(scan: BIDSScan, derivatives: Path) -> Path:
    """The known lesions of a scan, ``label-lesion_mask``; see `tripq.scans.bids.BIDSScan.mask`."""
    return scan.mask(derivatives, f"label-{LABEL}")


def find_lesion_maps(root: Path, participants: Sequence[str] = ()) -> list[BIDSScan]:
    """Lesion maps of a dataset written by ``tripq segment-bids``; see `bids.find_maps`."""
    return bids.find_maps(root, LABEL, participants)


def find_lesion_masks(root: Path, participants: Sequence[str] = ()) -> list[Path]:
    """Known lesions of a derivatives dataset; see `bids.find_masks`."""
    return bids.find_masks(root, LABEL, participants)
