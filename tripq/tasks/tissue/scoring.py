r"""Scores of label images for `tripq evaluate`: Dice and volume of every class.

Dice of a scan is that of panoptica.  For all scans together it is the mean of theirs, weighted by
the voxels that a class has in both images, which is the Dice of all voxels:

.. math::
    \frac{2 \sum_s |A_s \cap B_s|}{\sum_s |A_s| + |B_s|}
      = \frac{\sum_s D_s\, (|A_s| + |B_s|)}{\sum_s |A_s| + |B_s|}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tripq.report.scores import write_scores_report
from tripq.scans import DWIError, voxel_ml
from tripq.scans.bids import BIDSError, BIDSScan, find_brain_mask
from tripq.scans.nifti import open_mask, open_nifti, read_mask, read_volumes
from tripq.tasks.scoring import POOLED, Evaluation, NamedScoring, Scored
from tripq.tasks.tissue.classes import (
    UNLABELLED,
    Classes,
    number_voxels,
    read_classes,
)
from tripq.tasks.tissue.scans import ENDING, read_labels

_SHOWN = {"dice": "Dice", "true_ml": "true ml", "found_ml": "found ml", "error_ml": "error, ml"}
_CAPTION = (
    "error: found minus true volume; for all scans together the mean of the absolute errors; n/a: "
    "undefined, such as Dice of a class that is in neither image"
)


@dataclass(frozen=True, eq=False)
class LabelledMap:
    """A label image of a network, and the known one.

    Parameters
    ----------
    name : str
        Of the scan.
    found, known : (V,) int8 array
        Places of the classes in the voxels that are scored, from 0; `UNLABELLED` for none.  Voxels
        without a known label are not scored.
    voxel_ml : float
        Volume of a voxel in ml.
    classes : Classes
        The classes.
    """

    name: str
    found: NDArray[np.int8]
    known: NDArray[np.int8]
    voxel_ml: float
    classes: Classes


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class, in one scan or in all.

    Parameters
    ----------
    dice : float
        2 |A and B| / (|A| + |B|); NaN if the class is in neither image.
    true_ml, found_ml : float
        Volume in ml.
    error_ml : float
        Found minus true volume; of several scans the mean of the absolute values.
    """

    dice: float
    true_ml: float
    found_ml: float
    error_ml: float

    @classmethod
    def pooled(cls, scans: Sequence[ClassScores]) -> ClassScores:
        """Scores of a class in all scans together."""
        sizes = np.array([one.true_ml + one.found_ml for one in scans])
        dice = np.array([0.0 if math.isnan(one.dice) else one.dice for one in scans])
        return cls(
            dice=float(dice @ sizes / sizes.sum()) if sizes.sum() > 0 else math.nan,
            true_ml=sum(one.true_ml for one in scans),
            found_ml=sum(one.found_ml for one in scans),
            error_ml=float(np.mean([abs(one.error_ml) for one in scans])),
        )


def class_dice(found: NDArray[np.bool_], known: NDArray[np.bool_]) -> float:
    """Dice of the voxels of a class, by panoptica; NaN if there are none in either.

    Examples
    --------
    >>> round(class_dice(np.array([True, True, False]), np.array([True, False, False])), 4)
    0.6667
    """
    if not found.any() and not known.any():
        return math.nan
    if not found.any() or not known.any():
        return 0.0
    both = (one.astype(np.uint8).reshape(-1, 1, 1) for one in (found, known))
    return float(_evaluator().evaluate(*both, verbose=False)["ungrouped"].global_bin_dsc)


@cache
def _evaluator() -> Any:
    """A class is one instance for panoptica, whose parts need not be connected.

    It is imported here because the import takes seconds.  Its citation reminder is disabled, as it
    would print into reports; please cite panoptica: https://github.com/BrainLesion/panoptica#citation.
    """
    import panoptica

    panoptica.disable_citation_reminder()
    return panoptica.Panoptica_Evaluator(
        expected_input=panoptica.InputType.MATCHED_INSTANCE,
        instance_metrics=[],
        global_metrics=[panoptica.Metric.DSC],
    )


def score_classes(one: LabelledMap) -> tuple[ClassScores, ...]:
    """Scores of every class in a scan."""
    scored = one.known != UNLABELLED
    scores = []
    for number in range(len(one.classes.names)):
        found, known = (labels[scored] == number for labels in (one.found, one.known))
        true_ml, found_ml = (float(np.count_nonzero(x) * one.voxel_ml) for x in (known, found))
        scores.append(ClassScores(class_dice(found, known), true_ml, found_ml, found_ml - true_ml))
    return tuple(scores)


class TissueScoring(NamedScoring[LabelledMap]):
    """Label images against known ones, class by class.

    Both have a table of names beside them or further up; numbers may differ, names may not.
    """

    needed = ("panoptica",)
    known = "label images"
    ending = known_ending = ENDING

    def read(self, found: BIDSScan, truth: Path, masks: Path | None) -> tuple[LabelledMap, Path]:
        """Read a label image and the known one, in the brain.

        Without a brain mask the voxels are those that are not 0 in the known image.  Where the map
        is 0 without a name for it, no class was found.
        """
        path = found.image(truth, ENDING)
        image, table = open_nifti(path), read_classes(BIDSScan(truth, path).table(".tsv"))
        own = read_classes(found.table(".tsv"))
        mask = find_brain_mask(found, truth, masks)
        brain = _read(path, image) != 0 if mask is None else read_mask(mask, image)
        if not brain.any():
            raise DWIError(f"{mask or path}: no voxel to score.")
        known = read_labels(path, table, table.classes, image, brain)
        places = {0: UNLABELLED, **own.rank(table.classes)}
        labels = number_voxels(_read(found.path, image)[brain], places, found.path, own.path)
        size = voxel_ml(image.affine)
        return LabelledMap(self.name(found), labels, known, size, table.classes), path

    def score(self, read: Sequence[LabelledMap]) -> Evaluation:
        """Scores of every class in every scan, and in all."""
        return evaluate_maps(read)


def evaluate_maps(maps: Sequence[LabelledMap]) -> Evaluation:
    """Scores of every class in every scan, and in all.

    Parameters
    ----------
    maps : sequence of LabelledMap
        At least one.

    Raises
    ------
    BIDSError
        If they have different classes.
    """
    classes = maps[0].classes
    for one in maps:
        if set(one.classes.names) != set(classes.names):
            raise BIDSError(
                f"{one.name} has other classes than {maps[0].name}: "
                f"{', '.join(one.classes.names)}; {', '.join(classes.names)}."
            )
    scores = {one.name: _in_order(one, classes) for one in maps}
    scores[POOLED] = tuple(map(ClassScores.pooled, zip(*scores.values(), strict=True)))
    voxels = {one.name: int(np.count_nonzero(one.known != UNLABELLED)) for one in maps}
    voxels[POOLED] = sum(voxels.values())
    rows = [
        Scored(name, _columns(of_scan, classes, voxels[name])) for name, of_scan in scores.items()
    ]
    listed = [
        Scored(f"{name}, {class_name}", vars(of_class))
        for name, of_scan in scores.items()
        for class_name, of_class in zip(classes.names, of_scan, strict=True)
    ]
    listed.append(Scored(f"{POOLED}, mean", _mean(scores[POOLED])))

    def write_page(path: Path, settings: Mapping[str, str], title: str) -> None:
        write_scores_report(
            path,
            [(row.name, row.columns) for row in listed],
            _SHOWN,
            settings,
            title=title,
            figure=dice_figure(list(scores.values())[:-1], classes),
            remark=f"{_CAPTION[0].upper()}{_CAPTION[1:]}.",
            alternative="Dice of every class in every scan",
        )

    return Evaluation(rows, _SHOWN, _CAPTION, {}, write_page, listed)


def dice_figure(scans: Sequence[Sequence[ClassScores]], classes: Classes) -> Figure:
    """Dice of every class: a point for each scan.

    Parameters
    ----------
    scans : sequence of sequences of ClassScores
        Of each scan, a score for each class.
    classes : Classes
        The classes.
    """
    n_classes = len(classes.names)
    figure = Figure(figsize=(5.2, 1.0 + 0.4 * n_classes), layout="constrained")
    axes = figure.subplots()
    for place, of_class in enumerate(zip(*scans, strict=True)):
        dice = [one.dice for one in of_class]
        axes.plot(dice, [place] * len(dice), "o", alpha=0.6, color="C0")
    axes.set(xlabel="Dice", xlim=(-0.02, 1.02), ylim=(n_classes - 0.5, -0.5))
    axes.set_yticks(range(n_classes), classes.names)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _read(path: Path, scan: nib.Nifti1Image) -> NDArray[Any]:
    """Values of a label image on the grid of a scan, (X, Y, Z)."""
    (volume,) = read_volumes(open_mask(path, scan, "label image"), path)
    return volume


def _in_order(one: LabelledMap, classes: Classes) -> tuple[ClassScores, ...]:
    """Scores of a scan in the order of other classes of the same names."""
    by_name = dict(zip(one.classes.names, score_classes(one), strict=True))
    return tuple(by_name[name] for name in classes.names)


def _columns(scores: Sequence[ClassScores], classes: Classes, voxels: int) -> dict[str, float]:
    of_classes = {
        f"{label}_{key}": value
        for label, one in zip(classes.labels, scores, strict=True)
        for key, value in vars(one).items()
    }
    return {"mean_dice": _mean(scores)["dice"], **of_classes, "voxels": voxels}


def _mean(scores: Sequence[ClassScores]) -> dict[str, float]:
    """Means over the classes that are in one of the images; volumes have none."""
    there = [one for one in scores if not math.isnan(one.dice)]
    dice, error = (
        float(np.mean([getattr(one, key) for one in there])) if there else math.nan
        for key in ("dice", "error_ml")
    )
    return {"dice": dice, "true_ml": math.nan, "found_ml": math.nan, "error_ml": error}
