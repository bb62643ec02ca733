"""Lesion map from a checkpoint and a scan.

`segment` applies a network to a scan with a suitable voxel size, and `segment_scan` to any scan;
`tripq.networks.apply` describes the steps before and after.

>>> from tripq.scans import read_dwi, write_map
>>> def lesions(checkpoint: str, scan: str, out: str) -> None:
...     model = load_model(checkpoint)
...     result = segment_scan(model, read_dwi(scan))
...     write_map(result.marked(model.threshold, model.min_volume), result.dwi, out)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tripq.infra.files import printable
from tripq.networks import apply
from tripq.networks.apply import apply_model, note_number
from tripq.networks.blocks import predict_blocks
from tripq.networks.checkpoint import CheckpointError
from tripq.scans import DWI, DWIError
from tripq.tasks.lesions.listing import label_candidates
from tripq.tasks.lesions.names import MAX_MIN_VOLUME

DEFAULT_THRESHOLD = 0.5
"""Threshold of the probability if a checkpoint has none."""

MAX_SENTENCE = 500
"""Characters of the note ``healthy_heads``, at most."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Model(apply.Model):
    """A trained network with the notes of its checkpoint.

    Parameters
    ----------
    threshold : float
        Minimum probability of a lesion voxel; 0.5 if the checkpoint has none.
    min_volume : float
        Minimum volume of a lesion candidate in ml; 0 if the checkpoint has none.
    healthy_heads : str
        Sentence on what the network marked on healthy heads; empty if the checkpoint has none.
    """

    threshold: float = DEFAULT_THRESHOLD
    min_volume: float = 0.0
    healthy_heads: str = ""

    @classmethod
    def of(cls, model: apply.Model) -> Model:
        """Read the notes of a network about lesion candidates.

        Raises
        ------
        CheckpointError
            If the threshold is not a probability, the minimum volume not from 0 to
            `tripq.tasks.lesions.listing.MAX_MIN_VOLUME`, or the sentence on healthy heads longer
            than `MAX_SENTENCE`.
        """
        healthy_heads = printable(model.notes.get("healthy_heads", ""))
        if len(healthy_heads) > MAX_SENTENCE:
            raise CheckpointError(
                f"{model.path}: its healthy_heads has {len(healthy_heads):,} characters; at most "
                f"{MAX_SENTENCE}."
            )
        return cls(
            **vars(model),
            threshold=_limit(model, "threshold", 1, DEFAULT_THRESHOLD),
            min_volume=_limit(model, "min_volume_ml", MAX_MIN_VOLUME, 0.0),
            healthy_heads=healthy_heads,
        )


def _limit(model: apply.Model, name: str, highest: float, default: float) -> float:
    """The number of a note, from 0 to the highest value."""
    value = note_number(model.notes, name, model.path)
    if value is None:
        return default
    if not 0 <= value <= highest:
        raise CheckpointError(f"{model.path}: its {name} is {value}, not from 0 to {highest:g}.")
    return value


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A lesion map with notes on its computation.

    Parameters
    ----------
    dwi : DWI
        The scan.
    probability : (V,) float32 array
        Probability of a lesion in every voxel of its mask.
    notes : tuple of str
        Notes for readers of the map: on the scan, resampling, b-values, memory.
    cautions : tuple of str
        The notes that are reasons to doubt the map.
    """

    dwi: DWI
    probability: NDArray[np.float32]
    notes: tuple[str, ...]
    cautions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.probability.shape != self.dwi.b0.shape:
            raise DWIError(f"{len(self.probability)} probabilities for {len(self.dwi.b0)} voxels.")

    def marked(self, threshold: float, min_volume: float = 0.0) -> NDArray[np.bool_]:
        """Voxels (V,) of the lesion candidates; see `tripq.tasks.lesions.listing`."""
        return label_candidates(self.dwi, self.probability, threshold, min_volume) > 0


def load_model(path: str | PathLike[str]) -> Model:
    """Read a checkpoint with its notes.

    Parameters
    ----------
    path : path
        File written by `tripq.networks.save_network`.  The notes ``threshold``, ``min_volume_ml``
        (numbers) and ``healthy_heads`` (a sentence) are used, and those of
        `tripq.networks.apply.load_model`; each may be missing.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged, or a note is invalid.
    """
    return Model.of(apply.load_model(path))


def segment(
    network: nn.Module,
    dwi: DWI,
    *,
    max_voxels: int | None = None,
    device: str | torch.device = "cpu",
    report: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """Probability of a lesion in every voxel of a scan with a suitable voxel size.

    Parameters and errors are those of `tripq.networks.blocks.predict_blocks`.

    Returns
    -------
    (V,) float32 array
        Probabilities in the order of ``np.argwhere(dwi.mask)``.
    """
    logits = predict_blocks(network, dwi, max_voxels=max_voxels, device=device, report=report)
    return torch.sigmoid(torch.from_numpy(logits)).numpy()


def segment_scan(
    model: Model,
    dwi: DWI,
    *,
    voxel_size: float | None = None,
    memory: float = 4e9,
    device: str | torch.device = "cpu",
    report: Callable[[int, int], None] | None = None,
) -> Segmentation:
    """Probability of a lesion in every voxel of a scan of any voxel size.

    Parameters, resampling, memory and errors are those of `tripq.networks.apply.apply_model`.
    """
    found = apply_model(
        model,
        dwi,
        predict=segment,
        quantity="probabilities",
        voxel_size=voxel_size,
        memory=memory,
        device=device,
        report=report,
    )
    return Segmentation(found.dwi, found.output, found.notes, found.cautions)
