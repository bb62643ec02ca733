"""Scores of predicted signal against what was measured: RMSE, PSNR, and errors of the tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tripq.infra.files import printable
from tripq.networks.blocks import predict_blocks
from tripq.scans import DWI, DWIError, read_dwi
from tripq.scans.bids import BIDSError, BIDSScan, find_images
from tripq.scans.shells import SAME_DIRECTION, TENSOR_DIRECTIONS, count_directions
from tripq.scans.tensor import tensor_maps
from tripq.tasks.scoring import (
    POOLED,
    Evaluation,
    MapScoring,
    Scored,
    evaluation_of_values,
    find_brain,
)
from tripq.tasks.signal.scans import MeasuredScan
from tripq.training.patches import hide

PREDICTED = "desc-predicted_dwi"
"""Ending of the names of predicted scans."""

_SAME_LENGTH = 0.05  # relative difference of |q| up to which two samples are on one shell


def held_out_errors(
    network: nn.Module,
    scans: Sequence[MeasuredScan],
    device: str,
    report: Callable[[int, int], None],
) -> tuple[list[Scored], NDArray[np.float32], NDArray[np.float32]]:
    """Errors of a network, and of its fit, at directions that are not shown.

    Parameters
    ----------
    network : Module
        A `SignalPredictor` in evaluation mode, on `device`.
    scans : sequence of MeasuredScan
        At least one.
    device : str
        ``"cpu"`` or ``"cuda"``.
    report : callable
        Called with the scans that are done and the number of all.

    Returns
    -------
    rows : list of Scored
        One for every scan and number of directions shown, and the last for all.
    found, known : (N,) float32 arrays
        All values, predicted and measured.
    """
    from tripq.tasks.signal.network import SignalPredictor
    from tripq.tasks.signal.task import SignalTask

    assert isinstance(network, SignalPredictor)
    fit = SignalPredictor(order=network.order, smoothing=network.smoothing).eval().to(device)
    rows, values = [], []
    for number, scan in enumerate(scans):
        report(number, len(scans))
        for hidden in SignalTask().trials(scan):
            shown, known, q_out = hide(scan.dwi, scan.dwi.signal, hidden)
            both = [
                predict_blocks(one, shown, q_out=q_out, device=device) for one in (network, fit)
            ]
            values.append((both[0].ravel(), both[1].ravel(), known.ravel()))
            count = max(len(shell) for shell in shown.shells)
            rows.append(_held_out(f"{scan.name}, {count} directions", count, *values[-1]))
    found, fitted, known = (np.concatenate(part) for part in zip(*values, strict=True))
    rows.append(_held_out(POOLED, math.nan, found, fitted, known))
    return rows, found, known


def _held_out(
    name: str,
    shown: float,
    found: NDArray[np.float32],
    fitted: NDArray[np.float32],
    known: NDArray[np.float32],
) -> Scored:
    return Scored(
        name,
        {
            "shown": shown,
            "rms_error": _root_mean_square(found - known),
            "fit_rms_error": _root_mean_square(fitted - known),
        },
    )


def _root_mean_square(values: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


@dataclass(frozen=True, eq=False)
class PredictedScan:
    """A predicted scan that was read, and the measured one, in the same voxels.

    Parameters
    ----------
    name : str
        Of the scan.
    found, known : DWI
        With the directions of both, in one order.
    """

    name: str
    found: DWI
    known: DWI


class SignalScoring(MapScoring[PredictedScan]):
    """Predicted scans against measured ones, at the directions of both, divided by b0.

    The predicted scans are those of ``tripq predict``; the measured ones are images of a dataset,
    ``*_dwi.nii.gz`` with their tables.
    """

    known = "measured scans"

    def find_maps(self, root: Path, participants: Sequence[str]) -> list[BIDSScan]:
        """Images ``sub-*/**/sub-*_desc-predicted_dwi.nii[.gz]``."""
        return find_images(root, PREDICTED, participants)

    def find_known(self, root: Path, participants: Sequence[str]) -> list[Path]:
        """Images ``sub-*/**/sub-*_dwi.nii[.gz]``."""
        return [image.path for image in find_images(root, "dwi", participants)]

    def name(self, found: BIDSScan) -> str:
        """Entities of the scan without its description."""
        pairs = (pair for pair in found.name.entities.items() if pair[0] != "desc")
        return printable("_".join(f"{key}-{label}" for key, label in pairs))

    def read(self, found: BIDSScan, truth: Path, masks: Path | None) -> tuple[PredictedScan, Path]:
        """Read a predicted scan and the measured one, in the brain."""
        folder = truth / found.relative.parent
        paths = [folder / f"{self.name(found)}_dwi{end}" for end in (".nii.gz", ".nii")]
        there = [path for path in paths if path.is_file()]
        if not there:
            raise BIDSError(f"{found.path}: no {paths[0].name} in {folder} was measured.")
        brain = find_brain(found, truth, masks)
        predicted = read_dwi(found.path)
        measured = read_dwi(there[0], mask=brain)
        if predicted.mask.shape != measured.mask.shape or not np.allclose(
            predicted.affine, measured.affine, atol=1e-3
        ):
            raise DWIError(f"{found.path}: another grid than {there[0]}.")
        inside = predicted.mask & measured.mask
        if not inside.any():
            raise DWIError(f"{found.path}: no voxel in common with {there[0]} in the brain.")
        columns = _pairs(predicted.q, measured.q)
        if not len(columns[0]):
            raise DWIError(f"{found.path}: no direction in common with {there[0]}.")
        both = (
            _restricted(dwi, inside, np.concatenate([[0], chosen]))
            for dwi, chosen in zip((predicted, measured), columns, strict=True)
        )
        return PredictedScan(self.name(found), *both), there[0]

    def score(self, read: Sequence[PredictedScan]) -> Evaluation:
        """Scores over the voxels and directions of every scan, and over all."""
        rows = [_score(one.name, [one]) for one in read]
        rows.append(_score(POOLED, read))
        shown = {
            "rms_error": "RMS error",
            "psnr": "PSNR, dB",
            "fa_error": "mean absolute error of FA",
            "md_error": "of MD, mm²/s",
            "directions": "directions",
        }
        found, known = (
            np.concatenate([getattr(one, kind).signal[:, 1:].ravel() for one in read])
            for kind in ("found", "known")
        )
        caption = "signal divided by b0, at the directions of both scans; FA and MD from these"
        return evaluation_of_values(rows, shown, caption, found, known, remark=caption)


def _pairs(q: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[NDArray[np.intp], ...]:
    """Columns of the same directions of two scans: of each of the first, the nearest other."""
    lengths = [np.linalg.norm(x, axis=1) for x in (q, other)]
    cosines = np.abs(q @ other.T) / np.maximum(lengths[0][:, None] * lengths[1], 1e-12)
    steps = np.abs(lengths[0][:, None] - lengths[1]) / np.maximum(lengths[0][:, None], 1e-12)
    cosines[steps > _SAME_LENGTH] = 0
    nearest = cosines.argmax(axis=1)
    same = cosines.max(axis=1) > math.cos(math.radians(SAME_DIRECTION))
    same[0] = False
    return np.flatnonzero(same), nearest[same]


def _restricted(dwi: DWI, inside: NDArray[np.bool_], columns: NDArray[np.intp]) -> DWI:
    rows = inside[dwi.mask]
    kept = replace(dwi, signal=dwi.signal[rows], b0=dwi.b0[rows], mask=inside)
    return kept.with_samples(columns)


def _score(name: str, scans: Sequence[PredictedScan]) -> Scored:
    difference = np.concatenate(
        [(one.found.signal - one.known.signal)[:, 1:].ravel() for one in scans]
    )
    error = _root_mean_square(difference)
    fa, md = math.nan, math.nan
    if all(count_directions(one.known.q[1:]) >= TENSOR_DIRECTIONS for one in scans):
        both = [(tensor_maps(one.found), tensor_maps(one.known)) for one in scans]
        fa, md = (
            float(np.abs(np.concatenate([a[kind] - b[kind] for a, b in both])).mean())
            for kind in (0, 1)
        )
    return Scored(
        name,
        {
            "rms_error": error,
            "psnr": -20 * math.log10(error) if error > 0 else math.inf,
            "fa_error": fa,
            "md_error": md,
            "voxels": sum(len(one.known.b0) for one in scans),
            "directions": sum(len(one.known.b_values) - 1 for one in scans),
        },
    )
