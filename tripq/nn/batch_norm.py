"""Batch and instance normalisation of equivariant features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

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

#: How a network normalises its features: over each scan, over a batch of them, or not.
Normalization = Literal["scan", "batch", "none"]

#: A function of features, of the factor and the constant of each component and scan applied first,
#: and of the numbers of rows of the scans.
Following = Callable[[Tensor, Tensor, Tensor, Sequence[int]], Tensor]


class Moments(NamedTuple):
    """Statistics of features.

    Attributes
    ----------
    mean : (dim,) Tensor
        Mean of each component; 0 for those of order l > 0.
    power : (features,) Tensor
        Mean square about it, over the components of each feature.
    """

    mean: Tensor
    power: Tensor


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
        scan of the batch, in training and afterwards.  Features of scans with other contrast, noise
        or gradient tables are then on one scale, but depend on all voxels of a scan.

    Attributes
    ----------
    whole : Moments or None
        Statistics for instance normalisation of part of a scan: those of the whole scan, see
        `tripq.networks.blocks.predict_blocks`.
    """

    def __init__(self, irreps: o3.Irreps | str, *, instance: bool = False) -> None:
        super().__init__(irreps, instance=instance)
        self.whole: Moments | None = None
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
        filled = graph.filled(x)
        rows = x.flatten(0, -2) if filled is None else x[filled]
        scans = self.instance and self.whole is None and len(graph.merged) > 1
        sizes = graph.sizes(x) if scans else ()
        moments = self._moments(rows, sizes)
        scale, shift = normalisation(moments, self.weight, self.bias, self._features)
        values = function(rows, scale, shift, sizes)
        if filled is None:
            return values.view(*x.shape[:-1], values.shape[-1])
        padded = values.new_zeros(*x.shape[:-1], values.shape[-1])
        return padded.index_put((filled,), values)

    def _moments(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """Mean and variance of each component in each scan, (2, scans, dim)."""
        if torch.is_autocast_enabled(x.device.type):  # products would be rounded to bfloat16
            with torch.autocast(x.device.type, enabled=False):
                return self._moments(x, sizes)
        if self.instance and self.whole is None:
            # In double precision afterwards, so that the order of the voxels does not matter.
            return column_moments(x if self.training else x.double(), sizes).to(x.dtype)
        if self.whole is not None:
            mean, power = (moment.to(x.dtype) for moment in self.whole)
            return torch.stack([mean, self._copies @ power])[:, None]
        if not self.training:
            mean, power = self._constants @ self.running_mean, self._copies @ self.running_var
            return torch.stack([mean, power])[:, None]
        moments = self._moments_over_ranks(x) if dist.is_initialized() else column_moments(x)
        with torch.no_grad():
            mean, power = self._moments_of(moments[:, 0])
            self.running_mean.lerp_(mean @ self._constants, self.momentum)
            self.running_var.lerp_(power, self.momentum)
        return moments

    def moments(self, x: Tensor) -> Moments:
        """Statistics of features (..., dim)."""
        return self._moments_of(column_moments(x.flatten(0, -2))[:, 0])

    def _moments_of(self, of_components: Tensor) -> Moments:
        """From mean and variance of each component, (2, dim)."""
        averages, variance = of_components
        mean = averages * self._constants.sum(dim=1).to(averages.dtype)
        return Moments(mean, self._power(variance + (averages - mean).square()))

    def pooled(self, parts: Sequence[tuple[int, Moments]]) -> Moments:
        """Statistics of all features from those of parts, each with its number of rows."""
        total = sum(number for number, _ in parts)
        mean = sum((number * part.mean for number, part in parts), start=torch.zeros(())) / total
        power = [n * (part.power + self._power((part.mean - mean).square())) for n, part in parts]
        return Moments(mean, sum(power, start=torch.zeros(())) / total)

    def _power(self, squares: Tensor) -> Tensor:
        return mean_squares(squares, self._copies.to(squares.dtype))

    def _moments_over_ranks(self, x: Tensor) -> Tensor:
        """Mean and variance of each component over all processes, (2, 1, dim)."""
        sums = sum_over_ranks(torch.cat([x.sum(dim=0), x.new_tensor([float(len(x))])]))
        number = sums[-1]
        mean = sums[:-1] / number
        return torch.stack([mean, sum_over_ranks((x - mean).square().sum(dim=0)) / number])[:, None]
