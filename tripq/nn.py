"""Parts of networks beside the layer: nonlinearity, norms, reductions of q-space, first weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from e3nn.math import normalize2mom
from torch import Tensor, nn
from torch import distributed as dist

from tripq.backends.precision import check_dtype
from tripq.distributed import sum_over_ranks
from tripq.graph import NodeSpace, PQGraph, QSpace
from tripq.kernels.launch import accumulation_dtype
from tripq.layer import PQTensorFieldLayer
from tripq.radial import Radial, RadialFunctions

# The norm of a zero feature has no slope; norms are sqrt(|x|^2 + eps^2) - eps.
_NORM_EPS = 1e-4


class GatedNonlinearity(nn.Module):
    """Swish on scalars; every other feature multiplied by the sigmoid of a scalar of its own.

    Parameters
    ----------
    irreps_out : Irreps or str
        The features wanted.  `irreps_in` tells what goes in: one further scalar ("gate") for each
        feature of order l > 0.

    Examples
    --------
    >>> GatedNonlinearity("4x0e + 2x1o").irreps_in
    6x0e+2x1o
    """

    def __init__(self, irreps_out: o3.Irreps | str) -> None:
        super().__init__()
        self.irreps_out = o3.Irreps(irreps_out).sort().irreps.simplify()
        scalars = o3.Irreps([(mul, ir) for mul, ir in self.irreps_out if ir.l == 0])
        gated = o3.Irreps([(mul, ir) for mul, ir in self.irreps_out if ir.l > 0])
        if any(ir.p == -1 for _, ir in scalars):
            raise ValueError(f"odd scalars cannot pass a swish: {self.irreps_out}")
        gates = o3.Irreps([(mul, "0e") for mul, _ in gated])
        gates = sum(mul for mul, _ in gated)
        self.irreps_in = (scalars + o3.Irreps([(gates, "0e")]) + gated).simplify()
        self.swish = normalize2mom(torch.nn.functional.silu)
        self.sigmoid = normalize2mom(torch.sigmoid)
        self._shapes = [(mul, ir.dim) for mul, ir in gated]
        self._sizes = [
            scalars.dim,
            *(mul for mul, _ in gated),
            *(mul * ir.dim for mul, ir in gated),
        ]

    def forward(self, x: Tensor) -> Tensor:
        """(..., irreps_in.dim) -> (..., irreps_out.dim)."""
        # e3nn's own gate takes slices, and the gradient of each slice fills a whole tensor.
        scalars, *rest = x.split(self._sizes, dim=-1)
        number = len(self._shapes)
        parts = [self.swish(scalars)]
        for gate, part, shape in zip(rest[:number], rest[number:], self._shapes, strict=True):
            product = part.unflatten(-1, shape) * self.sigmoid(gate)[..., None]
            parts.append(product.flatten(-2))
        return torch.cat(parts, dim=-1)


class BatchNorm(e3nn_nn.BatchNorm):
    """e3nn's batch normalisation, of all features at once.

    Scalars get mean 0 and variance 1 over a batch, features of order l > 0 components of mean
    square 1; then each feature a learned factor, and each scalar a learned constant.  While
    several processes train one network, the batch is that of all of them.

    Parameters
    ----------
    irreps : Irreps or str
        Features in and out.
    """

    def __init__(self, irreps: o3.Irreps | str) -> None:
        super().__init__(irreps)
        features = [ir for mul, ir in self.irreps for _ in range(mul)]
        dims = torch.tensor([ir.dim for ir in features], dtype=torch.int64)
        scalar = torch.tensor([ir.is_scalar() for ir in features], dtype=torch.bool)
        self._feature: Tensor
        self._scalar: Tensor
        self._dims: Tensor
        self._belongs: Tensor
        feature = torch.arange(len(dims)).repeat_interleave(dims)
        # The feature that each component belongs to, and where the scalars stand.
        self.register_buffer("_feature", feature, persistent=False)
        self.register_buffer("_scalar", scalar[feature].nonzero()[:, 0], persistent=False)
        # 1 where a component belongs to a feature.  A sum by index would be shorter, but a GPU
        # takes it in any order, and no two trainings would end alike.
        belongs = (feature[:, None] == torch.arange(len(dims))).float()
        self.register_buffer("_belongs", belongs, persistent=False)
        self.register_buffer("_dims", dims, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., irreps.dim) -> (..., irreps.dim)."""
        x = x.to(self.weight.dtype)  # under autocast a layer gives bfloat16: too coarse to sum
        # e3nn takes the features apart: the gradient of each slice fills a whole tensor.
        mean = x.new_zeros(x.shape[-1])
        if self.training:
            if dist.is_initialized():
                mean, squares = self._moments_over_ranks(x.flatten(0, -2))
            else:
                variance, averages = torch.var_mean(x.flatten(0, -2), dim=0, correction=0)
                mean = mean.index_copy(0, self._scalar, averages[self._scalar])
                squares = variance + (averages - mean).square()
            power = (squares[:, None] * self._belongs).sum(dim=0) / self._dims
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


class NormsAsScalars(nn.Module):
    """Hand the norm of every feature of order l > 0 on as a further scalar.

    Examples
    --------
    >>> NormsAsScalars("2x0e + 3x2e").irreps_out
    2x0e+3x2e+3x0e
    """

    def __init__(self, irreps_in: o3.Irreps | str) -> None:
        super().__init__()
        self.irreps_in = o3.Irreps(irreps_in)
        higher = [(mul, ir) for mul, ir in self.irreps_in if ir.l > 0]
        count = sum(mul for mul, _ in higher)
        self.irreps_out = self.irreps_in + o3.Irreps([(count, "0e")] if count else [])
        self._shapes = [(mul, ir.dim) for mul, ir in self.irreps_in]

    def forward(self, x: Tensor) -> Tensor:
        """(..., irreps_in.dim) -> (..., irreps_out.dim)."""
        parts = x.split([mul * dim for mul, dim in self._shapes], dim=-1)
        squares = [
            part.unflatten(-1, shape).square().sum(dim=-1)
            for part, shape in zip(parts, self._shapes, strict=True)
            if shape[1] > 1
        ]
        if not squares:
            return x
        squared = torch.cat(squares, dim=-1)
        # sqrt(squared + eps^2) - eps, without the cancellation
        norms = squared / ((squared + _NORM_EPS**2).sqrt() + _NORM_EPS)
        return torch.cat([x, norms], dim=-1)


class QMean(nn.Module):
    """Mean over the directions of each voxel: (V, Q, dim) -> (V, dim)."""

    def forward(self, x: Tensor, graph: PQGraph) -> Tensor:
        """Weighted by the quadrature weights of the graph."""
        check_dtype(x, x)
        return _reduce_q(x, graph, lambda q: q.new_ones(len(q), 1))


class QLengthWeightedMean(nn.Module):
    """Mean over directions, each weighted by a learned function of |q| for each channel.

    The reduction of the authors' network: all directions of a shell get one weight, so it commutes
    with rotations.

    Parameters
    ----------
    irreps : Irreps or str
        Features in and out.
    q_max : float
        The largest |q| that the radial functions cover.
    radial : Radial
        Radial functions of |q|.
    """

    def __init__(
        self, irreps: o3.Irreps | str, q_max: float = 2.0, radial: Radial = Radial()
    ) -> None:
        super().__init__()
        self.irreps = o3.Irreps(irreps)
        self.phi = RadialFunctions(radial, q_max, cutoff=False)
        first = torch.randn(radial.number, self.irreps.num_irreps) / radial.number**0.5
        self.weight = nn.Parameter(first)
        dims = torch.tensor([ir.dim for mul, ir in self.irreps for _ in range(mul)])
        channel = torch.repeat_interleave(torch.arange(len(dims)), dims)
        self.channel: Tensor
        self.register_buffer("channel", channel, persistent=False)

    def forward(self, x: Tensor, graph: PQGraph) -> Tensor:
        """(V, Q, dim) -> (V, dim)."""

        def weights(q: Tensor) -> Tensor:
            phi = self.phi(q.to(accumulation_dtype(self.weight.dtype)).norm(dim=-1))
            return (phi @ self.weight.to(phi.dtype))[:, self.channel]

        check_dtype(x, self.weight)
        return _reduce_q(x, graph, weights)


def _reduce_q(x: Tensor, graph: PQGraph, weights: Callable[[Tensor], Tensor]) -> Tensor:
    if isinstance(graph.scans[0].q, NodeSpace):
        rows = [len(scan.q.q) for scan in graph.scans if isinstance(scan.q, NodeSpace)]
    else:
        rows = [scan.n_voxels for scan in graph.scans]
    reduced = []
    for scan, part in graph.split(x, rows):
        q = scan.q
        if isinstance(q, QSpace):
            quadrature = q.reduction[0].to(x.dtype)[:, None] * weights(q.q_in).to(x.dtype)
            reduced.append(
                torch.einsum(
                    "vqd,qd->vd", part[:, : len(q.q_in)], quadrature.expand(-1, x.shape[-1])
                )
            )
        elif isinstance(q, NodeSpace):
            # One edge of the reduction starts at each node and stays in its voxel.
            own = q.reduction.dst == q.voxel[q.reduction.src]
            nodes = q.reduction.src[own]
            quadrature = q.reduction.weights[own].to(x.dtype)[:, None] * weights(q.q[nodes]).to(
                x.dtype
            )
            out = x.new_zeros(scan.n_voxels, x.shape[-1])
            reduced.append(out.index_add(0, q.reduction.dst[own], part[nodes] * quadrature))
        else:
            raise ValueError("there is no q-space to reduce: the graph was built with q=None")
    return torch.cat(reduced)


@torch.no_grad()
def scale_initial_weights(network: nn.Module, *batch: Tensor | PQGraph) -> None:
    """Scale the weights of every layer so that its outputs have a root mean square of 1.

    Features of an equivariant network grow or shrink with the number of neighbours, of paths and of
    directions, order by order.  One pass over a first batch, layer after layer, sets each order
    right at the start of training.

    Parameters
    ----------
    network : Module
        Its `PQTensorFieldLayer` are scaled in place, in the order in which they are called.
    *batch
        Arguments of ``network(...)``.
    """

    def scale(layer: nn.Module, args: tuple[object, ...], output: Tensor) -> Tensor:
        assert isinstance(layer, PQTensorFieldLayer)
        return layer.normalize_output(output)

    layers = [m for m in network.modules() if isinstance(m, PQTensorFieldLayer)]
    hooks = [layer.register_forward_hook(scale) for layer in layers]
    try:
        network(*batch)
    finally:
        for hook in hooks:
            hook.remove()
