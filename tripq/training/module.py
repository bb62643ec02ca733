"""What is learnt: the loss, the optimiser, and the score on other scans."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import BinaryAveragePrecision

from tripq.domain.graph import PQGraph
from tripq.networks.blocks import segment
from tripq.nn.batch_norm import BatchNorm
from tripq.nn.initialise import scale_initial_weights
from tripq.training.patches import Batch, LabelledScan, PatchDataModule

#: Batches over which the statistics of batch norms are taken.
N_SETTLING = 32

#: Under this name Lightning logs the average precision over the voxels of the validation scans.
VALIDATION_SCORE = "average precision"


class SegmentationModule(L.LightningModule):
    """Binary segmentation: cross-entropy of the logits of all voxels of a batch, AdamW.

    Parameters
    ----------
    network : Module
        ``network(signal, graph)`` gives one logit for every voxel.
    learning_rate : float
        The highest of the schedule.
    weight_decay : float
        Of AdamW.
    positive_weight : float
        How many healthy voxels a lesion voxel counts for.
    settle : bool
        Whether to set batch norms by `settle_batch_norm` before each validation.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        learning_rate: float = 1e-2,
        weight_decay: float = 1e-2,
        positive_weight: float = 1.0,
        settle: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.positive_weight = positive_weight
        self.settle = settle
        self.average_precision = BinaryAveragePrecision()

    def forward(self, signal: Tensor, graph: PQGraph) -> Tensor:
        """Logits of shape (V,)."""
        logits: Tensor = self.network(signal, graph)
        return logits

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy over the voxels of a batch."""
        return F.binary_cross_entropy_with_logits(
            self(batch.signal, batch.graph),
            batch.lesion,
            pos_weight=batch.lesion.new_tensor(self.positive_weight),
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Lightning's hook; the loss of a batch, or of this process's part of it.

        The mean over the processes is the mean over the voxels of all of them.
        """
        number = torch.tensor(float(len(batch.lesion)), device=self.device)
        mean_number = self.trainer.strategy.reduce(number.clone(), reduce_op="mean")
        return self.loss(batch) * (number / mean_number)

    def on_validation_epoch_start(self) -> None:
        """Lightning's hook, after averaged weights were put in."""
        if self.settle:
            patches = self.trainer.datamodule  # type: ignore[attr-defined]
            assert isinstance(patches, PatchDataModule)
            settle_batch_norm(self.network, patches.anywhere())
            self.network.eval()
        # A process that no scan falls to has no scores, but it has to say so to the others.
        self.average_precision.update(torch.empty(0), torch.empty(0, dtype=torch.int64))

    def validation_step(self, scan: LabelledScan, batch_idx: int) -> None:
        """Lightning's hook; segments a whole scan, if it falls to this process."""
        if batch_idx % self.trainer.world_size == self.global_rank:
            probability = segment(self.network, scan.dwi, device=self.device)
            self.average_precision.update(
                torch.from_numpy(probability), torch.from_numpy(scan.lesion.astype(np.int64))
            )

    def on_validation_epoch_end(self) -> None:
        """Lightning's hook; the average precision over the voxels of all validation scans."""
        self.log(VALIDATION_SCORE, self.average_precision.compute())
        self.average_precision.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; the learning rate is set by `BudgetCallback`."""
        return torch.optim.AdamW(
            self.network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )


@torch.no_grad()
def initialise(network: nn.Module, batch: Batch) -> None:
    """Scale the weights on a first batch, and let the network start from the share of lesions.

    Parameters
    ----------
    network : Module
        Changed in place, and left in training mode; its last bias is taken for that of the logit.
    batch : Batch
        With the share of lesion voxels that is expected in training.
    """
    network.train()
    scale_initial_weights(network, batch.signal, batch.graph)
    biases = [p for name, p in network.named_parameters() if name.endswith("bias")]
    if biases and biases[-1].numel() == 1:
        # Half a voxel more of each kind: the log-odds stay finite.
        share = (batch.lesion.sum() + 0.5) / (len(batch.lesion) + 1)
        biases[-1].fill_(float(torch.logit(share)))


@torch.no_grad()
def settle_batch_norm(network: nn.Module, batches: Iterable[Batch]) -> None:
    """Set the statistics of batch norms to their mean over some batches.

    While training they follow the last few boxes, which may all have been ventricle; a whole scan
    is then normalised wrongly.  The mean over many boxes from anywhere is what a scan looks like
    (Wu and Johnson, arXiv:2105.07576, "precise" batch norm).

    Parameters
    ----------
    network : Module
        Changed in place, and left in training mode.
    batches : iterable of Batch
        The mean is over the first `N_SETTLING`.
    """
    norms = [m for m in network.modules() if isinstance(m, (BatchNorm, nn.BatchNorm3d))]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    network.train()
    device = next(network.parameters()).device
    for i, batch in enumerate(islice(batches, N_SETTLING)):
        for norm in norms:
            norm.momentum = 1 / (i + 1)  # a running mean of all so far
        placed = batch.to(device)
        network(placed.signal, placed.graph)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
