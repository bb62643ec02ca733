"""The task of a network: target, loss and metric.

`tripq.training` handles scans, boxes, budgets and checkpoints.  The task defines the rest: the
desired output in a voxel (`Task.target`), the loss (`Task.loss`), the score of predictions of whole
scans (`Task.metric`), and the conversion of outputs to predictions (`Task.prediction`).

A task for a new quantity is a subclass with a target, a loss and a metric.  A minimal example is
the mean signal of a voxel, which would need no network:

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
from collections.abc import Collection, Sequence
from typing import ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric

from tripq.nn import Residual, scale_initial_weights
from tripq.scans import DWI
from tripq.training.batch import Batch

Mode = Literal["max", "min"]


class Scan(Protocol):
    """A training or validation scan; a task may need more attributes, such as labels."""

    @property
    def dwi(self) -> DWI:
        """The diffusion scan."""


class Task(ABC):
    """Target, loss and metric of a network.

    Attributes
    ----------
    name : str
        Name of the task in files and messages.
    score : str
        Name, in messages, of the metric that selects the best weights.
    mode : {"max", "min"}
        Whether a higher or a lower score is better.
    """

    name: ClassVar[str]
    score: ClassVar[str]
    mode: ClassVar[Mode]

    @abstractmethod
    def target(self, scan: Scan) -> NDArray[np.floating] | NDArray[np.integer] | NDArray[np.bool_]:
        """Desired output of the network, (V, ...), in the order of ``np.argwhere(mask)``.

        It is called for every box: cache a target that is slow to compute.
        """

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean loss over the voxels of a batch.

        Parameters
        ----------
        output, target : Tensors of shape (V, ...)
            Output of the network, and its target in float32.

        Returns
        -------
        Tensor of shape ()
        """

    @abstractmethod
    def metric(self) -> Metric:
        """A new torchmetrics metric, updated with (prediction, target) of whole scans.

        Its value selects the best weights.  It must also have a value in a process without a scan.
        """

    def hidden(self, scan: Scan, rng: np.random.Generator) -> NDArray[np.intp]:
        """Samples of q-space that a network predicts without knowing them; none by default.

        A task that hides samples predicts the signal: its target has a column for every sample of
        the scan.  The network is given the other samples, and its output and the target of the loss
        are those of the hidden ones.  Rows that are shorter than others of a batch end in NaN.

        Parameters
        ----------
        scan : Scan
            A training scan.
        rng : numpy.random.Generator
            The same for all boxes of a scan in a batch.

        Returns
        -------
        (n,) int array
            Columns of ``scan.dwi.signal``; never that of b0.
        """
        return np.empty(0, np.intp)

    def trials(self, scan: Scan) -> Sequence[NDArray[np.intp]]:
        """The hidden samples of each prediction of a validation scan; always the same.

        By default the scan is predicted once, from all samples.
        """
        return (np.empty(0, np.intp),)

    def prediction(self, output: Tensor) -> Tensor:
        """Prediction from the output, such as probabilities from logits; unchanged by default."""
        return output

    def focus(self, scan: Scan) -> NDArray[np.bool_] | None:
        """Voxels (V,) on which a fraction of the boxes is placed; None for no preference."""
        return None

    def initialise(
        self, network: nn.Module, batch: Batch, kept: Collection[nn.Module] = ()
    ) -> None:
        """Set the initial weights in place, given the first batch.

        By default a `Residual` measures the errors of its estimate, and every layer is scaled to
        outputs of size 1.

        Parameters
        ----------
        network : Module
            The network.
        batch : Batch
            The first one.
        kept : collection of Module
            Parts of the network that were trained before, such as an encoder, and do not change.
        """
        if isinstance(network, Residual):
            network.measure(batch.signal, batch.graph, batch.target)
        scale_initial_weights(network, batch.signal, batch.graph, kept=kept)

    def check(  # noqa: B027
        self, scans: Sequence[Scan], purpose: Literal["training", "validation"]
    ) -> None:
        """Reject scans that are unsuitable for training, or that have no defined score.

        By default all scans are accepted.

        Raises
        ------
        ValueError
            If the scans are rejected.
        """
