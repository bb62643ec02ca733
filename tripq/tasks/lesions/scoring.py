"""Scores of lesion maps for `tripq evaluate`."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tripq.scans.bids import BIDSError, BIDSScan
from tripq.tasks.lesions.evaluated import best_limits
from tripq.tasks.lesions.listing import check_limits
from tripq.tasks.lesions.maps import (
    LesionMap,
    find_truth,
    read_map,
    read_min_volume,
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
    "calibration_error": "ECE",
    "lesion_sensitivity": "sensitivity",
    "lesion_precision": "precision",
    "lesion_f1": "F1",
    "true_ml": "true ml",
    "found_ml": "found ml",
}


@dataclass(frozen=True, eq=False)
class ReadLesionMap:
    """A lesion map that was read, and the limits of its candidates.

    Parameters
    ----------
    found : BIDSScan
        The map.
    lesion_map : LesionMap
        Its values, with the known lesions.
    threshold : float
        Minimum probability of a lesion voxel.
    min_volume : float
        Minimum volume of a candidate in ml.
    """

    found: BIDSScan
    lesion_map: LesionMap
    threshold: float
    min_volume: float


@dataclass(frozen=True)
class LesionScoring(MapScoring[ReadLesionMap]):
    """Lesion maps against known lesions, by voxel and by lesion.

    Parameters
    ----------
    threshold : float or None
        Minimum probability of a lesion voxel; None for that of the JSON files beside the maps.
    min_volume : float or None
        Minimum volume of a candidate in ml; None for that of the JSON files.
    choose_limits : bool
        Whether both are chosen on the maps that are scored, by `best_limits`.

    Raises
    ------
    ValueError
        If a limit is out of range, or given although both are chosen.
    """

    threshold: float | None = None
    min_volume: float | None = None
    choose_limits: bool = False

    needed = ("torchmetrics",)
    known = "lesion masks"

    def __post_init__(self) -> None:
        check_limits(self.threshold or 0.0, self.min_volume or 0.0)
        if self.choose_limits and (self.threshold, self.min_volume) != (None, None):
            raise ValueError("--choose-limits: not with --threshold or --min-volume.")

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
        """Read a map, the known lesions of its scan and the limits of its candidates."""
        files = find_truth(found, truth, masks)
        lesion_map = read_map(files)
        if files.brain is None:
            _log.info("%s: no brain mask: all voxels are scored.", files.name)
        if lesion_map.outside:
            _log.warning(
                "%s: %d lesion voxels are outside the brain mask and are not scored.",
                *(files.lesion, lesion_map.outside),
            )
        return ReadLesionMap(found, lesion_map, *self._limits(found)), files.lesion

    def _limits(self, found: BIDSScan) -> tuple[float, float]:
        """Threshold and minimum volume of a map; none yet, if `score` chooses them."""
        if self.choose_limits:
            return 0.0, 0.0
        return (
            read_threshold(found.path) if self.threshold is None else self.threshold,
            read_min_volume(found.path) if self.min_volume is None else self.min_volume,
        )

    def score(self, read: Sequence[ReadLesionMap]) -> Evaluation:
        """Scores of all maps at one threshold and minimum volume."""
        maps = [one.lesion_map for one in read]
        subjects = [lesion_map.subject for lesion_map in maps]
        if self.choose_limits:
            threshold, min_volume = _best_limits(read)
        else:
            threshold, min_volume = _common_limits(read)
        smallest = f" in {min_volume:g} ml or more" if min_volume else ""
        chosen = (
            f" (chosen on these maps, whose scores are therefore too optimistic; for other scans: "
            f"--threshold {threshold:.6g} --min-volume {min_volume:g})"
            if self.choose_limits
            else ""
        )

        def write_page(path: Path, settings: Mapping[str, str], title: str) -> None:
            write_evaluation_report(
                path,
                subjects,
                threshold,
                settings,
                min_volume=min_volume,
                chosen_here=self.choose_limits,
                title=title,
            )

        return Evaluation(
            rows=score_maps(maps, threshold, min_volume),
            shown=_SHOWN,
            caption=f"found: a probability of {threshold:.3g} or more{smallest}"
            f"{chosen}; AP: average precision; ECE: expected calibration error, over all voxels; "
            "sensitivity, precision and F1 refer to whole lesions",
            settings={
                "threshold": threshold,
                "min_volume_ml": min_volume,
                "limits_chosen_on_these_maps": self.choose_limits,
            },
            write_page=write_page,
        )


def _best_limits(read: Sequence[ReadLesionMap]) -> tuple[float, float]:
    """See `best_limits`; the threshold is rounded down to the digits that are printed."""
    subjects = [one.lesion_map.subject for one in read]
    if not any(np.any(subject.lesion) for subject in subjects):
        raise BIDSError(
            f"{read[0].found.root}: --choose-limits needs a known lesion; the scored maps "
            f"({len(read)}) have none: add participants with lesions."
        )
    threshold, min_volume = best_limits(subjects)
    return math.floor(1e6 * threshold) / 1e6, min_volume


def _common_limits(read: Sequence[ReadLesionMap]) -> tuple[float, float]:
    """Threshold and minimum volume that all maps have in common."""
    found = [one.found for one in read]
    volumes = [one.min_volume for one in read]
    return (
        _common(found, [one.threshold for one in read], "thresholds", "--threshold"),
        _common(found, volumes, "minimum volumes", "--min-volume"),
    )


def _common(found: Sequence[BIDSScan], values: Sequence[float], name: str, option: str) -> float:
    """The value that all maps have in common."""
    first: dict[float, BIDSScan] = {}
    for scan, value in zip(found, values, strict=True):
        first.setdefault(value, scan)
    if len(first) > 1:
        listed = ", ".join(f"{value:g} ({scan.path.name})" for value, scan in first.items())
        raise BIDSError(f"{found[0].root}: the maps have several {name}, {listed}: give {option}.")
    return values[0]
