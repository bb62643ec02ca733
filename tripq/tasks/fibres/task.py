"""The task: prediction of orientation distributions, and their distance from the truth."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric

from tripq.nn import all_modules
from tripq.scans import DWI
from tripq.simulate.orientations import WHITE
from tripq.so3.mrtrix import ORTHONORMAL, n_coefficients
from tripq.tasks.fibres.network import FibreNetwork
from tripq.training.batch import Batch
from tripq.training.task import Scan, Task


class KnownFibres(Scan, Protocol):
    """A scan with known fibres."""

    @property
    def dwi(self) -> DWI:
        """The diffusion scan, V voxels, in units of its response."""

    @property
    def fodf(self) -> NDArray[np.float32]:
        """Coefficients of its orientation distributions, (V, C); orthonormal, in e3nn's basis."""


class FibreTask(Task):
    """Prediction of fibre orientation distributions.

    Parameters
    ----------
    order : int
        Highest order of the target; a truth of a higher order is cut off.
    """

    name = "fibres"
    score = "angular correlation"
    mode = "max"

    def __init__(self, order: int = 8) -> None:
        self.n_coefficients = n_coefficients(order)

    def target(self, scan: Scan) -> NDArray[np.float32]:
        """Coefficients of the orders that are predicted, (V, C)."""
        known: NDArray[np.float32] = scan.fodf  # type: ignore[attr-defined]  # a KnownFibres
        return known[:, : self.n_coefficients]

    def focus(self, scan: Scan) -> NDArray[np.bool_]:
        """Voxels of white matter, (V,)."""
        return white_matter(torch.from_numpy(self.target(scan))).numpy()

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean over the voxels of the relative squared distance of both functions on the sphere.

        The harmonics are orthonormal, so the squared distance is the sum over the coefficients.  It
        is divided by the sum of the squared coefficients of the target above order 0, plus 1: a
        crossing of two fibres has half the sum of one fibre, and would count less.  There is no
        penalty on negative values: a distribution with sharp fibres that is cut off at an order has
        them itself.
        """
        distance = (output - target).square().sum(dim=-1)
        return (distance / (target[:, 1:].square().sum(dim=-1) + 1)).mean()

    def metric(self) -> Metric:
        """Mean angular correlation of the voxels of white matter."""
        return AngularCorrelation()

    def check(self, scans: Sequence[Scan], purpose: Literal["training", "validation"]) -> None:
        """Reject scans as they were read, and those whose truth has a lower order."""
        for scan in scans:
            if scan.dwi.response is None:
                raise ValueError(
                    f"{scan.dwi.path or 'scan'}: networks of fibres take scans in units of their "
                    "response: use tripq.scans.response.scale_by_response, or FibreScan.scaled"
                )
            if (n := self.target(scan).shape[1]) < self.n_coefficients:
                raise ValueError(
                    f"{scan.dwi.path or 'scan'}: its known distributions have {n} coefficients; "
                    f"{purpose} needs {self.n_coefficients}: choose a lower order of the network"
                )

    @torch.no_grad()
    def initialise(
        self, network: nn.Module, batch: Batch, kept: Collection[nn.Module] = ()
    ) -> None:
        """Solve the linear part of a `FibreNetwork`, and scale the weights."""
        if isinstance(network, FibreNetwork):
            if network.blocks not in all_modules(kept):
                network.measure(batch.signal, batch.graph)
            network.solve(batch.signal, batch.graph, batch.target)
        super().initialise(network, batch, kept)


def angular_correlation(one: Tensor, other: Tensor) -> Tensor:
    r"""Angular correlation coefficients of functions on the sphere.

    .. math::
        \frac{\sum_{l > 0, m} f_{lm}\, g_{lm}}
        {\sqrt{\sum_{l > 0, m} f_{lm}^2}\; \sqrt{\sum_{l > 0, m} g_{lm}^2}}

    (Anderson, Magn Reson Med 54:1194, 2005): 1 for the same shape, whatever its size and its
    isotropic part.

    Parameters
    ----------
    one, other : Tensors of shape (V, C)
        Coefficients of orthonormal harmonics; the first is that of order 0.

    Returns
    -------
    Tensor of shape (V,)
        NaN where a function is isotropic.

    Examples
    --------
    >>> f = torch.tensor([[1.0, 0, 2, 0, 0, 0], [5.0, 0, 0, 0, 0, 3]])
    >>> angular_correlation(f, torch.tensor([[0.0, 0, 1, 0, 0, 0], [1.0, 1, 0, 0, 0, 0]]))
    tensor([1., 0.])
    """
    f, g = one[:, 1:], other[:, 1:]
    return (f * g).sum(dim=-1) / (f.norm(dim=-1) * g.norm(dim=-1))


def white_matter(fodf: Tensor) -> Tensor:
    """Voxels with at least `WHITE` white matter, (V,), by the integral of the distribution."""
    return fodf[:, 0] * ORTHONORMAL >= WHITE


class AngularCorrelation(Metric):
    """Mean of `angular_correlation` over voxels of white matter; 0 where one is isotropic."""

    higher_is_better = True
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add the voxels of a scan, (V, C) both."""
        chosen = white_matter(target)
        found = angular_correlation(prediction[chosen], target[chosen]).nan_to_num()
        self.total += found.double().sum()
        self.count += len(found)

    def compute(self) -> Tensor:
        """The mean over all voxels; NaN without any."""
        return self.total / self.count
