r"""The task: one of several classes in every voxel.

The loss of a batch is the cross-entropy, weighted against imbalance, and the soft Dice loss:

.. math::
    L = -\frac{1}{V} \sum_v w_{c(v)} \ln p_{v c(v)}
      + 1 - \frac{1}{|C'|} \sum_{c \in C'} \frac{2 \sum_v p_{vc} t_{vc}}{\sum_v p_{vc} + t_{vc}}

over the V labelled voxels, with probabilities p, labels t of 0 and 1, and the classes C' that occur
among the labels of the batch: the Dice of a class that is missing there is undefined and is left
out (Milletari et al., 3DV 2016; Sudre et al., DLMIA 2017).  With the fraction :math:`f_c` of a
class in the training scans its weight is :math:`w_c \propto f_c^{-\beta}`, such that a voxel has
the mean weight 1.
"""

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
from torchmetrics.classification import MulticlassF1Score

from tripq.nn import fill_last_bias
from tripq.tasks.tissue.classes import UNLABELLED
from tripq.training.batch import Batch
from tripq.training.task import Scan, Task


class TissueScan(Scan, Protocol):
    """A scan with labels, such as `tripq.tasks.tissue.scans.LabelledScan`."""

    @property
    def labels(self) -> NDArray[np.int8]:
        """Class of every voxel, (V,), from 0; `UNLABELLED` for no label."""


class MeanDice(MulticlassF1Score):
    """Mean Dice of the classes, over labelled voxels; F1 of a class is its Dice.

    A class that is neither in the labels nor in the predictions does not count.

    Parameters
    ----------
    n_classes : int
        Two or more.
    """

    def __init__(self, n_classes: int) -> None:
        super().__init__(n_classes, average="macro", ignore_index=UNLABELLED)
        # a voxel without a label, so that there is a value without a scan
        self.update(torch.zeros(1, n_classes), torch.tensor([UNLABELLED]))

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add voxels (V, C) and their labels (V,), which may be on another device."""
        super().update(preds.to(self.device), target.to(self.device))


@dataclass(frozen=True)
class TissueTask(Task):
    r"""Segmentation into classes: a logit for each class in every voxel, (V, C).

    Parameters
    ----------
    fractions : tuple of float
        Of each class among the labelled voxels of the training scans; above 0, with a sum of 1.
    balance : float
        :math:`\beta` of the weights: 0 for equal voxels, 1 for equal classes.

    Examples
    --------
    >>> TissueTask((0.9, 0.1), balance=1.0).weights
    (0.555..., 5.0)
    """

    fractions: tuple[float, ...]
    balance: float = 0.5

    name = "tissue"
    score = "mean Dice"
    mode = "max"

    @classmethod
    def of(cls, scans: Sequence[TissueScan], n_classes: int, balance: float = 0.5) -> TissueTask:
        """The task with the fractions of training scans.

        Half a voxel is added to every class, so that one that no scan has gets a finite weight.
        """
        counts = np.full(n_classes, 0.5)
        for scan in scans:
            labels = np.asarray(scan.labels)
            counts += np.bincount(labels[labels != UNLABELLED], minlength=n_classes)
        return cls(tuple((counts / counts.sum()).tolist()), balance)

    @property
    def weights(self) -> tuple[float, ...]:
        """Weight of a voxel of each class in the cross-entropy."""
        mean = sum(fraction ** (1 - self.balance) for fraction in self.fractions)
        return tuple(fraction**-self.balance / mean for fraction in self.fractions)

    def target(self, scan: Scan) -> NDArray[np.int8]:
        """The labels, (V,)."""
        return cast(TissueScan, scan).labels

    def focus(self, scan: Scan) -> NDArray[np.bool_]:
        """Voxels of the class of the scan that has the fewest."""
        labels = self.target(scan)
        present, counts = np.unique(labels[labels != UNLABELLED], return_counts=True)
        return np.isin(labels, present[counts.argmin()] if len(present) else [])

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Weighted cross-entropy and soft Dice loss of logits (V, C); 0 without a label."""
        known = target != UNLABELLED
        logits, labels = output[known], target[known].long()
        if not len(labels):
            return output.sum() * 0.0
        weight = output.new_tensor(self.weights)
        entropy = F.cross_entropy(logits, labels, weight=weight, reduction="sum") / len(labels)
        truth = F.one_hot(labels, output.shape[1]).to(output)
        probability = logits.softmax(dim=1)
        number = truth.sum(dim=0)
        overlap = 2 * (probability * truth).sum(dim=0) / (probability.sum(dim=0) + number)
        return entropy + 1 - overlap[number > 0].mean()

    def metric(self) -> Metric:
        """Mean Dice of the classes, over the labelled voxels of all scans."""
        return MeanDice(len(self.fractions))

    def prediction(self, output: Tensor) -> Tensor:
        """Probabilities of the classes, (V, C)."""
        return output.softmax(dim=1)

    @torch.no_grad()
    def initialise(
        self, network: nn.Module, batch: Batch, kept: Collection[nn.Module] = ()
    ) -> None:
        """Scale the weights, and set the biases to the weighted fractions of the classes.

        The cross-entropy of a network without other weights is lowest there; see
        `tripq.nn.fill_last_bias`.
        """
        super().initialise(network, batch, kept)
        shares = np.array(self.fractions) * np.array(self.weights)
        fill_last_bias(network, torch.tensor(np.log(shares), dtype=torch.float32))

    def check(self, scans: Sequence[Scan], purpose: Literal["training", "validation"]) -> None:
        """Reject scans without a label."""
        if not any((self.target(scan) != UNLABELLED).any() for scan in scans):
            raise ValueError(f"none of the {len(scans)} {purpose} scans has a labelled voxel")
