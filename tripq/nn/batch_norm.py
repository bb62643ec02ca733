"""Batch normalisation of equivariant features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist

from tripq.domain.graph import PQGraph
from tripq.infra.distributed import sum_over_ranks
from tripq.infra.e3nn import nn as e3nn_nn
from tripq.infra.e3nn import o3


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
    """

    def __init__(self, irreps: o3.Irreps | str) -> None:
        super().__init__(irreps)
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
        filled = graph.filled(x)
        if filled is None:
            return self._normalized(x)
        values = self._normalized(x[filled])
        return values.new_zeros(x.shape).index_put((filled,), values)

    def _normalized(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)  # under autocast a layer returns bfloat16: too coarse to sum
        # e3nn slices the features, and the gradient of each slice fills a whole tensor.
        mean = x.new_zeros(x.shape[-1])
        if self.training:
            if dist.is_initialized():
                mean, squares = self._moments_over_ranks(x.flatten(0, -2))
            else:
                variance, averages = torch.var_mean(x.flatten(0, -2), dim=0, correction=0)
                mean = mean.index_copy(0, self._scalar, averages[self._scalar])
                squares = variance + (averages - mean).square()
            # A sum by index would be shorter, but its order on a GPU is random, and training would
            # not be reproducible.
            runs = squares.split([mul * dim for mul, dim in self._runs])
            power = torch.cat(
                [run.view(shape).mean(dim=1) for run, shape in zip(runs, self._runs, strict=True)]
            )
            with torch.no_grad():
                self.running_mean.lerp_(mean[self._scalar], self.momentum)
                self.running_var.lerp_(power, self.momentum)
        else:
            mean = mean.index_copy(0, self._scalar, self.running_mean)
            power = self.running_var
        scale = ((power + self.eps).rsqrt() * self.weight)[self._feature]
        shift = (-mean * scale).index_add(0, self._scalar, self.bias)
        return torch.addcmul(shift, x, scale)

    def _moments_over_ranks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of the scalars, 0 for the others, and mean square about it; (N, dim) -> (dim,)."""
        sums = sum_over_ranks(torch.cat([x.sum(dim=0), x.new_tensor([float(len(x))])]))
        number = sums[-1]
        scalars = (sums[:-1] / number)[self._scalar]
        mean = x.new_zeros(x.shape[-1]).index_copy(0, self._scalar, scalars)
        return mean, sum_over_ranks((x - mean).square().sum(dim=0)) / number
