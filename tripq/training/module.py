"""Lightning module: the loss of a task, the optimiser, and the score on validation scans."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from tripq.domain.graph import PQGraph
from tripq.networks.blocks import predict_blocks
from tripq.nn import BatchNorm
from tripq.training.batch import Batch
from tripq.training.patches import PatchDataModule, hide
from tripq.training.task import Scan, Task

#: Number of batches for the statistics of batch norms.
N_SETTLING = 32


class TaskModule(L.LightningModule):
    """A network and its task, for a Lightning trainer: AdamW on the loss of the task.

    Parameters
    ----------
    network : Module
        ``network(signal, graph)`` returns the output of every voxel, (V, ...).
    task : Task
        The task of the network.
    learning_rate : float
        Highest rate of the schedule.
    weight_decay : float
        Weight decay of AdamW.
    settle : bool
        Whether to set batch norms by `settle_batch_norm` before each validation.
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        *,
        learning_rate: float = 1e-2,
        weight_decay: float = 1e-2,
        settle: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.task = task
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.settle = settle
        self.metric = task.metric()

    def forward(self, signal: Tensor, graph: PQGraph) -> Tensor:
        """Output of every voxel, (V, ...)."""
        output: Tensor = self.network(signal, graph)
        return output

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss over the voxels of a batch."""
        return self.task.loss(self(batch.signal, batch.graph), batch.target)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Lightning's hook; the loss of a batch, or of this process's part of it.

        The mean over the processes equals the mean over all voxels of the batch.
        """
        number = torch.tensor(float(len(batch.target)), device=self.device)
        mean_number = self.trainer.strategy.reduce(number.clone(), reduce_op="mean")
        return self.loss(batch) * (number / mean_number)

    def on_validation_epoch_start(self) -> None:
        """Lightning's hook, called after the averaged weights are set."""
        if self.settle:
            patches = self.trainer.datamodule  # type: ignore[attr-defined]
            assert isinstance(patches, PatchDataModule)
            settle_batch_norm(self.network, patches.anywhere())
            self.network.eval()
        self.metric = self.task.metric().to(self.device)

    def validation_step(self, scan: Scan, batch_idx: int) -> None:
        """Lightning's hook; predicts a whole scan, if it is assigned to this process."""
        if batch_idx % self.trainer.world_size == self.global_rank:
            _update(self.metric, self.network, self.task, scan, self.device)

    def on_validation_epoch_end(self) -> None:
        """Lightning's hook; the score over the voxels of all validation scans."""
        self.log(self.task.score, self.metric.compute())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; the learning rate is set by `BudgetCallback`."""
        return torch.optim.AdamW(
            self.network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )


def score_scans(
    network: nn.Module, task: Task, scans: Iterable[Scan], *, device: str | torch.device = "cpu"
) -> float:
    """The score of a network in a task, over the voxels of whole scans.

    Parameters
    ----------
    network : Module
        The network, in evaluation mode and on `device`.
    task : Task
        Task with the metric.
    scans : iterable of Scan
        Scans that the network was not trained on.
    device : str or torch.device
        Device of the computation.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If the network is in training mode.
    """
    metric = task.metric().to(device)
    for scan in scans:
        _update(metric, network, task, scan, device)
    return float(metric.compute())


def _update(
    metric: Metric, network: nn.Module, task: Task, scan: Scan, device: str | torch.device
) -> None:
    """Update the metric with the voxels of a whole scan."""
    for hidden in task.trials(scan):
        # Copied, because scans that do not fit in memory are mapped from read-only files.
        dwi, target, q_out = hide(scan.dwi, np.array(task.target(scan)), hidden)
        output = predict_blocks(network, dwi, q_out=q_out, device=device)
        metric.update(task.prediction(torch.from_numpy(output)), torch.from_numpy(target))


@torch.no_grad()
def settle_batch_norm(network: nn.Module, batches: Iterable[Batch]) -> None:
    """Set the statistics of batch norms to their mean over some batches; instance norms have none.

    During training they follow the last few boxes, which may all be in a ventricle; a whole scan is
    then normalised wrongly.  The mean over many boxes at random positions represents a whole scan
    (Wu and Johnson, arXiv:2105.07576, "precise" batch norm).

    Parameters
    ----------
    network : Module
        Modified in place; in training mode afterwards.
    batches : iterable of Batch
        The mean is taken over the first `N_SETTLING`.
    """
    norms = [
        module
        for module in network.modules()
        if isinstance(module, nn.BatchNorm3d)
        or (isinstance(module, BatchNorm) and not module.instance)
    ]
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
