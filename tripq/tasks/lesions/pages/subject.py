"""The page of one subject: slices, lesion candidates, the scan, and cautions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tripq.report.page import Picture, make_picture, number, plural, write_page
from tripq.report.scan import view_scan
from tripq.report.slices import AxialSlices
from tripq.report.volumes import embed_intensity, embed_probability
from tripq.scans import DWI, voxel_ml
from tripq.tasks.lesions.figures import probability_colours, slice_figure
from tripq.tasks.lesions.listing import (
    HEAD_WIDTH,
    MIDLINE,
    Candidate,
    find_candidates,
    label_candidates,
)
from tripq.tasks.lesions.names import HEALTHY_HEADS
from tripq.tasks.lesions.scores import MATCHING_IOU, LesionCounts, Scores, count_lesions, score

_SLICES = 6
_STOPS = 17  # colour stops of the colour bar
_MOST_NAMED = 12  # maximum number of candidates listed in the description of a slice
_LITTLE = 1e-3  # weight of voxels below the threshold: a whole slice counts like one lesion voxel
_PROGRAMS = ("assets/sort.js", "assets/sphere.js", "niivue/niivue.umd.js", "assets/viewer.js")


@dataclass(frozen=True)
class _Truth:
    """Comparison of the candidates with the known lesions.

    Attributes
    ----------
    counts : LesionCounts
        Counts of lesions.
    volume_ml : float
        Volume of the known lesions.
    share : tuple of float
        Share of the voxels of each candidate that are known lesions.
    scores : Scores
        Scores over voxels.
    """

    counts: LesionCounts
    volume_ml: float
    share: tuple[float, ...]
    scores: Scores


def write_subject_report(
    path: str | PathLike[str],
    dwi: DWI,
    probability: ArrayLike,
    *,
    threshold: float,
    settings: Mapping[str, str],
    min_volume: float = 0.0,
    lesion: ArrayLike | None = None,
) -> None:
    """Write the page of one subject.

    Parameters
    ----------
    path : path
        ``.html``; an existing page is replaced.
    dwi : DWI
        The scan.
    probability : (V,) array-like
        Probability of a lesion, from 0 to 1, in the order of ``np.argwhere(dwi.mask)``.
    threshold : float
        Minimum probability of a lesion voxel, from 0 to 1.
    settings : mapping of str to str
        Settings that determine the map, such as the network and its training, shown unchanged.
        Each line under ``"caution"`` is shown at the top, and `HEALTHY_HEADS` below the totals.
    min_volume : float, optional
        Minimum volume of a candidate in ml.
    lesion : (V,) array-like of bool, optional
        The known lesions.

    Raises
    ------
    ReportError
        If `path` is not the name of a page, or nothing can be written there.
    ValueError
        If there is not one probability from 0 to 1 (and one label) for every voxel, or a
        limit is invalid.
    """
    labels = label_candidates(dwi, probability, threshold, min_volume)
    candidates = find_candidates(dwi, probability, threshold, min_volume)
    values = np.asarray(probability, dtype=np.float64)
    known = None if lesion is None else np.asarray(lesion).astype(bool)
    truth = None if known is None else _compare(dwi, values, labels, known, threshold)
    scan = view_scan(dwi)
    shown = dict(settings)
    healthy_heads = shown.pop(HEALTHY_HEADS, "")
    write_page(
        path,
        "subject.html.jinja",
        package=__package__,
        settings=shown,
        programs=_PROGRAMS,
        title=scan.title,
        scan=scan,
        threshold=threshold,
        min_volume=min_volume,
        healthy_heads=healthy_heads,
        candidates=candidates,
        total_ml=sum(candidate.volume_ml for candidate in candidates),
        largest_ml=max((candidate.volume_ml for candidate in candidates), default=None),
        highest=float(values.max()),
        truth=truth,
        matching_iou=MATCHING_IOU,
        slices=_draw_slices(dwi, values, labels, known),
        side_limits={"midline": MIDLINE, "head": HEAD_WIDTH},
        volumes={
            "b0": embed_intensity(dwi, dwi.b0),
            "weighted": embed_intensity(dwi, dwi.b0 * dwi.signal[:, 1:].mean(axis=1)),
            "probability": embed_probability(dwi, values),
        },
        viewer={
            "start": _start(dwi, candidates, values),
            "threshold": threshold,
            "colours": probability_colours(_STOPS).tolist(),
        },
    )


def _compare(
    dwi: DWI,
    probability: NDArray[np.float64],
    labels: NDArray[np.int32],
    known: NDArray[np.bool_],
    threshold: float,
) -> _Truth:
    scores = score(probability, known, threshold, found=labels > 0)
    sizes = np.bincount(labels)[1:]
    overlap = np.bincount(labels[known], minlength=len(sizes) + 1)[1:]
    return _Truth(
        counts=count_lesions(dwi.volume(labels > 0), dwi.volume(known)),
        volume_ml=int(np.count_nonzero(known)) * voxel_ml(dwi.affine),
        share=tuple((overlap / sizes).tolist()),
        scores=scores,
    )


def _draw_slices(
    dwi: DWI,
    probability: NDArray[np.float64],
    labels: NDArray[np.int32],
    known: NDArray[np.bool_] | None,
) -> list[Picture]:
    """The slices with the highest total probability, weighted by candidates and known lesions."""
    slices = AxialSlices(dwi)
    weight = probability * np.where(labels > 0, 1, _LITTLE) + (0 if known is None else known)
    shown = slices.volume(weight if weight.any() else dwi.b0)
    b0, chances, numbers = (slices.volume(v) for v in (dwi.b0, probability, labels))
    truth = None if known is None else slices.volume(known)
    pictures = []
    chosen = slices.choose(shown, _SLICES)
    for index in (index for index in chosen if shown[index].any()):
        figure = slice_figure(
            slices, index, b0=b0, probability=chances, labels=numbers, lesion=truth
        )
        found = np.unique(numbers[index][numbers[index] > 0])
        place = f"Axial slice at z = {number(slices.height(index), 0)} mm"
        alternative = f"{place}: {_name_candidates(found.tolist())}"
        pictures.append(make_picture(figure, alternative, "png"))
    return pictures


def _name_candidates(numbers: list[int]) -> str:
    """Candidates in words; their numbers if there are few."""
    if not numbers:
        return "no candidate"
    if len(numbers) > _MOST_NAMED:
        return plural(len(numbers), "candidate")
    return f"candidate{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}"


def _start(
    dwi: DWI, candidates: tuple[Candidate, ...], probability: NDArray[np.float64]
) -> tuple[float, ...]:
    """Initial position of the viewer, in mm: candidate 1, or the highest probability."""
    if candidates:
        return candidates[0].peak_mm
    return tuple(dwi.voxel_centres()[int(np.argmax(probability))].tolist())
