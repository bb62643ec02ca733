"""The task: segmentation of lesions, trained on scans with known lesions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import BinaryAveragePrecision

from tripq.nn import fill_last_bias
from tripq.training.batch import Batch
from tripq.training.task import Scan, Task


class LabelledScan(Scan, Protocol):
    """A scan with known lesions, such as `tripq.tasks.lesions.simulate.Subject`."""

    @property
    def lesion(self) -> NDArray[np.bool_]:
        """Lesion voxels, shape (V,), in the order of ``np.argwhere(dwi.mask)``."""


@dataclass(frozen=True)
class LesionTask(Task):
    """Binary segmentation: cross-entropy of one logit per voxel.

    Parameters
    ----------
    positive_weight : float
        Weight of a lesion voxel relative to a healthy voxel.
    """

    positive_weight: float = 1.0

    name = "lesions"
    score = "average precision"
    mode = "max"

    def target(self, scan: Scan) -> NDArray[np.bool_]:
        """The known lesions, (V,)."""
        return cast(LabelledScan, scan).lesion

    def focus(self, scan: Scan) -> NDArray[np.bool_]:
        """Lesion voxels, which are rare."""
        return self.target(scan)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy of logits (V,)."""
        weight = target.new_tensor(self.positive_weight)
        return F.binary_cross_entropy_with_logits(output, target, pos_weight=weight)

    def metric(self) -> Metric:
        """Average precision over the voxels of all scans."""
        metric = BinaryAveragePrecision()
        # Without a scan, the state must still exist, because the processes exchange their states.
        metric.update(torch.empty(0), torch.empty(0, dtype=torch.int64))
        return metric

    def prediction(self, output: Tensor) -> Tensor:
        """Probability of a lesion."""
        return torch.sigmoid(output)

    @torch.no_grad()
    def initialise(
        self, network: nn.Module, batch: Batch, kept: Collection[nn.Module] = ()
    ) -> None:
        """Scale the weights, and set the bias of the logit to the fraction of lesion voxels.

        See `tripq.nn.fill_last_bias`.
        """
        super().initialise(network, batch, kept)
        # Half a voxel is added to both classes, so that the log-odds are finite.
        share = (batch.target.sum() + 0.5) / (len(batch.target) + 1)
        fill_last_bias(network, torch.logit(share))

    def check(self, scans: Sequence[Scan], purpose: Literal["training", "validation"]) -> None:
        """Reject scans without a lesion voxel."""
        if not any(self.target(scan).any() for scan in scans):
            raise ValueError(f"none of the {len(scans)} {purpose} scans has a lesion voxel")
