"""Scores of orientation distributions: their shape, and the directions of their peaks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tripq.scans import DWIError
from tripq.scans.bids import BIDSMissingError, BIDSScan, find_brain_mask
from tripq.scans.nifti import check_grid, open_nifti, read_mask, read_volumes
from tripq.so3.mrtrix import from_mrtrix
from tripq.tasks.fibres.names import FODF, PEAKS
from tripq.tasks.fibres.peaks import angles_between, crossing_angles, find_peaks
from tripq.tasks.fibres.scans import read_voxels
from tripq.tasks.fibres.task import angular_correlation
from tripq.tasks.scoring import POOLED, Evaluation, NamedScoring, Scored

SINGLE, CROSSING = 0.2, 0.5
"""Fibres are those of at least half the length of the largest of the voxel.

A voxel has a single fibre if all others are shorter than a fifth; what is between is not scored by
angle."""

CROSSING_ANGLES = (60.0, 90.0)
"""Angles in degrees at which two fibres cross, in the voxels that are scored as crossings."""

_SHOWN = {
    "angular_correlation": "angular correlation",
    "single_error": "error of single fibres, degrees",
    "crossing_error": "at crossings, degrees",
    "crossings_found": "crossings with two peaks",
    "crossing_voxels": "crossings",
}
_CAPTION = "crossings: two fibres at 60 to 90 degrees"


@dataclass(frozen=True, eq=False)
class FibreMap:
    """Orientation distributions of a scan with its known fibres, in V voxels.

    Parameters
    ----------
    name : str
        Of the scan.
    fodf : (V, C) float32 array
        Coefficients; orthonormal, in e3nn's basis.
    known_peaks : (V, K, 3) float32 array
        Known fibres, the longest first, zeros for missing ones; voxels without one are not scored.
    known_fodf : (V, C) float32 array or None
        Known distributions, of any order; None where only fibres are known.
    """

    name: str
    fodf: NDArray[np.float32]
    known_peaks: NDArray[np.float32]
    known_fodf: NDArray[np.float32] | None


@dataclass(frozen=True, eq=False)
class _Errors:
    """Scores of voxels: correlations, angles (N,) in degrees, and peaks at crossings."""

    correlation: NDArray[np.floating]
    single: NDArray[np.floating]
    crossing: NDArray[np.floating]
    both_found: NDArray[np.bool_]


def score_fibres(read: Sequence[FibreMap]) -> Evaluation:
    """Scores of at least one map.

    Every known fibre is compared with the nearest of the largest peaks; see
    `tripq.tasks.fibres.peaks.angles_between`.
    """
    errors = [_errors(one) for one in read]
    everything = _Errors(
        *(
            np.concatenate([getattr(one, name) for one in errors])
            for name in _Errors.__dataclass_fields__
        )
    )
    names = [one.name for one in read]
    rows = [_row(name, one) for name, one in zip(names, errors, strict=True)]
    rows.append(_row(POOLED, everything))

    def write_page(path: Path, settings: Mapping[str, str], title: str) -> None:
        from tripq.report.scores import write_scores_report

        write_scores_report(
            path,
            [(row.name, row.columns) for row in rows],
            _SHOWN,
            settings,
            title=title,
            figure=_angles_figure(everything),
            remark="Angle of every known fibre to the nearest of the largest peaks, as many as "
            f"there are fibres; {_CAPTION}.",
        )

    return Evaluation(rows, _SHOWN, _CAPTION, {}, write_page)


def _errors(one: FibreMap) -> _Errors:
    scored = one.known_peaks[:, 0].any(axis=-1)
    fodf, known = one.fodf[scored], one.known_peaks[scored]
    fibre, single, crossing = kinds_of_voxels(known)
    known = np.where(fibre[..., None], known, 0)
    peaks = find_peaks(fodf)
    angles = angles_between(known, peaks)
    correlation = np.empty(0)
    if one.known_fodf is not None:
        of_known = one.known_fodf[scored]
        common = min(fodf.shape[1], of_known.shape[1])
        pair = (torch.from_numpy(values[:, :common]) for values in (fodf, of_known))
        correlation = angular_correlation(*pair).nan_to_num().numpy()
    return _Errors(
        correlation,
        angles[single, 0],
        angles[crossing, :2].ravel(),
        peaks[crossing, 1].any(axis=-1),
    )


def kinds_of_voxels(
    peaks: NDArray[np.floating],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Which peaks are fibres, which voxels have a single one, and in which two cross.

    Parameters
    ----------
    peaks : (V, K, 3) array
        The longest first, zeros for missing ones.

    Returns
    -------
    fibres : (V, K) bool array
        Peaks of at least `CROSSING` times the length of the longest.
    single, crossing : (V,) bool arrays
        Voxels whose other peaks are shorter than `SINGLE` times the longest, and voxels with two
        fibres at `CROSSING_ANGLES`.

    Examples
    --------
    >>> along, across, weak = [1.0, 0, 0], [0, 0.6, 0], [0, 0.3, 0]
    >>> _, single, crossing = kinds_of_voxels(np.array([[along, across], [along, weak]]))
    >>> single.tolist(), crossing.tolist()
    ([False, False], [True, False])
    """
    lengths = np.linalg.norm(peaks, axis=-1)
    there = lengths[:, 0] > 0
    fibres = (lengths >= CROSSING * lengths[:, :1]) & there[:, None]
    low, high = CROSSING_ANGLES
    angle = np.nan_to_num(crossing_angles(np.where(fibres[..., None], peaks, 0)))
    crossing = (fibres.sum(axis=1) == 2) & (angle >= low) & (angle <= high + 1e-3)
    single = there & ((lengths >= SINGLE * lengths[:, :1]).sum(axis=1) == 1)
    return fibres, single, crossing


def _row(name: str, errors: _Errors) -> Scored:
    return Scored(
        name,
        {
            "angular_correlation": _mean(errors.correlation),
            "single_error": _mean(errors.single),
            "crossing_error": _mean(errors.crossing),
            "crossings_found": _mean(errors.both_found),
            "single_voxels": len(errors.single),
            "crossing_voxels": len(errors.both_found),
        },
    )


def _mean(values: NDArray[np.generic]) -> float:
    return float(values.mean()) if len(values) else math.nan


def _angles_figure(errors: _Errors) -> Figure:
    """Cumulative distribution of the angular errors of the fibres."""
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axes = figure.subplots()
    for label, values in (("single fibres", errors.single), ("crossings", errors.crossing)):
        if len(values):
            axes.ecdf(values, label=label)
    axes.set(xlabel="angle to the known fibre, degrees", ylabel="share of the fibres")
    axes.set(xlim=(0, 90), ylim=(0, 1))
    if axes.lines:
        axes.legend(loc="lower right")
    return figure


class FibreScoring(NamedScoring[FibreMap]):
    """Maps of orientation distributions against known fibres.

    The truth needs peaks: up to three vectors in world axes, the longest first.  With distributions
    beside them their shape is compared, too.  `tripq.tasks.fibres.names` has the names.
    """

    known = "maps of fibres"
    ending = FODF
    known_ending = PEAKS

    def read(self, found: BIDSScan, truth: Path, masks: Path | None) -> tuple[FibreMap, Path]:
        """Read a map and the known fibres, on the same grid, in the brain."""
        path = found.image(truth, PEAKS)
        _check_same_grid(found.path, path)
        image = open_nifti(found.path)
        brain = find_brain_mask(found, truth, masks)
        inside = np.ones(image.shape[:3], bool) if brain is None else read_mask(brain, image)
        peaks = read_peaks(path, inside)
        inside[inside] = known = peaks[:, 0].any(axis=-1)
        if not known.any():
            raise DWIError(f"{path}: no fibre is known in the brain.")
        fodf = None
        try:
            other = found.image(truth, FODF)
        except BIDSMissingError:
            pass
        else:
            _check_same_grid(found.path, other)
            fodf = from_mrtrix(read_voxels(other, inside))
        maps = from_mrtrix(read_voxels(found.path, inside))
        return FibreMap(self.name(found), maps, peaks[known], fodf), path

    def score(self, read: Sequence[FibreMap]) -> Evaluation:
        """Scores over the voxels of every map, and over all."""
        return score_fibres(read)


def read_peaks(path: Path, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Fibres of the voxels of a mask, (V, K, 3), as MRtrix writes them, the longest first.

    Raises
    ------
    tripq.scans.DWIError
        If the file is damaged, or has not three volumes for each fibre.
    """
    image = open_nifti(path)
    if len(image.shape) != 4 or image.shape[3] not in (3, 6, 9):
        raise DWIError(f"{path}: shape {image.shape}; one to three peaks need 3, 6 or 9 volumes.")
    values = np.stack([volume[mask] for volume in read_volumes(image, path)], axis=1)
    peaks = np.nan_to_num(values.astype(np.float32)).reshape(len(values), -1, 3)
    order = np.argsort(-np.linalg.norm(peaks, axis=-1), axis=1, kind="stable")
    return np.take_along_axis(peaks, order[..., None], axis=1)


def _check_same_grid(path: Path, other: Path) -> None:
    check_grid(open_nifti(other), open_nifti(path), other, "the known fibres", f"the map {path}")
