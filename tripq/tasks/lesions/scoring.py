"""Scores of lesion maps for `tripq evaluate`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tripq.scans.bids import BIDSError, BIDSScan
from tripq.tasks.lesions.maps import (
    LesionMap,
    find_truth,
    read_map,
    read_threshold,
    scan_name,
    score_maps,
)
from tripq.tasks.lesions.names import find_lesion_maps, find_lesion_masks
from tripq.tasks.lesions.pages.evaluation import write_evaluation_report
from tripq.tasks.scoring import Evaluation, MapScoring

_log = logging.getLogger("tripq")
_SHOWN = {
    "roc_auc": "ROC AUC",
    "average_precision": "AP",
    "dice": "Dice",
    "lesion_sensitivity": "sensitivity",
    "lesion_precision": "precision",
    "lesion_f1": "F1",
    "true_ml": "true ml",
    "found_ml": "found ml",
}


@dataclass(frozen=True, eq=False)
class ReadLesionMap:
    """A lesion map that was read, and the threshold for it.

    Parameters
    ----------
    found : BIDSScan
        The map.
    lesion_map : LesionMap
        Its values, with the known lesions.
    threshold : float
        Minimum probability of a lesion voxel.
    """

    found: BIDSScan
    lesion_map: LesionMap
    threshold: float


@dataclass(frozen=True)
class LesionScoring(MapScoring[ReadLesionMap]):
    """Lesion maps against known lesions, by voxel and by lesion.

    Parameters
    ----------
    threshold : float or None
        Minimum probability of a lesion voxel; None for that of the JSON files beside the maps.
    """

    threshold: float | None = None

    needed = ("panoptica",)
    known = "lesion masks"

    def find_maps(self, root: Path, participants: Sequence[str]) -> list[BIDSScan]:
        """See `tripq.tasks.lesions.names.find_lesion_maps`."""
        return find_lesion_maps(root, participants)

    def find_known(self, root: Path, participants: Sequence[str]) -> list[Path]:
        """See `tripq.tasks.lesions.names.find_lesion_masks`."""
        return find_lesion_masks(root, participants)

    def name(self, found: BIDSScan) -> str:
        """See `tripq.tasks.lesions.maps.scan_name`."""
        return scan_name(found)

    def read(self, found: BIDSScan, truth: Path, masks: Path | None) -> tuple[ReadLesionMap, Path]:
        """Read a map, the known lesions of its scan and its threshold."""
        files = find_truth(found, truth, masks)
        lesion_map = read_map(files)
        threshold = read_threshold(found.path) if self.threshold is None else self.threshold
        if files.brain is None:
            _log.info("%s: no brain mask: all voxels are scored.", files.name)
        if lesion_map.outside:
            _log.warning(
                "%s: %d lesion voxels are outside the brain mask and are not scored.",
                *(files.lesion, lesion_map.outside),
            )
        return ReadLesionMap(found, lesion_map, threshold), files.lesion

    def score(self, read: Sequence[ReadLesionMap]) -> Evaluation:
        """Scores of all maps at their common threshold."""
        thresholds = {one.threshold: one.found for one in reversed(read)}
        if len(thresholds) > 1:
            listed = ", ".join(
                f"{value:g} ({found.path.name})" for value, found in reversed([*thresholds.items()])
            )
            raise BIDSError(
                f"{read[0].found.root}: the maps have several thresholds, {listed}: give "
                "--threshold."
            )
        (threshold,) = thresholds
        maps = [one.lesion_map for one in read]

        def write_page(path: Path, settings: Mapping[str, str], title: str) -> None:
            subjects = [lesion_map.subject for lesion_map in maps]
            write_evaluation_report(path, subjects, threshold, settings, title=title)

        return Evaluation(
            rows=score_maps(maps, threshold),
            shown=_SHOWN,
            caption=f"lesion: a probability of {threshold:.3g} or more; AP: average precision; "
            "sensitivity, precision and F1 refer to whole lesions",
            settings={"threshold": threshold},
            write_page=write_page,
        )
