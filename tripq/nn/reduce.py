"""Reductions of q-space: from features at every direction to features of the voxel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tripq.backends.precision import check_dtype
from tripq.domain.graph import PQGraph
from tripq.domain.nodes import NodeSpace
from tripq.domain.qspace import QSpace
from tripq.filters.radial import Radial, RadialFunctions
from tripq.infra.e3nn import o3
from tripq.kernels.launch import accumulation_dtype


class QMean(nn.Module):
    """Mean over the directions of each voxel: (V, Q, dim) -> (V, dim)."""

    def forward(self, x: Tensor, graph: PQGraph) -> Tensor:
        """Weighted by the quadrature weights of the graph."""
        check_dtype(x, x)
        return _reduce_q(x, graph, lambda q: q.new_ones(len(q), 1))


class QLengthWeightedMean(nn.Module):
    """Mean over directions, each weighted by a learned function of |q| for each channel.

    The reduction of the authors' network.  All directions of a shell have the same weight, so it is
    equivariant.

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
        dims = [ir.dim for mul, ir in self.irreps for _ in range(mul)]
        channel = torch.tensor([i for i, dim in enumerate(dims) for _ in range(dim)])
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
    for scan, part in graph.by_scan(x, rows):
        q = scan.q
        if isinstance(q, QSpace):
            quadrature = q.reduction[0].to(x.dtype)[:, None] * weights(q.q_in).to(x.dtype)
            reduced.append(
                torch.einsum(
                    "vqd,qd->vd", part[:, : len(q.q_in)], quadrature.expand(-1, x.shape[-1])
                )
            )
        elif isinstance(q, NodeSpace):
            # One edge of the reduction starts at each node and ends in its voxel.
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
