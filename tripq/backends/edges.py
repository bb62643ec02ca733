"""The definition, edge by edge: the filter of every edge, times the features at its input node.

It is slow, and the reference for all other back ends.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from tripq.backends.base import BackEnd, Request, Work, no_obstacle
from tripq.backends.parts import recomputed
from tripq.backends.precision import full_precision
from tripq.domain.nodes import NodeSpace
from tripq.domain.qspace import QSpace
from tripq.domain.voxels import PEdges
from tripq.filters.filter import PQFilter
from tripq.infra.chunks import chunks

# A filter is made by steps that hold a few of its size at a time.
_INTERMEDIATES = 4


@full_precision
def evaluate(
    x: Tensor, edges: PEdges, q: QSpace | NodeSpace, filter: PQFilter, budget: int
) -> Tensor:
    """The sum over all edges; shapes as in `tripq.backends`."""
    if isinstance(q, NodeSpace):
        return _on_nodes(x, edges, q, filter, budget)
    return _on_product(x, edges, q, filter, budget)


def _on_product(x: Tensor, edges: PEdges, q: QSpace, filter: PQFilter, budget: int) -> Tensor:
    weights = q.weights.to(x.dtype)
    radial = filter.radial_q_in(q, x.dtype)

    def messages(part: slice, x: Tensor) -> Tensor:
        types = edges.type[part]
        kernel = filter.kernel(
            edges.offsets[types][:, None, None].to(x.dtype),
            q.q_out[None, :, None].to(x.dtype),
            q.q_in[None, None, :].to(x.dtype),
            rule=edges.rule,
            phi_q_in=radial,
        )
        features = _weighted(x[edges.src[part]], edges, types)
        return torch.einsum("epqoi,pq,eqi->epo", kernel, weights, features)

    out = x.new_zeros(x.shape[0], len(q.q_out), filter.dim_out)
    for part in _chunks(len(edges.dst), edges, filter, weights.numel(), x, budget):
        out = out.index_add(0, edges.dst[part], _evaluated(partial(messages, part), x, edges))
    return out


def _on_nodes(x: Tensor, edges: PEdges, nodes: NodeSpace, filter: PQFilter, budget: int) -> Tensor:
    joined = nodes.edges
    radial = filter.radial_q_in(nodes, x.dtype)

    def messages(part: slice, x: Tensor) -> Tensor:
        types, src = edges.type[joined.p_edge[part]], joined.src[part]
        kernel = filter.kernel(
            edges.offsets[types].to(x.dtype),
            nodes.q_out[joined.dst[part]].to(x.dtype),
            nodes.q[src].to(x.dtype),
            rule=edges.rule,
            phi_q_in=radial[src],
        )
        weights = joined.weights[part].to(x.dtype)
        return torch.einsum("eoi,e,ei->eo", kernel, weights, _weighted(x[src], edges, types))

    out = x.new_zeros(len(nodes.q_out), filter.dim_out)
    for part in _chunks(len(joined.dst), edges, filter, 1, x, budget):
        out = out.index_add(0, joined.dst[part], _evaluated(partial(messages, part), x, edges))
    return out


def _evaluated(messages: Callable[[Tensor], Tensor], x: Tensor, edges: PEdges) -> Tensor:
    """The messages of a chunk; filters at the points of voxels are too many to be kept."""
    return messages(x) if edges.rule is None else recomputed(messages, x)


def _weighted(features: Tensor, edges: PEdges, types: Tensor) -> Tensor:
    """Features (E, ...) times the quadrature weights of the p-offsets."""
    if edges.weights is None:
        return features
    weights = edges.weights[types].to(features.dtype)
    return features * weights.view(-1, *[1] * (features.ndim - 1))


def _chunks(
    n_edges: int, edges: PEdges, filter: PQFilter, per_edge: int, x: Tensor, budget: int
) -> list[slice]:
    """Without edges one chunk of none, so that derivatives are 0, not missing."""
    size = _INTERMEDIATES * filter.dim_out * filter.dim_in * per_edge * x.element_size()
    if edges.rule is not None and filter.joint:
        size *= len(edges.rule.points)
    return chunks(n_edges, size, budget) or [slice(0, 0)]


# -- what it takes -------------------------------------------------------------------------------


def cost(request: Request) -> Work:
    """The kernel of every edge, and its product with the features."""
    f = request.filter
    coupled = sum((2 * p.l_out + 1) * (2 * p.l_in + 1) * (2 * p.l_filter + 1) for p in f.paths)
    weighted = f.weight.numel() + len(f.paths) * f.dim_out * f.dim_in
    kernel = f.dim_out * f.dim_in
    n_edges = request.n_edges * request.n_in * request.n_out
    return Work(n_edges * (coupled + weighted + kernel), 4 * n_edges * kernel, 2 * n_edges * kernel)


# The rates are a guess: nobody takes it for speed.
BACK_END = BackEnd("edges", no_obstacle, cost, {"cpu": 1.0, "cuda": 100.0}, evaluate)
