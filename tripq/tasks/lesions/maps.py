"""Lesion maps and known lesions of the same scans in derivatives, and their scores.

>>> from pathlib import Path
>>> from tripq.tasks.lesions.names import find_lesion_maps
>>> from tripq.tasks.scoring import scores_tsv
>>> def scores(maps: Path, truth: Path) -> str:
...     read = [read_map(find_truth(found, truth)) for found in find_lesion_maps(maps)]
...     return scores_tsv(score_maps(read, threshold=0.5))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tripq.infra.files import printable, read_json
from tripq.scans import DWIError, voxel_ml
from tripq.scans.bids import BIDSError, BIDSScan, find_brain_mask
from tripq.scans.nifti import open_nifti, read_mask, read_volumes
from tripq.tasks.lesions.evaluated import EvaluatedSubject
from tripq.tasks.lesions.names import LABEL, MAX_MIN_VOLUME, lesion_mask
from tripq.tasks.lesions.scores import LesionCounts, Scores, calibration_error, count_lesions, score
from tripq.tasks.scoring import POOLED


@dataclass(frozen=True)
class MapFiles:
    """Files of a lesion map and of the known lesions of the same scan.

    Parameters
    ----------
    name : str
        Entities of the scan, such as ``sub-01_ses-a``.
    probability : Path
        Probability of a lesion, (X, Y, Z), NIfTI.
    lesion : Path
        Mask of the known lesions, on the same grid.
    brain : Path or None
        Mask of the voxels that are scored, on the same grid; None for all.
    """

    name: str
    probability: Path
    lesion: Path
    brain: Path | None = None


@dataclass(frozen=True, eq=False)
class LesionMap:
    """A lesion map in memory.

    Parameters
    ----------
    subject : EvaluatedSubject
        Its voxels, their probabilities, and the known lesions.
    outside : int
        Number of known lesion voxels outside the brain mask, which are not scored.
    """

    subject: EvaluatedSubject
    outside: int = 0


@dataclass(frozen=True)
class MapScores:
    """Scores of one map, or of several together.

    Parameters
    ----------
    name : str
        Name of the scan; `POOLED` for all.
    scores : Scores
        Scores over voxels.
    calibration_error : float
        Expected calibration error over voxels; see `tripq.tasks.lesions.scores.calibration_error`.
    counts : LesionCounts
        Counts of lesions.
    true_ml, found_ml : float
        Volume of the known lesions, and of the candidates, in ml.
    """

    name: str
    scores: Scores
    calibration_error: float
    counts: LesionCounts
    true_ml: float
    found_ml: float

    @property
    def columns(self) -> dict[str, float]:
        """All numbers by their names in files; NaN for undefined scores."""
        return {
            "roc_auc": self.scores.roc_auc,
            "average_precision": self.scores.average_precision,
            "dice": self.scores.dice,
            "calibration_error": self.calibration_error,
            "lesion_sensitivity": self.counts.sensitivity,
            "lesion_precision": self.counts.precision,
            "lesion_f1": self.counts.f1,
            "true_lesions": self.counts.true,
            "found_lesions": self.counts.found,
            "matched_lesions": self.counts.matched,
            "true_ml": self.true_ml,
            "found_ml": self.found_ml,
            "voxels": self.scores.voxels,
            "lesion_voxels": self.scores.lesion_voxels,
        }


def find_truth(found: BIDSScan, truth: Path, masks: Path | None = None) -> MapFiles:
    """Find the known lesions of the scan of a map, by BIDS entities.

    Parameters
    ----------
    found : BIDSScan
        The map, from `tripq.tasks.lesions.names.find_lesion_maps`.
    truth : Path
        Derivatives with ``*_label-lesion_mask.nii.gz`` in the same subfolders.
    masks : Path, optional
        Derivatives with a ``*_desc-brain_mask.nii.gz`` for every map.  By default those in `truth`
        are used; without a mask, all voxels.

    Returns
    -------
    MapFiles

    Raises
    ------
    BIDSMissingError
        If there is no truth, or `masks` has no brain mask.
    BIDSError
        If two masks apply equally.
    """
    brain = find_brain_mask(found, truth, masks)
    return MapFiles(scan_name(found), found.path, lesion_mask(found, truth), brain)


def scan_name(found: BIDSScan) -> str:
    """Entities of the scan of a file.

    >>> name = "sub-01_ses-a_space-orig_label-lesion_probseg.nii.gz"
    >>> scan_name(BIDSScan(Path("out"), Path("out") / name))
    'sub-01_ses-a'
    """
    of_the_map = (("space", "orig"), ("label", LABEL))
    entities = (pair for pair in found.name.entities.items() if pair not in of_the_map)
    return printable("_".join(f"{key}-{label}" for key, label in entities))


def read_map(files: MapFiles) -> LesionMap:
    """Read a map with the known lesions of its scan.

    Parameters
    ----------
    files : MapFiles
        Result of `find_truth`.

    Raises
    ------
    DWIError
        If a file cannot be read, a value in the brain is not a probability, the mask of the brain
        is empty, or the grids differ; the message names the files.
    """
    image = open_nifti(files.probability)
    if len(image.shape) < 3 or prod(image.shape[3:]) != 1:
        raise DWIError(f"{files.probability}: shape {image.shape}; a map is (X, Y, Z).")
    (volume,) = read_volumes(image, files.probability)
    lesion = _on_grid(files.lesion, image, files)
    mask = np.ones(volume.shape, dtype=bool)
    if files.brain is not None:
        mask = _on_grid(files.brain, image, files)
        if not mask.any():
            raise DWIError(f"{files.brain}: the mask of the brain is empty.")
    values = volume[mask].astype(np.float64)
    wrong = ~((values >= 0) & (values <= 1))
    if wrong.any():
        raise DWIError(
            f"{files.probability}: {np.count_nonzero(wrong)} values in the brain are not "
            f"probabilities from 0 to 1, such as {values[wrong][0]:g}."
        )
    return LesionMap(
        EvaluatedSubject(files.name, mask, values, lesion[mask], voxel_ml(image.affine)),
        int(np.count_nonzero(lesion & ~mask)),
    )


def read_threshold(probability: Path) -> float:
    """Threshold in the sidecar of a map, ``Threshold`` in the JSON file beside it.

    Parameters
    ----------
    probability : Path
        The map.

    Raises
    ------
    BIDSError
        If there is none, or it is not a number from 0 to 1.
    """
    path = _sidecar(probability)
    if not path.is_file():
        raise BIDSError(f"{probability}: no {path.name} with its threshold: give --threshold.")
    try:
        threshold = read_json(path)["Threshold"]
    except (ValueError, LookupError):
        raise BIDSError(f"{path}: has no Threshold: give --threshold.") from None
    if not _is_number(threshold) or not 0 <= threshold <= 1:
        raise BIDSError(f"{path}: the Threshold is {threshold!r}, not a number from 0 to 1.")
    return float(threshold)


def read_min_volume(probability: Path) -> float:
    """Minimum volume of a candidate in ml, ``MinVolumeMillilitres`` in the JSON file beside a map.

    Parameters
    ----------
    probability : Path
        The map.

    Returns
    -------
    float
        0 without a file or an entry, as for maps of other programs and of earlier versions.

    Raises
    ------
    BIDSError
        If it is not a number from 0 to `MAX_MIN_VOLUME`, or the file is not JSON.
    """
    path = _sidecar(probability)
    if not path.is_file():
        return 0.0
    try:
        volume = read_json(path).get("MinVolumeMillilitres", 0.0)
    except ValueError as error:
        raise BIDSError(f"{error} It has no minimum volume: give --min-volume.") from error
    if not _is_number(volume) or not 0 <= volume <= MAX_MIN_VOLUME:
        raise BIDSError(
            f"{path}: the MinVolumeMillilitres is {volume!r}, not a number from 0 to "
            f"{MAX_MIN_VOLUME:g}."
        )
    return float(volume)


def score_maps(
    maps: Sequence[LesionMap], threshold: float, min_volume: float = 0.0
) -> tuple[MapScores, ...]:
    """Scores of every map, and of all maps together.

    Parameters
    ----------
    maps : sequence of LesionMap
        At least one map.
    threshold : float
        Threshold of the probability for Dice, lesions and volumes.
    min_volume : float, optional
        Minimum volume of a candidate in ml, for the same.

    Returns
    -------
    tuple of MapScores
        Scores of each map, and last those of all voxels and lesions, with the name `POOLED`.
    """
    rows, marked = [], []
    for subject in (read.subject for read in maps):
        probability, lesion = np.asarray(subject.probability), np.asarray(subject.lesion)
        candidates = subject.mark(threshold, min_volume)
        marked.append(candidates[subject.mask])
        rows.append(
            MapScores(
                subject.name,
                score(probability, lesion, threshold, found=marked[-1]),
                calibration_error(probability, lesion),
                count_lesions(candidates, subject.known),
                true_ml=float(np.count_nonzero(lesion) * subject.voxel_ml),
                found_ml=float(np.count_nonzero(candidates) * subject.voxel_ml),
            )
        )
    everything = (
        np.concatenate([read.subject.probability for read in maps]),
        np.concatenate([read.subject.lesion for read in maps]),
    )
    pooled = MapScores(
        POOLED,
        score(*everything, threshold, found=np.concatenate(marked)),
        calibration_error(*everything),
        sum((row.counts for row in rows), start=LesionCounts(0, 0, 0)),
        true_ml=sum(row.true_ml for row in rows),
        found_ml=sum(row.found_ml for row in rows),
    )
    return (*rows, pooled)


def _sidecar(probability: Path) -> Path:
    return probability.with_name(f"{probability.name.partition('.')[0]}.json")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _on_grid(path: Path, image: nib.Nifti1Image, files: MapFiles) -> NDArray[np.bool_]:
    """Read a mask on the grid of the map; the error names both files if the grids differ."""
    try:
        return read_mask(path, image)
    except DWIError as error:
        raise DWIError(f"{error} It is needed for the map {files.probability}.") from error
