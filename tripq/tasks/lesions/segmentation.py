"""From a checkpoint and a scan as it comes to a lesion map.

`segment` applies a network to a scan that suits it, and `segment_scan` to any: see
`tripq.networks.apply` for the steps before and after.

>>> from tripq.scans import read_dwi, write_map
>>> def lesions(checkpoint: str, scan: str, out: str) -> None:
...     model = load_model(checkpoint)
...     result = segment_scan(model, read_dwi(scan))
...     write_map(result.probability >= model.threshold, result.dwi, out)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tripq.networks import apply
from tripq.networks.apply import apply_model, note_number
from tripq.networks.blocks import predict_blocks
from tripq.networks.checkpoint import CheckpointError
from tripq.scans import DWI, DWIError

DEFAULT_THRESHOLD = 0.5
"""Of the probability, where a checkpoint has none."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Model(apply.Model):
    """A trained network, and what its checkpoint says about it.

    Parameters
    ----------
    threshold : float
        Probability from which on a voxel is lesion; 0.5 where the checkpoint has none.
    """

    threshold: float = DEFAULT_THRESHOLD

    @classmethod
    def of(cls, model: apply.Model) -> Model:
        """Read the threshold in the notes of a network.

        Raises
        ------
        CheckpointError
            If it is no probability.
        """
        threshold = note_number(model.notes, "threshold", model.path)
        if threshold is None:
            return cls(**vars(model))
        if not 0 <= threshold <= 1:
            raise CheckpointError(f"{model.path}: its threshold is {threshold}, not from 0 to 1.")
        return cls(**vars(model), threshold=threshold)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A lesion map and how it came about.

    Parameters
    ----------
    dwi : DWI
        The scan.
    probability : (V,) float32 array
        Of a lesion, in every voxel of its mask.
    notes : tuple of str
        What a reader of the map must know: notes of the scan, resampling, b-values, memory.
    cautions : tuple of str
        Those of the notes that let one doubt the map.
    """

    dwi: DWI
    probability: NDArray[np.float32]
    notes: tuple[str, ...]
    cautions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.probability.shape != self.dwi.b0.shape:
            raise DWIError(f"{len(self.probability)} probabilities for {len(self.dwi.b0)} voxels.")


def load_model(path: str | PathLike[str]) -> Model:
    """Read a checkpoint with its notes.

    Parameters
    ----------
    path : path
        Written by `tripq.networks.save_network`.  The note ``threshold`` (a number) is used, which
        may be missing, and those of `tripq.networks.apply.load_model`.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged, or a note makes no sense.
    """
    return Model.of(apply.load_model(path))


def segment(
    network: nn.Module,
    dwi: DWI,
    *,
    max_voxels: int = 100_000,
    device: str | torch.device = "cpu",
    report: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """Probability of a lesion in every voxel of a scan that suits the network.

    Parameters and errors are those of `tripq.networks.blocks.predict_blocks`.

    Returns
    -------
    (V,) float32 array
        In the order of ``np.argwhere(dwi.mask)``.
    """
    logits = predict_blocks(network, dwi, max_voxels=max_voxels, device=device, report=report)
    return torch.sigmoid(torch.from_numpy(logits)).numpy()


def segment_scan(
    model: Model,
    dwi: DWI,
    *,
    memory: float = 4e9,
    device: str | torch.device = "cpu",
    report: Callable[[int, int], None] | None = None,
) -> Segmentation:
    """Probability of a lesion in every voxel of a scan, whatever its voxel size.

    Parameters, resampling, memory and errors are those of `tripq.networks.apply.apply_model`.
    """
    found = apply_model(
        model,
        dwi,
        predict=segment,
        quantity="probabilities",
        memory=memory,
        device=device,
        report=report,
    )
    return Segmentation(found.dwi, found.output, found.notes, found.cautions)
