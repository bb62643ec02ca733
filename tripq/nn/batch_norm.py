"""Batch and instance normalisation of equivariant features."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch import distributed as dist

from tripq.domain.graph import PQGraph
from tripq.infra.distributed import sum_over_ranks
from tripq.infra.e3nn import nn as e3nn_nn
from tripq.infra.e3nn import o3
from tripq.kernels.features import normalised
from tripq.kernels.moments import column_moments
from tripq.kernels.normalisation import Features, matrices, mean_squares, normalisation

#: How a network normalises its features: over the surroundings of each voxel, over each scan, over
#: a batch, or not.
Normalization = Literal["local", "scan", "batch", "none"]

WINDOW = 23.0
"""Standard deviation in mm, along each axis, of the Gaussian that weights the surroundings.

Along an axis, the distance of two random points in a box of edge a has the standard deviation
a / sqrt(6): 23 mm in a training box of 56 mm.  Of 14, 18, 23, 28 and 35 mm, this one gave the
highest validation score on real heads of people who were absent from training, where boxes had
edges of 30 to 60 mm.  Networks that were trained with smaller or larger boxes have the same one."""

#: Gives the statistics around each voxel of a graph, (V, n + F); see `BatchNorm.statistics`.
LocalStatistics = Callable[[PQGraph], Tensor]

#: A function of features, of the factor and the constant of each component and scan, which are
#: applied first, and of the numbers of rows of the scans.  Factors are 1 and constants 0 for
#: features that are normalised already.
Following = Callable[[Tensor, Tensor, Tensor, Sequence[int]], Tensor]


class BatchNorm(e3nn_nn.BatchNorm):
    """e3nn's batch normalisation, applied to all features at once.

    Over a batch, scalars are normalised to mean 0 and variance 1, and features of order l > 0 to
    components of mean square 1.  Each feature is then multiplied by a learned factor, and each
    scalar gets a learned constant.  The padding of scans with fewer directions is excluded.  If
    several processes train one network, the batch is that of all of them.

    Parameters
    ----------
    irreps : Irreps or str
        Features in and out.
    instance : bool
        Instance normalisation (Ulyanov et al., arXiv:1607.08022): the statistics are those of each
        graph of the batch, in training those of a box of a scan.  Features of scans with other
        contrast, noise or gradient tables are then on one scale.
    window : float
        In evaluation mode of an instance norm, standard deviation in mm of a Gaussian around each
        voxel, over which the statistics of the voxel are averages (`tripq.domain.window`).  If it
        is about as wide as the boxes of the training, rare features have the same contrast as
        there.  By default whole scans are averaged, which is better for features that are
        everywhere.

    Attributes
    ----------
    given : LocalStatistics or None
        In evaluation mode the statistics of instance normalisation, for a part of a scan, whose
        voxels have surroundings outside of it; see `tripq.networks.blocks.predict_blocks`.
    """

    def __init__(
        self, irreps: o3.Irreps | str, *, instance: bool = False, window: float = math.inf
    ) -> None:
        super().__init__(irreps, instance=instance)
        self.window = window
        self.given: LocalStatistics | None = None
        self._features = Features(
            tuple(mul for mul, _ in self.irreps),
            tuple(ir.dim for _, ir in self.irreps),
            tuple(ir.is_scalar() for _, ir in self.irreps),
            self.eps,
        )
        copies, constants = matrices(self._features, self.weight.device, self.weight.dtype)
        self._copies: Tensor
        self._constants: Tensor
        self.register_buffer("_copies", copies.clone(), persistent=False)
        self.register_buffer("_constants", constants.clone(), persistent=False)

    def forward(self, x: Tensor, graph: PQGraph, function: Following = normalised) -> Tensor:
        """Normalise features and, in the same step, evaluate a function of them.

        Parameters
        ----------
        x : Tensor of shape (V, Q, dim), (N, dim) or (V, dim)
            Features of a layer.
        graph : PQGraph
            Their graph.
        function : callable
            Called with rows of features, the factor and the constant that normalise each component
            in each scan, (scans, dim), and the number of rows of each scan (none for one); for
            example a `tripq.nn.GatedNonlinearity`.

        Returns
        -------
        Tensor of shape (V, Q, ...), (N, ...) or (V, ...)
            The normalised features, or what the function returns for them; padding stays 0.
        """
        x = x.to(self.weight.dtype)  # under autocast a layer returns bfloat16: too coarse to sum
        if self._is_local:
            x = self._normalised_locally(x, graph)
            one, zero = x.new_ones(1, x.shape[-1]), x.new_zeros(1, x.shape[-1])
            return _on_rows(x, graph.filled(x), lambda rows: function(rows, one, zero, ()))
        sizes = graph.sizes(x) if self.instance and len(graph.merged) > 1 else ()

        def normalise(rows: Tensor) -> Tensor:
            moments = self._moments(rows, sizes)
            scale, shift = normalisation(moments, self.weight, self.bias, self._features)
            return function(rows, scale, shift, sizes)

        return _on_rows(x, graph.filled(x), normalise)

    @property
    def _is_local(self) -> bool:
        """Whether each voxel has statistics of its own."""
        windowed = math.isfinite(self.window) or self.given is not None
        return self.instance and not self.training and windowed

    def contributions(self, x: Tensor, graph: PQGraph) -> tuple[Tensor, Tensor]:
        """What each voxel contributes to the statistics of its surroundings.

        Parameters
        ----------
        x : Tensor of shape (V, Q, dim), (N, dim) or (V, dim)
            Features on the graph.
        graph : PQGraph
            Their graph.

        Returns
        -------
        sums : Tensor of shape (V, n + F), float64
            Sums over the rows of each voxel: the n scalars, which have a mean, and the mean square
            over the components of each of the F features.
        numbers : Tensor of shape (V,), float64
            Numbers of these rows, without padding.
        """
        shapes = list(zip(self._features.muls, self._features.dims, strict=True))
        columns = x.to(self.weight.dtype).split([mul * dim for mul, dim in shapes], dim=-1)
        runs = [
            part.unflatten(-1, shape).double() for part, shape in zip(columns, shapes, strict=True)
        ]
        means = [
            run.squeeze(-1)
            for run, constant in zip(runs, self._features.constants, strict=True)
            if constant
        ]
        values = torch.cat([*means, *(run.square().mean(dim=-1) for run in runs)], dim=-1)
        if x.ndim == 3:
            filled = graph.filled(x)
            counted = values.new_ones(values.shape[:2]) if filled is None else filled.to(values)
            return (values * counted[..., None]).sum(dim=1), counted.sum(dim=1)
        voxels = graph.voxels_of_rows(x.shape[0])
        if voxels is None:
            return values, values.new_ones(x.shape[0])
        sums = values.new_zeros(graph.n_voxels, values.shape[1]).index_add(0, voxels, values)
        return sums, torch.bincount(voxels, minlength=graph.n_voxels).to(values)

    def statistics(self, averages: Tensor) -> Tensor:
        """Means and variances from averages of contributions.

        Parameters
        ----------
        averages : Tensor of shape (V, n + F), float64
            Of the `contributions`: sums over the rows of several voxels, divided by their number.

        Returns
        -------
        Tensor of shape (V, n + F)
            The means of the n scalars; then of each of the F features the variance, or for order
            l > 0 the mean square.  In the dtype of the weights.
        """
        means, *powers = averages.split([self._n_means, *self._features.muls], dim=1)
        squares = iter(means.square().split(self._n_scalars, dim=1))
        for run, constant in enumerate(self._features.constants):
            if constant:
                powers[run] = (powers[run] - next(squares)).clamp(min=0)
        return torch.cat([means, *powers], dim=1).to(self.weight.dtype)

    def _normalised_locally(self, x: Tensor, graph: PQGraph) -> Tensor:
        """Features with the statistics of the surroundings of their voxels."""
        if self.given is None:
            averages = graph.means_around(*self.contributions(x, graph), self.window)
            statistics = self.statistics(averages)
        else:
            statistics = self.given(graph)
        scale, shift = self._factors(statistics)
        if x.ndim == 3:
            return torch.addcmul(shift[:, None], x, scale[:, None])
        voxels = graph.voxels_of_rows(x.shape[0])
        if voxels is not None:
            scale, shift = scale[voxels], shift[voxels]
        return torch.addcmul(shift, x, scale)

    def _factors(self, statistics: Tensor) -> tuple[Tensor, Tensor]:
        """The factor and the constant of each component in each voxel, (V, dim)."""
        means, power = statistics.tensor_split([self._n_means], dim=1)
        factors = ((power + self.eps).rsqrt() * self.weight).split(list(self._features.muls), dim=1)
        of_means = zip(
            means.split(self._n_scalars, dim=1), self.bias.split(self._n_scalars), strict=True
        )
        scales, shifts = [], []
        for factor, dim, constant in zip(
            factors, self._features.dims, self._features.constants, strict=True
        ):
            scales.append(factor.repeat_interleave(dim, dim=1))
            if constant:
                mean, bias = next(of_means)
                shifts.append(bias - mean * factor)
            else:
                shifts.append(torch.zeros_like(scales[-1]))
        return torch.cat(scales, dim=1), torch.cat(shifts, dim=1)

    @property
    def _n_scalars(self) -> list[int]:
        """Number of scalars in each run of them."""
        features = zip(self._features.muls, self._features.constants, strict=True)
        return [mul for mul, constant in features if constant]

    @property
    def _n_means(self) -> int:
        return sum(self._n_scalars)

    @property
    def n_statistics(self) -> int:
        """Numbers in the statistics of a voxel: n + F."""
        return self._n_means + sum(self._features.muls)

    def _moments(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """Mean and variance of each component in each scan, (2, scans, dim)."""
        if torch.is_autocast_enabled(x.device.type):  # products would be rounded to bfloat16
            with torch.autocast(x.device.type, enabled=False):
                return self._moments(x, sizes)
        if self.instance:
            # In double precision afterwards, so that the order of the voxels does not matter.
            return column_moments(x if self.training else x.double(), sizes).to(x.dtype)
        if not self.training:
            mean, power = self._constants @ self.running_mean, self._copies @ self.running_var
            return torch.stack([mean, power])[:, None]
        moments = self._moments_over_ranks(x) if dist.is_initialized() else column_moments(x)
        with torch.no_grad():
            averages, variance = moments[:, 0]
            mean = averages * self._constants.sum(dim=1)
            self.running_mean.lerp_(mean @ self._constants, self.momentum)
            power = self._power(variance + (averages - mean).square())
            self.running_var.lerp_(power, self.momentum)
        return moments

    def _power(self, squares: Tensor) -> Tensor:
        return mean_squares(squares, self._copies.to(squares.dtype))

    def _moments_over_ranks(self, x: Tensor) -> Tensor:
        """Mean and variance of each component over all processes, (2, 1, dim)."""
        sums = sum_over_ranks(torch.cat([x.sum(dim=0), x.new_tensor([float(len(x))])]))
        number = sums[-1]
        mean = sums[:-1] / number
        return torch.stack([mean, sum_over_ranks((x - mean).square().sum(dim=0)) / number])[:, None]


def _on_rows(x: Tensor, filled: Tensor | None, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of the rows of features (..., dim) that are not padding, which stays 0."""
    values = function(x.flatten(0, -2) if filled is None else x[filled])
    if filled is None:
        return values.view(*x.shape[:-1], values.shape[-1])
    padded = values.new_zeros(*x.shape[:-1], values.shape[-1])
    return padded.index_put((filled,), values)
