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
from tripq.kernels.gates import segments
from tripq.kernels.moments import column_moments

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
        dims = [ir.dim for mul, ir in self.irreps for _ in range(mul)]
        scalar = [ir.is_scalar() for mul, ir in self.irreps for _ in range(mul)]
        self._copies: Tensor
        self._dims: Tensor
        self._constants: Tensor
        self._scalar: Tensor
        # Matrices of zeros and ones that copy a number of each feature to its components, and a
        # number of each scalar to its place.  A sum by index would have a random order on a GPU.
        copies = torch.eye(len(dims)).repeat_interleave(torch.tensor(dims, dtype=torch.int64), 0)
        self.register_buffer("_copies", copies, persistent=False)
        self.register_buffer("_dims", copies.sum(dim=0), persistent=False)
        constants = copies[:, torch.tensor(scalar, dtype=torch.bool)]
        self.register_buffer("_constants", constants, persistent=False)
        self.register_buffer("_scalar", constants.sum(dim=1), persistent=False)

    def forward(self, x: Tensor, graph: PQGraph) -> Tensor:
        """Features of a layer on a graph, (V, Q, dim), (N, dim) or (V, dim); padding stays 0."""
        return self.followed_by(_linear, x, graph)

    def followed_by(self, function: Following, x: Tensor, graph: PQGraph) -> Tensor:
        """A function of the normalised features, row by row, in one step with their normalisation.

        Parameters
        ----------
        function : callable
            Called with rows of features, the factor and the constant that normalise each component
            in each scan, (scans, dim), and the number of rows of each scan (none for one); for
            example a `tripq.nn.GatedNonlinearity`.
        x, graph : Tensor and PQGraph
            As for `forward`.

        Returns
        -------
        Tensor
            What the function returns, with padding of 0.
        """
        x = x.to(self.weight.dtype)  # under autocast a layer returns bfloat16: too coarse to sum
        filled = graph.filled(x)
        rows = x.flatten(0, -2) if filled is None else x[filled]
        scans = self.instance and self.whole is None and len(graph.merged) > 1
        sizes = graph.sizes(x) if scans else ()
        values = function(rows, *self._affine(rows, sizes), sizes)
        if filled is None:
            return values.view(*x.shape[:-1], values.shape[-1])
        padded = values.new_zeros(*x.shape[:-1], values.shape[-1])
        return padded.index_put((filled,), values)

    def _affine(self, x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Factor and constant of each component that normalise some features, (scans, dim)."""
        moments = self._moments(x, sizes)
        scale = ((moments.power + self.eps).rsqrt() * self.weight) @ self._copies.T
        return scale, torch.addcmul(self._constants @ self.bias, moments.mean, scale, value=-1)

    def _moments(self, x: Tensor, sizes: Sequence[int]) -> Moments:
        """Statistics for some features: of these, of the whole scan, or of the training."""
        if self.instance:
            # In double precision afterwards, so that the order of the voxels does not matter.
            found = self.whole or self._of_scans(x if self.training else x.double(), sizes)
            return Moments(*(torch.atleast_2d(moment.to(x.dtype)) for moment in found))
        if not self.training:
            mean = self._constants @ self.running_mean
            return Moments(mean[None], self.running_var[None])
        if dist.is_initialized():
            mean, squares = self._moments_over_ranks(x)
            moments = Moments(mean[None], self._power(squares)[None])
        else:
            moments = self._of_scans(x)
        with torch.no_grad():
            self.running_mean.lerp_(moments.mean[0] @ self._constants, self.momentum)
            self.running_var.lerp_(moments.power[0], self.momentum)
        return moments

    def moments(self, x: Tensor) -> Moments:
        """Statistics of features (..., dim)."""
        mean, power = self._of_scans(x.flatten(0, -2))
        return Moments(mean[0], power[0])

    def _of_scans(self, x: Tensor, sizes: Sequence[int] = ()) -> Moments:
        """Statistics of the rows of each scan, (scans, dim) and (scans, features)."""
        averages, variance = column_moments(x, sizes)
        mean = averages * self._scalar.to(x.dtype)
        other = averages - mean
        return Moments(mean, self._power(torch.addcmul(variance, other, other)))

    def pooled(self, parts: Sequence[tuple[int, Moments]]) -> Moments:
        """Statistics of all features from those of parts, each with its number of rows."""
        total = sum(number for number, _ in parts)
        mean = sum((number * part.mean for number, part in parts), start=torch.zeros(())) / total
        power = [n * (part.power + self._power((part.mean - mean).square())) for n, part in parts]
        return Moments(mean, sum(power, start=torch.zeros(())) / total)

    def _power(self, squares: Tensor) -> Tensor:
        """Mean over the components of each feature: (..., dim) -> (..., features)."""
        dtype = squares.dtype
        return squares @ self._copies.to(dtype) / self._dims.to(dtype)

    def _moments_over_ranks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of the scalars, 0 for the others, and mean square about it; (N, dim) -> (dim,)."""
        sums = sum_over_ranks(torch.cat([x.sum(dim=0), x.new_tensor([float(len(x))])]))
        number = sums[-1]
        mean = sums[:-1] / number * self._scalar
        return mean, sum_over_ranks((x - mean).square().sum(dim=0)) / number


def _linear(x: Tensor, scale: Tensor, shift: Tensor, sizes: Sequence[int]) -> Tensor:
    parts = zip(shift, segments(x, sizes), scale, strict=True)
    return torch.cat([torch.addcmul(constant, part, factor) for constant, part, factor in parts])
