"""The task: what a network is trained for.

`tripq.training` handles scans, boxes, budgets and checkpoints.  The task defines the rest: what the
network should give in a voxel (`Task.target`), how far it is from that (`Task.loss`), how good the
prediction of whole scans is (`Task.metric`), and what the output means (`Task.prediction`).

A task for a new quantity is a subclass with a target, a loss and a metric.  The mean signal of a
voxel, which needs no network at all, is the shortest one:

>>> import numpy as np
>>> from torch.nn import functional as F
>>> from torchmetrics import MeanSquaredError
>>> class MeanSignal(Task):
...     name = "mean-signal"
...     score = "mean squared error"
...     mode = "min"
...
...     def target(self, scan):
...         return scan.dwi.signal.mean(axis=1)
...
...     def loss(self, output, target):
...         return F.mse_loss(output, target)
...
...     def metric(self):
...         return MeanSquaredError()
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric

from tripq.nn import scale_initial_weights
from tripq.scans import DWI
from tripq.training.batch import Batch

Mode = Literal["max", "min"]


class Scan(Protocol):
    """A scan to train or to validate on; a task may ask more of it, such as known labels."""

    @property
    def dwi(self) -> DWI:
        """The diffusion scan."""


class Task(ABC):
    """What a network is trained for.

    Attributes
    ----------
    name : str
        Of the task, in files and messages.
    score : str
        Of the metric that decides which weights are the best, in messages.
    mode : {"max", "min"}
        Whether a higher or a lower score is better.
    """

    name: ClassVar[str]
    score: ClassVar[str]
    mode: ClassVar[Mode]

    @abstractmethod
    def target(self, scan: Scan) -> NDArray[np.floating] | NDArray[np.bool_]:
        """What the network should give, shape (V, ...), in the order of ``np.argwhere(mask)``.

        It is called for every box: a target that takes long to compute should be kept.
        """

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean over the voxels of a batch.

        Parameters
        ----------
        output, target : Tensors of shape (V, ...)
            Of the network, and float32 of `target`.

        Returns
        -------
        Tensor of shape ()
        """

    @abstractmethod
    def metric(self) -> Metric:
        """A new torchmetrics metric, updated with (prediction, target) of whole scans.

        Its value decides which weights are kept.  It must have a value, too, in a process of
        several that no scan has fallen to.
        """

    def prediction(self, output: Tensor) -> Tensor:
        """The output as it is used: logits as probabilities, for example.  By default itself."""
        return output

    def focus(self, scan: Scan) -> NDArray[np.bool_] | None:
        """Voxels (V,) that a share of the boxes is placed on; None where none matters more."""
        return None

    def initialise(self, network: nn.Module, batch: Batch) -> None:
        """Set the first weights, in place, given a first batch.

        By default every layer is scaled to outputs of size 1.
        """
        scale_initial_weights(network, batch.signal, batch.graph)

    def check(  # noqa: B027
        self, scans: Sequence[Scan], purpose: Literal["training", "validation"]
    ) -> None:
        """Refuse scans that nothing can be learned from, or that have no score.

        By default there are none.

        Raises
        ------
        ValueError
            If so.
        """
