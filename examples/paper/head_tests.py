"""What lesion networks mark in real heads, as they are and with implanted lesions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import ndimage
from study import kept

from paper.real_heads import RealHead
from paper.repeats import Repeat, agreement
from paper.results import curve_of
from paper.statistics import headline, precision_over_recall
from paper.work import score_maps
from tripq.scans import DWI, voxel_ml
from tripq.tasks.lesions.datasets import LabelledSubject, load_severity
from tripq.tasks.lesions.listing import find_candidates
from tripq.tasks.lesions.scores import score
from tripq.tasks.lesions.segmentation import Model, Segmentation, segment_scan

#: Edge in mm of the voxels of the second map of a healthy head.
RESAMPLED = 2.0

#: Implanted lesions that are counted: volume in ml, and severity.
SMALLEST, MILDEST = 0.1, 0.4

#: A lesion is found if this share of its voxels is marked.
FOUND = 0.1

#: Edges of the bins of the reliability curve.
BINS = np.linspace(0.0, 1.0, 11)


#: Thresholds that are compared.
THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

#: Scans of one head, and what differs from the first.
REPEATED = "canon3000"
REPEATS = {
    "canon14000": "head turned",
    "canon5000": "slab turned, sagittal",
    "canon6000": "slab turned, axial",
    "canon7000": "slab turned, coronal",
    "canon8000": "slab turned, all axes",
}


@dataclass(frozen=True)
class Healthy:
    """What was marked in one scan of a healthy head.

    Parameters
    ----------
    head, person, scanner : str
        See `RealHead`.
    voxels : str
        Their edges in mm.
    shells : str
        Directions of each b-value.
    spots, spots_resampled : int
        Candidates on the scan's voxels and on those of 2 mm.
    ml, ml_resampled : float
        Their volume.
    correlation : float
        Of both maps of the logit.
    ml_at : tuple of float
        Volume of the candidates on the scan's voxels, at each of `THRESHOLDS`.
    """

    head: str
    person: str
    scanner: str
    voxels: str
    shells: str
    spots: int
    ml: float
    spots_resampled: int
    ml_resampled: float
    correlation: float
    ml_at: tuple[float, ...]


@dataclass(frozen=True)
class Implanted:
    """What was found in one head with implanted lesions.

    Parameters
    ----------
    subject, person : str
        Of the cohort.
    lesions, found : int
        Those above `SMALLEST` and `MILDEST`, and how many were found.
    found_at : tuple of int
        How many of them are found at each of `THRESHOLDS`.
    average_precision, dice : float
        Over its voxels.
    voxels, lesion_voxels, probability : tuple
        For each of `BINS`: voxels, lesion voxels, and the mean probability (0 without voxels).
    curve : tuple of (int, int)
        See `paper.results.SubjectResult`.
    """

    subject: str
    person: str
    lesions: int
    found: int
    found_at: tuple[int, ...]
    average_precision: float
    dice: float
    voxels: tuple[int, ...]
    lesion_voxels: tuple[int, ...]
    probability: tuple[float, ...]
    curve: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Simulated:
    """Scores of simulated scans, of the network with which a person was measured."""

    person: str
    roc_auc: float
    average_precision: float
    dice: float
    lesion_sensitivity: float
    lesion_precision: float


@dataclass(frozen=True)
class Tests:
    """All results."""

    healthy: tuple[Healthy, ...]
    implanted: tuple[Implanted, ...]
    simulated: tuple[Simulated, ...]
    repeats: tuple[Repeat, ...]

    def write(self, path: Path) -> None:
        """Write a file of JSON."""
        kept.write(path, self)

    @classmethod
    def read(cls, path: Path) -> Tests:
        """Read what `write` wrote."""
        content = kept.read(path)

        def rows(name: str, kind: type) -> tuple[Any, ...]:
            return tuple(
                kind(**{key: _tuples(value) for key, value in row.items()}) for row in content[name]
            )

        try:
            return cls(
                rows("healthy", Healthy),
                rows("implanted", Implanted),
                rows("simulated", Simulated),
                rows("repeats", Repeat),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: not a result of this program ({error}): measure the network again."
            ) from error


def _tuples(value: Any) -> Any:
    """Tuples in place of the lists of JSON."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def measure_healthy(
    head: RealHead, whole: Segmentation, model: Model, pictures: Path | None
) -> Healthy:
    """Compare the map of a healthy head on its voxels with that on others."""
    dwi = whole.dwi
    resampled = segment_scan(model, dwi, voxel_size=RESAMPLED)
    found, again = (
        find_candidates(dwi, result.probability, model.threshold, model.min_volume)
        for result in (whole, resampled)
    )
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        draw(dwi, whole, model).savefig(pictures / f"{head.name}.png", dpi=80)
    return Healthy(
        head.name,
        head.person,
        head.scanner,
        " x ".join(f"{edge:.3g}" for edge in dwi.voxel_size),
        ", ".join(f"{len(shell)} at {shell.b_value:.0f}" for shell in dwi.shells),
        len(found),
        round(sum(spot.volume_ml for spot in found), 3),
        len(again),
        round(sum(spot.volume_ml for spot in again), 3),
        round(float(np.corrcoef(logit(whole), logit(resampled))[0, 1]), 3),
        tuple(
            round(float(whole.marked(threshold, model.min_volume).sum()) * voxel_ml(dwi.affine), 3)
            for threshold in THRESHOLDS
        ),
    )


def measure_implanted(
    person: str, subject: LabelledSubject, cohort: Path, model: Model
) -> Implanted:
    """Segment one head with implanted lesions."""
    dwi, lesion = subject.dwi, subject.lesion
    found = segment_scan(model, dwi)
    probability = found.probability
    scores = score(probability, lesion, model.threshold)
    labels, number = ndimage.label(dwi.volume(lesion), np.ones((3, 3, 3)))
    label = labels[dwi.mask]
    size = np.bincount(label, minlength=number + 1)[1:]
    severity = ndimage.maximum(load_severity(cohort, subject), label, np.arange(1, number + 1))
    counted = (size * voxel_ml(dwi.affine) > SMALLEST) & (np.asarray(severity) >= MILDEST)

    def count_found(threshold: float) -> int:
        marked = found.marked(threshold, model.min_volume)
        share = np.bincount(label, weights=marked, minlength=number + 1)[1:] / size
        return int((counted & (share >= FOUND)).sum())

    bins = np.clip(np.digitize(probability, BINS) - 1, 0, len(BINS) - 2)
    voxels, sick, total = (
        np.bincount(bins, weights=weights, minlength=len(BINS) - 1)
        for weights in (None, lesion, probability.astype(np.float64))
    )
    return Implanted(
        subject.name,
        person,
        int(counted.sum()),
        count_found(model.threshold),
        tuple(map(count_found, THRESHOLDS)),
        round(scores.average_precision, 4),
        round(scores.dice, 4),
        tuple(voxels.tolist()),
        tuple(sick.astype(int).tolist()),
        tuple(np.round(total / np.maximum(voxels, 1), 4).tolist()),
        curve_of(probability, lesion),
    )


def measure_repeats(found: Mapping[str, Segmentation]) -> tuple[Repeat, ...]:
    """Compare the maps of the repeated scans with that of the first, on their own voxels."""
    if REPEATED not in found:
        return ()
    first = found[REPEATED]
    return tuple(
        Repeat(REPEATED, name, says, *agreement(first.dwi, logit(first), other.dwi, logit(other)))
        for name, says in REPEATS.items()
        for other in [found[name]]
    )


def measure_simulated(person: str, subjects: Sequence[LabelledSubject], model: Model) -> Simulated:
    """Segment simulated scans with the network with which a person was measured."""
    return Simulated(person, *simulated_scores(subjects, model))


def simulated_scores(subjects: Sequence[LabelledSubject], model: Model) -> list[float]:
    """The scores of `paper.statistics.headline`, of simulated scans."""
    maps = [segment_scan(model, subject.dwi).probability for subject in subjects]
    return [round(value, 4) for value in headline(score_maps(subjects, maps, model.threshold))]


def pooled(
    rows: Sequence[Implanted],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Voxels, lesion voxels and the sum of the probabilities in each of `BINS`, over all rows."""
    voxels = np.sum([row.voxels for row in rows], axis=0)
    sick = np.sum([row.lesion_voxels for row in rows], axis=0)
    return voxels, sick, np.sum([np.multiply(r.voxels, r.probability) for r in rows], axis=0)


def pooled_average_precision(rows: Sequence[Implanted]) -> float:
    """Average precision over the voxels of all rows."""
    voxels, sick, _ = pooled(rows)
    curves = np.sum([row.curve for row in rows], axis=0)
    all_voxels = [voxels.sum() - sick.sum(), sick.sum()]
    return precision_over_recall(*np.vstack([all_voxels, curves]).T)


def pooled_calibration_error(rows: Sequence[Implanted]) -> float:
    """Expected calibration error over the voxels of all rows."""
    voxels, sick, total = pooled(rows)
    return float(np.abs(total - sick).sum() / voxels.sum())


def logit(found: Segmentation) -> NDArray[np.float64]:
    """The logit of each voxel, bounded where a probability is 0 or 1 to rounding."""
    p = np.clip(found.probability.astype(np.float64), 1e-7, 1 - 1e-7)
    return np.log(p / (1 - p))


def draw(dwi: DWI, found: Segmentation, model: Model) -> Figure:
    """b0, the mean of the weighted volumes and the map, in the slice with most that was marked."""
    marked = dwi.volume(found.marked(model.threshold, model.min_volume))
    z = int(marked.sum(axis=(0, 1)).argmax()) if marked.any() else dwi.mask.shape[2] // 2
    weighted = dwi.signal[:, 1:].mean(axis=1)
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, title, values in zip(
        panels,
        ("b0", "mean of the weighted volumes / b0", "probability"),
        (dwi.b0, weighted, found.probability),
        strict=True,
    ):
        image = dwi.volume(values)[:, :, z].T
        axes.imshow(
            image,
            cmap="gray",
            origin="lower",
            vmax=1.0 if title == "probability" else np.quantile(values, 0.98),
            aspect=dwi.voxel_size[1] / dwi.voxel_size[0],
        )
        if marked.any():
            axes.contour(marked[:, :, z].T, levels=[0.5], colors="tab:red", linewidths=0.8)
        axes.set_title(title)
        axes.set_axis_off()
    return figure
