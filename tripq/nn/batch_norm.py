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
from tripq.kernels.moments import column_moments

#: How a network normalises its features: over each scan, over a batch of them, or not.
Normalization = Literal["scan", "batch", "none"]

#: A function of features, and of the factor and the constant of each component applied first.
Following = Callable[[Tensor, Tensor, Tensor], Tensor]


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
        features = [ir for mul, ir in self.irreps for _ in range(mul)]
        of_component = [i for i, ir in enumerate(features) for _ in range(ir.dim)]
        scalars = [i for i, feature in enumerate(of_component) if features[feature].is_scalar()]
        self._feature: Tensor
        self._scalar: Tensor
        # The feature of each component, and the positions of the scalars.
        feature = torch.tensor(of_component, dtype=torch.int64)
        self.register_buffer("_feature", feature, persistent=False)
        scalar = torch.tensor(scalars, dtype=torch.int64)
        self.register_buffer("_scalar", scalar, persistent=False)
        #: Multiplicity and number of components of each run of features, which are side by side.
        self._runs = [(mul, ir.dim) for mul, ir in self.irreps]

    def forward(self, x: Tensor, graph: PQGraph) -> Tensor:
        """Features of a layer on a graph, (V, Q, dim), (N, dim) or (V, dim); padding stays 0."""
        return self.followed_by(_linear, x, graph)

    def followed_by(self, function: Following, x: Tensor, graph: PQGraph) -> Tensor:
        """A function of the normalised features, row by row, in one step with their normalisation.

        Parameters
        ----------
        function : callable
            Called with features, and the factor and the constant of each component that normalise
            them; for example a `tripq.nn.GatedNonlinearity`.
        x, graph : Tensor and PQGraph
            As for `forward`.

        Returns
        -------
        Tensor
            What the function returns, with padding of 0.
        """
        x = x.to(self.weight.dtype)  # under autocast a layer returns bfloat16: too coarse to sum
        if self.instance and self.whole is None and len(graph.merged) > 1:
            parts = [function(part, *self._affine(part)) for part in graph.split(x)]
            return graph.stack(parts)
        filled = graph.filled(x)
        if filled is None:
            return function(x, *self._affine(x))
        rows = x[filled]
        values = function(rows, *self._affine(rows))
        padded = values.new_zeros(*x.shape[:-1], values.shape[-1])
        return padded.index_put((filled,), values)

    def _affine(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Factor and constant of each component that normalise some features."""
        moments = self._moments(x)
        scale = ((moments.power + self.eps).rsqrt() * self.weight)[self._feature]
        return scale, (-moments.mean * scale).index_add(0, self._scalar, self.bias)

    def _moments(self, x: Tensor) -> Moments:
        """Statistics for some features: of these, of the whole scan, or of the training."""
        if self.instance:
            # In double precision afterwards, so that the order of the voxels does not matter.
            mean, power = self.whole or self.moments(x if self.training else x.double())
            return Moments(mean.to(x.dtype), power.to(x.dtype))
        if not self.training:
            mean = x.new_zeros(x.shape[-1]).index_copy(0, self._scalar, self.running_mean)
            return Moments(mean, self.running_var)
        if dist.is_initialized():
            mean, squares = self._moments_over_ranks(x.flatten(0, -2))
            moments = Moments(mean, self._power(squares))
        else:
            moments = self.moments(x)
        with torch.no_grad():
            self.running_mean.lerp_(moments.mean[self._scalar], self.momentum)
            self.running_var.lerp_(moments.power, self.momentum)
        return moments

    def moments(self, x: Tensor) -> Moments:
        """Statistics of features (..., dim)."""
        averages, variance = column_moments(x.flatten(0, -2))
        mean = x.new_zeros(x.shape[-1]).index_copy(0, self._scalar, averages[self._scalar])
        return Moments(mean, self._power(variance + (averages - mean).square()))

    def pooled(self, parts: Sequence[tuple[int, Moments]]) -> Moments:
        """Statistics of all features from those of parts, each with its number of rows."""
        total = sum(number for number, _ in parts)
        mean = sum((number * part.mean for number, part in parts), start=torch.zeros(())) / total
        power = [n * (part.power + self._power((part.mean - mean).square())) for n, part in parts]
        return Moments(mean, sum(power, start=torch.zeros(())) / total)

    def _power(self, squares: Tensor) -> Tensor:
        """Mean over the components of each feature: (dim,) -> (features,)."""
        # A sum by index would be shorter, but its order on a GPU is random, and training would not
        # be reproducible.
        runs = squares.split([mul * dim for mul, dim in self._runs])
        return torch.cat(
            [run.view(shape).mean(dim=1) for run, shape in zip(runs, self._runs, strict=True)]
        )

    def _moments_over_ranks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of the scalars, 0 for the others, and mean square about it; (N, dim) -> (dim,)."""
        sums = sum_over_ranks(torch.cat([x.sum(dim=0), x.new_tensor([float(len(x))])]))
        number = sums[-1]
        scalars = (sums[:-1] / number)[self._scalar]
        mean = x.new_zeros(x.shape[-1]).index_copy(0, self._scalar, scalars)
        return mean, sum_over_ranks((x - mean).square().sum(dim=0)) / number


def _linear(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, x, scale)
