"""Scores of predicted signal against what was measured: RMSE, PSNR, and errors of the tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tripq.infra.files import printable
from tripq.networks.blocks import predict_blocks
from tripq.networks.harmonics import HarmonicFit
from tripq.scans import DWI, DWIError, read_dwi
from tripq.scans.bids import BIDSError, BIDSScan, find_brain_mask, find_images
from tripq.scans.shells import SAME_DIRECTION, TENSOR_DIRECTIONS, count_directions
from tripq.scans.tensor import main_directions, tensor_maps
from tripq.tasks.scoring import (
    POOLED,
    Evaluation,
    MapScoring,
    Scored,
    evaluation_of_values,
)
from tripq.tasks.signal.scans import MeasuredScan
from tripq.training.patches import hide

WRITTEN = ("predicted", "denoised")
"""Descriptions (``desc``) of the scans that ``tripq predict`` writes."""

ANISOTROPIC = 0.3
"""FA of the measured scan above which main directions are compared."""

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
        A `SignalPredictor` or a `SignalEncoder` in evaluation mode, on `device`.
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
    from tripq.tasks.signal.encoder import SignalEncoder
    from tripq.tasks.signal.network import SignalPredictor
    from tripq.tasks.signal.task import SignalTask

    assert isinstance(network, SignalPredictor | SignalEncoder)
    fit = HarmonicFit(network.order, network.smoothing).eval()
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
class Differences:
    """What is wrong with the signal of a scan, and with its diffusion tensor.

    Parameters
    ----------
    signal : (N,) float array
        Of the signal divided by b0, in all voxels and directions.
    fa, md : (V,) float arrays
        Of fractional anisotropy and of mean diffusivity in mm2/s; empty without 6 directions.
    angles : (F,) float array
        Between the main directions in degrees, in the voxels with a measured FA above
        `ANISOTROPIC`.
    """

    signal: NDArray[np.floating]
    fa: NDArray[np.floating]
    md: NDArray[np.floating]
    angles: NDArray[np.floating]

    @classmethod
    def of(
        cls, found: DWI, known: DWI, pairs: tuple[NDArray[np.intp], NDArray[np.intp]]
    ) -> Differences:
        """Those of two scans of the same voxels.

        Parameters
        ----------
        found, known : DWI
            Each tensor is fitted to all directions of its scan.
        pairs : two (n,) int arrays
            Columns of `found` and of `known` whose signal is compared.
        """
        columns, others = pairs
        signal = (found.signal[:, columns] - known.signal[:, others]).ravel()
        if min(count_directions(dwi.q) for dwi in (found, known)) < TENSOR_DIRECTIONS:
            return cls(signal, *(np.empty(0) for _ in range(3)))
        fa, known_fa, md, known_md = (
            each for both in zip(*map(tensor_maps, (found, known)), strict=True) for each in both
        )
        chosen = known_fa > ANISOTROPIC
        along, known_along = (main_directions(x.signal[chosen], x.q)[1] for x in (found, known))
        cosines = np.abs((along * known_along).sum(axis=1)).clip(max=1)
        return cls(signal, fa - known_fa, md - known_md, np.degrees(np.arccos(cosines)))

    @classmethod
    def joined(cls, parts: Sequence[Differences]) -> Differences:
        """Those of several scans; of the tensor only if all have them."""
        complete = all(len(part.fa) for part in parts)
        return cls(
            np.concatenate([part.signal for part in parts]),
            *(
                np.concatenate([getattr(part, name) for part in parts]) if complete else np.empty(0)
                for name in ("fa", "md", "angles")
            ),
        )

    @property
    def scores(self) -> Mapping[str, float]:
        """RMS error, PSNR in dB, mean absolute errors of FA and MD, mean angle; NaN for none."""
        error = _root_mean_square(self.signal)
        return {
            "rms_error": error,
            "psnr": -20 * math.log10(error) if error > 0 else math.inf,
            "fa_error": _mean(np.abs(self.fa)),
            "md_error": _mean(np.abs(self.md)),
            "main_direction_error": _mean(self.angles),
        }


def _mean(values: NDArray[np.floating]) -> float:
    return float(values.mean()) if len(values) else math.nan


@dataclass(frozen=True, eq=False)
class PredictedScan:
    """A predicted scan that was read, and the measured one, in the same voxels.

    Parameters
    ----------
    name : str
        Of the scan.
    found, known : DWI
        With the shells of both.
    pairs : two (n,) int arrays
        Columns of the directions of both.
    """

    name: str
    found: DWI
    known: DWI
    pairs: tuple[NDArray[np.intp], NDArray[np.intp]]


class SignalScoring(MapScoring[PredictedScan]):
    """Predicted scans against measured ones, at the directions of both, divided by b0.

    The predicted scans are those of ``tripq predict``; the measured ones are images of a dataset,
    ``*_dwi.nii.gz`` with their tables.
    """

    known = "measured scans"

    def find_maps(self, root: Path, participants: Sequence[str]) -> list[BIDSScan]:
        """Images ``sub-*/**/sub-*_desc-predicted_dwi.nii[.gz]``, or ``desc-denoised``."""
        images = find_images(root, "desc-*_dwi", participants)
        found = [image for image in images if image.name.entities.get("desc") in WRITTEN]
        if not found:
            names = " or ".join(f"*_desc-{name}_dwi.nii.gz" for name in WRITTEN)
            raise BIDSError(f"{root}: no {names} in this folder.")
        return found

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
        brain = find_brain_mask(found, truth, masks)
        predicted = read_dwi(found.path)
        measured = read_dwi(there[0], mask=brain)
        if predicted.mask.shape != measured.mask.shape or not np.allclose(
            predicted.affine, measured.affine, atol=1e-3
        ):
            raise DWIError(f"{found.path}: another grid than {there[0]}.")
        inside = predicted.mask & measured.mask
        if not inside.any():
            raise DWIError(f"{found.path}: no voxel in common with {there[0]} in the brain.")
        if not len(same_directions(predicted.q, measured.q)[0]):
            raise DWIError(f"{found.path}: no direction in common with {there[0]}.")
        ours, theirs = (
            dwi.with_voxels(inside).with_samples(_on_shells(dwi.q, other.q))
            for dwi, other in ((predicted, measured), (measured, predicted))
        )
        pairs = same_directions(ours.q, theirs.q)
        return PredictedScan(self.name(found), ours, theirs, pairs), there[0]

    def score(self, read: Sequence[PredictedScan]) -> Evaluation:
        """Scores over the voxels and directions of every scan, and over all."""
        differences = [Differences.of(one.found, one.known, one.pairs) for one in read]
        rows = [_row(one.name, [one], part) for one, part in zip(read, differences, strict=True)]
        rows.append(_row(POOLED, read, Differences.joined(differences)))
        shown = {
            "rms_error": "RMS error",
            "psnr": "PSNR, dB",
            "fa_error": "mean absolute error of FA",
            "md_error": "of MD, mm²/s",
            "main_direction_error": "angle, degrees",
            "directions": "directions",
        }
        found, known = (
            np.concatenate([getattr(one, kind).signal[:, one.pairs[side]].ravel() for one in read])
            for side, kind in enumerate(("found", "known"))
        )
        caption = (
            "signal divided by b0, at the directions of both scans; tensors of all directions; "
            f"angle of the main direction where the measured FA is above {ANISOTROPIC:g}"
        )
        return evaluation_of_values(rows, shown, caption, found, known, remark=caption)


def same_directions(
    q: NDArray[np.float64], other: NDArray[np.float64]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Columns of the same directions of two scans: of each of the first, the nearest other.

    Parameters
    ----------
    q, other : (Q, 3) arrays
        q-vectors; the first is 0.

    Returns
    -------
    columns, others : (n,) int arrays
        Without the first.

    Examples
    --------
    >>> q = np.array([[0, 0, 0], [1, 0, 0], [0, 1.0, 0]])
    >>> same_directions(q, np.array([[0, 0, 0], [0, 0, 1], [0, 1.4, 0], [0, -1.0, 0]]))
    (array([2]), array([3]))
    """
    lengths = [np.linalg.norm(x, axis=1) for x in (q, other)]
    cosines = np.abs(q @ other.T) / np.maximum(lengths[0][:, None] * lengths[1], 1e-12)
    cosines[~_same_lengths(q, other)] = 0
    nearest = cosines.argmax(axis=1)
    same = cosines.max(axis=1) > math.cos(math.radians(SAME_DIRECTION))
    same[0] = False
    return np.flatnonzero(same), nearest[same]


def _same_lengths(q: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each pair of q-vectors (Q, 3) and (R, 3) is on one shell, (Q, R)."""
    lengths, others = (np.linalg.norm(x, axis=1) for x in (q, other))
    return np.abs(lengths[:, None] - others) <= _SAME_LENGTH * lengths[:, None]


def _on_shells(q: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.intp]:
    """Columns of a scan on a shell of another, with that of b0."""
    return np.flatnonzero(_same_lengths(q, other).any(axis=1))


def _row(name: str, scans: Sequence[PredictedScan], differences: Differences) -> Scored:
    return Scored(
        name,
        {
            **differences.scores,
            "voxels": sum(len(one.known.b0) for one in scans),
            "directions": sum(len(one.pairs[0]) for one in scans),
        },
    )
