"""Application of a trained network to any scan, in bounded memory.

`predict_blocks` applies a network to a suitable scan.  This module adds the steps for other scans:
resampling to voxel sizes of the training, exclusion of other shells, cautions, and smaller blocks
if memory runs out.

>>> from tripq.scans import read_dwi, write_map
>>> def apply(checkpoint: str, scan: str, out: str) -> None:
...     result = apply_model(load_model(checkpoint), read_dwi(scan))
...     write_map(result.output, result.dwi, out)
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tripq.infra.files import parse_json, sha256, shortened
from tripq.infra.memory import PROGRAM_BYTES, is_out_of_memory
from tripq.networks.blocks import (
    bytes_per_voxel,
    predict_blocks,
    receptive_field,
    statistics_bytes_per_voxel,
    takes_scaled,
)
from tripq.networks.checkpoint import CheckpointError, load_network, read_notes
from tripq.scans import DWI, DWIError, cubic_edge
from tripq.scans.cautions import find_cautions
from tripq.scans.nifti import VOXEL_EDGES
from tripq.scans.resampling import bytes_to_resample, map_back, resample
from tripq.scans.shells import count_directions

VOXEL_TOLERANCE = 0.05
"""Edges of voxels may lie outside the range of the training by this share."""

COARSE = 1.5
"""Warn if an edge of a voxel is longer than the longest of the training by this factor: resampling
does not separate what a voxel mixes."""

B_TOLERANCE = 200.0
"""Warn if a b-value is further than this, in s/mm2, from every training shell."""

_LEAST_WIDTH = 4
"""Voxels along an axis that a block has at least, without its halo."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Model:
    """A trained network, and the notes of its checkpoint.

    Parameters
    ----------
    path : Path
        The checkpoint.
    sha256 : str
        Of the file.
    network : Module
        In evaluation mode, on the CPU.
    voxel_sizes : (float, float) or None
        Shortest and longest edge in mm of the voxels that it was trained on; None if the checkpoint
        does not say.
    b_values : tuple of float
        In s/mm2, of the training; empty if the checkpoint does not say.
    caution : str
        Caution of the authors of the checkpoint; may be empty.
    fewest_directions : int
        Of any shell of the training; 0 if the checkpoint does not say.
    task : str
        Name of what it was trained for; empty if the checkpoint does not say.
    notes : mapping of str to str
        All notes of the checkpoint, for what a task needs besides.
    """

    path: Path
    sha256: str
    network: nn.Module
    voxel_sizes: tuple[float, float] | None
    b_values: tuple[float, ...]
    caution: str
    fewest_directions: int = 0
    task: str = ""
    notes: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def described(self) -> dict[str, str]:
        """The network for readers: its name, its size and its arguments."""
        arguments = parse_json(self.notes.get("arguments", "{}"), "arguments")
        return {
            "network": type(self.network).__name__,
            "number of weights": f"{sum(w.numel() for w in self.network.parameters()):,}",
            **{name: str(value) for name, value in arguments.items()},
        }


@dataclass(frozen=True, eq=False)
class Prediction:
    """The output of a network for a scan, with notes and cautions.

    Parameters
    ----------
    dwi : DWI
        The scan.
    output : (V, ...) float32 array
        In every voxel of its mask.
    notes : tuple of str
        What a reader of the maps must know: notes of the scan, resampling, b-values, memory.
    cautions : tuple of str
        Those of the notes that let one doubt the maps.
    q_out : (Q_out, 3) array, optional
        Directions of the output, of a network that predicts the signal along directions given to
        `predict`; whoever gives them adds them.
    denoised : bool
        Whether every direction was predicted without the volume itself; whoever asks `predict` for
        this adds it.
    """

    dwi: DWI
    output: NDArray[np.float32]
    notes: tuple[str, ...]
    cautions: tuple[str, ...] = ()
    q_out: NDArray[np.float64] | None = None
    denoised: bool = False


class Predict(Protocol):
    """Computes the output of a network for a suitable scan, as `predict_blocks` does."""

    def __call__(
        self,
        network: nn.Module,
        dwi: DWI,
        /,
        *,
        max_voxels: int,
        device: str | torch.device,
        report: Callable[[int, int], None] | None,
    ) -> NDArray[np.float32]:
        """Output (V, ...); for the arguments see `predict_blocks`."""


def load_model(path: str | PathLike[str]) -> Model:
    """Read a checkpoint with its notes.

    Parameters
    ----------
    path : path
        Written by `tripq.networks.save_network`.  The notes ``voxel_size_mm`` (one edge, or the
        shortest and the longest), ``b_values``, ``fewest_directions`` (numbers), ``caution`` and
        ``task`` are used; each may be missing.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged, or a note makes no sense.
    """
    file = Path(path)
    notes = read_notes(file)
    network = load_network(file)
    edges = _numbers(notes, "voxel_size_mm", file)
    if len(edges) > 2:
        raise CheckpointError(
            f"{file}: its voxel_size_mm is {shortened(notes['voxel_size_mm'])!r}, not one edge or "
            "the shortest and the longest edge."
        )
    fewest_directions = note_number(notes, "fewest_directions", file) or 0
    if not 0 <= fewest_directions < np.inf:
        raise CheckpointError(
            f"{file}: its fewest_directions is {fewest_directions}, not a number of directions."
        )
    shortest, longest = VOXEL_EDGES
    for edge in edges:
        if not shortest <= edge <= longest:
            raise CheckpointError(
                f"{file}: its voxel size is {edge} mm, not from {shortest:g} to {longest:g}."
            )
    return Model(
        path=file,
        sha256=sha256(file),
        network=network,
        voxel_sizes=(min(edges), max(edges)) if edges else None,
        b_values=_numbers(notes, "b_values", file),
        caution=notes.get("caution", ""),
        fewest_directions=int(fewest_directions),
        task=notes.get("task", ""),
        notes=notes,
    )


def note_number(notes: Mapping[str, str], name: str, path: Path) -> float | None:
    """The number of a note; None where it is missing.

    Raises
    ------
    CheckpointError
        If it is no finite number, or several.
    """
    numbers = _numbers(notes, name, path)
    if len(numbers) > 1:
        raise CheckpointError(f"{path}: its {name} is {shortened(notes[name])!r}, not one number.")
    return numbers[0] if numbers else None


def fits(dwi: DWI, voxel_sizes: tuple[float, float]) -> bool:
    """Whether the edges of a scan's voxels are within a range in mm, to 5 %."""
    shortest, longest = voxel_sizes
    low, high = shortest * (1 - VOXEL_TOLERANCE), longest * (1 + VOXEL_TOLERANCE)
    return bool(np.all((low <= dwi.voxel_size) & (dwi.voxel_size <= high)))


def trained_shells(dwi: DWI, b_values: Sequence[float]) -> tuple[DWI, list[str]]:
    """A scan without the shells outside the range of b-values of a training.

    The functions of |q| of a network say nothing sensible about a shell beyond those that it was
    trained on.

    Parameters
    ----------
    dwi : DWI
        The scan.
    b_values : sequence of float
        Of the training, in s/mm2; if empty, the scan is returned as it is.

    Returns
    -------
    dwi : DWI
        All of the scan, if no shell would remain.
    cautions : list of str
        What was left out.
    """
    if not b_values:
        return dwi, []
    low, high = min(b_values) - B_TOLERANCE, max(b_values) + B_TOLERANCE
    inside = [shell.b_value for shell in dwi.shells if low <= shell.b_value <= high]
    outside = [f"{s.b_value:.0f}" for s in dwi.shells if not low <= s.b_value <= high]
    if not inside or not outside:
        return dwi, []
    known = " to ".join(dict.fromkeys(f"{b:.0f}" for b in (min(b_values), max(b_values))))
    caution = f"b = {', '.join(outside)} s/mm2 was excluded: the training had b = {known}."
    return dwi.with_shells(inside), [caution]


def suitable_size(dwi: DWI, voxel_sizes: tuple[float, float]) -> float:
    """Edge in mm of the cubic voxels of a range that are nearest in volume to those of a scan."""
    return float(np.clip(cubic_edge(dwi.affine), *voxel_sizes))


def least_voxels(network: nn.Module, dwi: DWI) -> int:
    """Voxels in a block that is as wide as its halo; smaller blocks would be very slow.

    Parameters
    ----------
    network : Module
        As for `predict_blocks`.
    dwi : DWI
        The scan that it is applied to.
    """
    halo = receptive_field(network, dwi.affine)
    return int(np.prod(2 * halo + np.maximum(halo, _LEAST_WIDTH)))


def voxels_within(memory: float, network: nn.Module, dwi: DWI, held: int = 0) -> int:
    """Maximum number of voxels in a block for a memory limit of the whole program.

    Parameters
    ----------
    memory : float
        Bytes, of the whole program.
    network : Module
        As for `predict_blocks`.
    dwi : DWI
        The scan that it is applied to.
    held : int, optional
        Bytes of whatever else is held.

    Raises
    ------
    DWIError
        If that is not enough for the scan and a block of `least_voxels`.
    """
    each = bytes_per_voxel(network, len(dwi.b_values))
    statistics = statistics_bytes_per_voxel(network) * len(dwi.b0)
    fixed = PROGRAM_BYTES + dwi.signal.nbytes + statistics + held
    least = least_voxels(network, dwi)
    if (voxels := int((memory - fixed) / each)) >= least:
        return voxels
    need = np.ceil((fixed + least * each) / 1e7) / 100
    raise DWIError(
        f"{dwi.path or 'scan'}: {memory / 1e9:.2f} GB of memory are not enough; at least "
        f"{need:.2f} GB are needed."
    )


def apply_model(
    model: Model,
    dwi: DWI,
    *,
    predict: Predict = predict_blocks,
    quantity: str = "values",
    voxel_size: float | None = None,
    memory: float = 4e9,
    device: str | torch.device = "cpu",
    report: Callable[[int, int], None] | None = None,
) -> Prediction:
    """The output of a network in every voxel of a scan, of any voxel size.

    Where the voxels are within the range of the training, nothing is interpolated.  Another scan is
    resampled, and the output brought back (see `tripq.scans.resampling`).  Shells outside the
    b-values of the training are left out if others remain.  Where memory runs out, it is tried
    again with half as many voxels in a block.

    Parameters
    ----------
    model : Model
        Of `load_model`.
    dwi : DWI
        The scan, within the brain.
    predict : callable
        Gives the output on the grid of the training; what it gives is interpolated.
    quantity : str
        What the output is called in messages, in the plural.
    voxel_size : float, optional
        Edge in mm of cubic voxels that the scan is resampled to; by default it is resampled only to
        the range of the training, and only if it is outside.
    memory : float
        Bytes that the program may take, about.  On a CUDA device: of its memory.
    device : str or torch.device
        Where to compute.
    report : callable, optional
        Called with the voxels that are done and the number of all.

    Raises
    ------
    DWIError
        If b-values are higher than the network takes, or the memory cannot be enough.
    CheckpointError
        If the network was made for another gradient table.
    MemoryError
        If memory runs out even with small blocks.
    """
    kept, left_out = trained_shells(dwi, model.b_values)
    cautions = [*find_cautions(dwi), *left_out, *_cautions(model, kept)]
    notes = [*dwi.notes, *cautions]
    suited, reason = kept, ""
    if voxel_size is None and model.voxel_sizes is not None and not fits(dwi, model.voxel_sizes):
        voxel_size = suitable_size(dwi, model.voxel_sizes)
        reason = ", a size that the network was trained on"
    if voxel_size is not None:
        _check_resampling(kept, voxel_size, memory)
        suited = resample(kept, voxel_size)
        notes.append(f"{suited.notes[-1].rstrip('.')}{reason}; the map was resampled back.")
        if model.voxel_sizes is not None and dwi.voxel_size.max() > COARSE * model.voxel_sizes[1]:
            cautions.append(
                f"The network was trained on much finer voxels: {dwi.voxel_size.max():.3g} mm "
                "mix tissue that resampling cannot separate. Inspect the map."
            )
            notes.append(cautions[-1])
    held = 0 if suited is dwi else dwi.signal.nbytes
    if takes_scaled(model.network):
        held += suited.signal.nbytes
    try:
        least = least_voxels(model.network, suited)
    except ValueError as error:
        raise CheckpointError(
            f"{model.path}: not for {dwi.path or 'this scan'}: {error}."
        ) from error
    max_voxels = min(voxels_within(memory, model.network, suited, held), len(suited.b0))
    network = model.network.to(device)
    while True:
        try:
            values = predict(network, suited, max_voxels=max_voxels, device=device, report=report)
            break
        except DWIError:
            raise
        except ValueError as error:
            raise CheckpointError(f"{model.path}: {error}.") from error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        if max_voxels <= least:
            raise MemoryError(
                f"{dwi.path or 'scan'}: out of memory even with blocks of {max_voxels} voxels, the "
                "smallest useful ones."
            )
        max_voxels = max(max_voxels // 2, least)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        notes.append(f"Out of memory: tried again with blocks of {max_voxels} voxels.")
    if suited is not kept:
        values = map_back(values, suited, dwi)
    if not np.isfinite(values).all():
        raise DWIError(
            f"{dwi.path or 'scan'}: {np.count_nonzero(~np.isfinite(values))} of the {quantity} "
            f"that {model.path} gives are not finite. Are the intensities extreme?"
        )
    return Prediction(dwi, values, tuple(notes), tuple(cautions))


def _check_resampling(dwi: DWI, voxel_size: float, memory: float) -> None:
    """Check that memory suffices to resample a scan, before it is allocated."""
    need = PROGRAM_BYTES + dwi.signal.nbytes + bytes_to_resample(dwi, voxel_size)
    if need > memory:
        old = " x ".join(f"{edge:.3g}" for edge in dwi.voxel_size)
        raise DWIError(
            f"{dwi.path or 'scan'}: {memory / 1e9:.2f} GB of memory are not enough to resample "
            f"voxels of {old} mm to {voxel_size:g} mm; more than {need / 1e9:,.2f} GB are needed."
        )


def _cautions(model: Model, dwi: DWI) -> list[str]:
    """Properties of a scan outside the range of the training of a network."""
    cautions = []
    if model.voxel_sizes is None:
        cautions.append("The checkpoint does not record a voxel size; the scan was not resampled.")
    strange = [
        f"{shell.b_value:.0f}"
        for shell in dwi.shells
        if model.b_values
        and min(abs(shell.b_value - known) for known in model.b_values) > B_TOLERANCE
    ]
    if strange:
        known = ", ".join(f"{b_value:.0f}" for b_value in model.b_values)
        cautions.append(
            f"b = {', '.join(strange)} s/mm2 was absent from training, which had b = {known}."
        )
    cautions += [
        f"{count} directions of b = {shell.b_value:.0f} s/mm2 are fewer than on any shell in "
        f"training ({model.fewest_directions}): the map may be unreliable."
        for shell in dwi.shells
        if (count := count_directions(dwi.q[shell.indices])) < model.fewest_directions
    ]
    return cautions


def _numbers(notes: Mapping[str, str], name: str, path: Path) -> tuple[float, ...]:
    """Finite numbers of a note, separated by spaces or commas; brackets are ignored."""
    text = notes.get(name, "")
    try:
        numbers = tuple(float(word) for word in re.split(r"[\s,;\[\]()]+", text) if word)
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise CheckpointError(f"{path}: its {name} is {shortened(text)!r}, not a number.")
    return numbers
