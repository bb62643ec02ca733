r"""The recoupled sum by Triton kernels, for CUDA devices.

Three operators of `tripq.kernels` in a row, voxels and directions as lanes:

1. `expand`, the q-stage: over the edges between directions, features times harmonics and radial
   functions of the q-offset, coupled to the intermediate orders l_1;
2. `mix`: channels, with one matrix for each l_1 and output direction;
3. `contract`, the p-stage: over the edges between voxels, times harmonics and radial functions of
   the p-offset, coupled to the output orders.

The budget limits the number of output directions computed at a time; the backward pass computes
each part again.  If voxels have individual directions, `aggregate_nodes` does 1 and 3 at once, edge
by edge, and the mixing is last, as in `tripq.backends.recoupled`.

On a CPU the operators run as their plain torch twins: for tests, not for speed.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from tripq.backends.base import BackEnd, Request, Work, by_kind_of_directions
from tripq.backends.parts import by_directions, recomputed
from tripq.backends.tables import mixing_at
from tripq.domain.adjacency import Adjacency
from tripq.domain.nodes import NodeSpace
from tripq.domain.qspace import QSpace
from tripq.domain.voxels import PEdges
from tripq.filters.filter import PQFilter, ungrouped
from tripq.infra.chunks import chunks
from tripq.infra.kept import kept_with_owner
from tripq.kernels import launch
from tripq.kernels.embeddings import edge_harmonics
from tripq.kernels.launch import accumulation_dtype
from tripq.kernels.mixing import mix
from tripq.kernels.nodes import aggregate_nodes
from tripq.kernels.nodes_arguments import NodeCsr, Term
from tripq.kernels.tensor_product import Coupling, contract, expand
from tripq.so3.harmonics import mean_over_signs
from tripq.so3.recoupling import Block

# -- a shared q-space ----------------------------------------------------------------------------


def _on_shared(x: Tensor, edges: PEdges, q: QSpace, filter: PQFilter, budget: int) -> Tensor:
    mixings = filter.recoupling.mixings
    orders = tuple(m.l_1 for m in mixings)
    to_coupled = [_coupling(i, block) for i, m in enumerate(mixings) for block in m.columns]
    from_mixed = [_coupling(i, block) for i, m in enumerate(mixings) for block in m.rows]
    outputs = tuple((c.l, c.mul) for c in filter.channels_out)
    exact = accumulation_dtype(x.dtype)  # no coordinates in half precision
    embeddings_p = _embeddings_p(edges, filter, exact)
    q_in, q_out, weights = (t.to(exact) for t in (q.q_in, q.q_out, q.weights))
    phi_q = filter.radial_q_in(q, exact)
    from_q, to_q = filter.q_ends(q_in), filter.q_ends(q_out)

    def part(directions: slice, *small: Tensor) -> Tensor:
        to, src, q_edges = _q_edges(q, directions.start, directions.stop)
        phi = phi_q[src] * weights[to, src][:, None]
        inner = _inner_harmonics(filter, to_q[to], from_q[src])
        coupled = expand(small, phi, inner, q_edges, to_coupled, orders)
        matrices = mixing_at(q.to_outputs(directions), filter, exact)
        mixed = [mix(a, w.to(a.dtype)) for a, w in zip(coupled, matrices, strict=True)]
        terms = [
            contract(mixed, phi, harmonics, edges.adjacency, from_mixed, outputs)
            for phi, harmonics in embeddings_p
        ]
        summed = [sum(some) for some in zip(*terms, strict=True)]
        # (V, 2 l + 1, mul, Q) each to (V, Q, dim_out)
        return torch.cat([f.permute(0, 3, 2, 1).flatten(2) for f in summed], dim=2)

    small = [
        x.index_select(2, filter.index_in(g)).unflatten(2, (c.mul, 2 * c.l + 1)).permute(1, 3, 2, 0)
        for g, c in enumerate(filter.channels_in)
    ]
    per_direction = len(x) * sum((m.n_columns + 2 * m.n_rows) * (2 * m.l_1 + 1) for m in mixings)
    out = by_directions(part, len(q_out), per_direction, budget, *small)
    return out.index_select(2, ungrouped(filter.channels_out, x.device))


def _embeddings_p(
    edges: PEdges, filter: PQFilter, dtype: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    """Radial functions (T, K_p) and harmonics (T, S), whose products are the p-embedding summed.

    Averaged over voxels, each radial function has harmonics of its own: one pair for each.
    """
    highest = _highest(filter, outer=True)
    if edges.rule is None:
        offsets = edges.offsets.to(dtype)
        return [(filter.radial_p(edges, dtype), edge_harmonics(offsets, highest))]
    embedding = filter.embed_p(edges, dtype)
    number, some = filter.radial[0], next(iter(embedding.values()))
    none = {l: some.new_zeros(len(some), number, 2 * l + 1) for l in range(highest + 1)}
    of_all = torch.cat(list((none | embedding).values()), dim=2)
    one = torch.eye(number, dtype=dtype, device=of_all.device)
    return [(one[k].expand(len(of_all), -1), of_all[:, k]) for k in range(number)]


@kept_with_owner
def _q_edges(q: QSpace, start: int, stop: int) -> tuple[Tensor, Tensor, Adjacency]:
    """The q-edges to some output directions: both ends of each, and their lists."""
    dst, src = torch.nonzero(q.weights[start:stop], as_tuple=True)
    every = torch.arange(len(dst), device=dst.device)
    edges = Adjacency.build(dst, src, every, stop - start, len(q.q_in), len(dst))
    return dst + start, src, edges


def _coupling(mixing: int, block: Block) -> Coupling:
    return Coupling(block.channels, mixing, block.start, block.l)


def _inner_harmonics(filter: PQFilter, q_out: Tensor, q_in: Tensor) -> Tensor:
    """Harmonics of the q-offsets (E, 3), averaged over signs if the filter is antipodal."""
    if filter.kind == "p":
        return torch.ones_like(q_out[:, :1])
    lmax = _highest(filter, outer=False)
    (mean,) = mean_over_signs(
        lambda offset: [edge_harmonics(offset, lmax)], q_out, q_in, filter.signs
    )
    return mean


def _highest(filter: PQFilter, *, outer: bool) -> int:
    """The highest order of a filter's harmonics of p-offsets or of q-offsets."""
    return max(path.outer if outer else path.inner for path in filter.paths)


# -- individual directions in every voxel --------------------------------------------------------


def _on_nodes(x: Tensor, edges: PEdges, nodes: NodeSpace, filter: PQFilter, budget: int) -> Tensor:
    mixings = filter.recoupling.mixings
    keys = [(m, column, row) for m in mixings for column in m.columns for row in m.rows]
    terms = [
        Term(column.channels, row.l, column.l, m.l_1, filter.channels_out[row.channels].l)
        for m, column, row in keys
    ]
    exact = accumulation_dtype(x.dtype)  # no coordinates in half precision
    offsets = edges.offsets.to(exact)
    q_in, q_out = nodes.q.to(exact), nodes.q_out.to(exact)
    phi_p = filter.radial_p(edges, exact).to(x.dtype)
    phi_q = filter.radial_q_in(nodes, exact).to(x.dtype)
    phi_out = filter.phi_q_out(q_out.norm(dim=-1))
    harmonics_p = edge_harmonics(offsets, _highest(filter, outer=True))
    from_q, to_q = filter.q_ends(q_in), filter.q_ends(q_out)
    matrices = dict(zip((m.l_1 for m in mixings), filter.mixing_matrices(), strict=True))

    def part(start: int, stop: int, *features: Tensor) -> Tensor:
        walk = _walk(nodes, edges, start, stop)
        sums = aggregate_nodes(
            features,
            phi_p,
            harmonics_p,
            phi_q,
            offsets,
            to_q[start:stop],
            from_q,
            walk,
            terms,
            filter.signs,
            filter.joint,
        )
        out = x.new_zeros(stop - start, filter.dim_out, dtype=exact)
        for total, (m, column, row) in zip(sums, keys, strict=True):
            matrix = matrices[m.l_1][:, column.start : column.stop, row.start : row.stop]
            matrix = matrix.unflatten(2, (filter.radial[0], -1))
            matrix = matrix.unflatten(1, (filter.radial[2], -1))
            mixed = torch.einsum(
                "ncabo,ny,ybcad->ndo", total.to(exact), phi_out[start:stop], matrix
            )
            out = out.index_add(1, filter.index_out(row.channels), mixed.flatten(1).to(exact))
        return out.to(x.dtype)

    features = [
        x.index_select(1, filter.index_in(g)).unflatten(1, (c.mul, 2 * c.l + 1))
        for g, c in enumerate(filter.channels_in)
    ]
    n_radial = filter.radial[0] * filter.radial[2]
    per_node = sum(n_radial * filter.channels_in[t.group].mul * (2 * t.l_out + 1) for t in terms)
    parts = chunks(len(q_out), x.element_size() * per_node, budget)
    if len(parts) < 2:
        return part(0, len(q_out), *features)
    return torch.cat(
        [recomputed(partial(part, nodes.start, nodes.stop), *features) for nodes in parts]
    )


@kept_with_owner
def _walk(nodes: NodeSpace, edges: PEdges, start: int, stop: int) -> NodeCsr:
    """The edges to some output nodes."""
    joined = nodes.edges
    some = ((joined.dst >= start) & (joined.dst < stop)).nonzero()[:, 0]
    return NodeCsr.build(
        joined.dst[some] - start,
        joined.src[some],
        edges.type[joined.p_edge[some]],
        joined.weights[some],
        stop - start,
        len(nodes.q),
        len(edges.offsets),
    )


# -- what it takes -------------------------------------------------------------------------------


def obstacle(request: Request) -> str | None:
    """The reason why this back end cannot evaluate a request, or None."""
    if request.on_gpu and not launch.TRITON_IS_INSTALLED:
        return "Triton is not installed: pip install 'tripq[cuda]'"
    if request.filter.joint and not request.nodes:
        return 'it has no kernel for a "diff" filter between voxels that share directions'
    if request.edges.rule is not None and any(True for _ in request.filter.phi_p.parameters()):
        return (
            "it needs constant radial functions in filters averaged over voxels; these are learnt"
        )
    if request.differentiated_p or request.differentiated_q:
        return "it needs constant coordinates and quadrature weights, but some require gradients"
    return None


def cost(request: Request) -> Work:
    """The three operators, or the one of nodes."""
    r, f, stages = request, request.filter, request.stages
    coupled, mixed = stages.coupled, stages.mixed
    if r.nodes:
        operations: float = r.n_edges * (stages.coupling + coupled + stages.p_sparse)
        return Work(operations, r.n_edges * f.dim_in, r.n_voxels * mixed)
    q_stage = r.n_in * (stages.coupling / f.radial[2] + coupled)
    operations = r.n_out * (r.n_voxels * (q_stage + stages.mixing) + r.n_edges * stages.p_sparse)
    moved = r.n_out * (r.n_voxels * 2 * (coupled + mixed) + r.n_edges * mixed / 4)
    return Work(operations, moved, r.n_out * r.n_voxels * (coupled + mixed))


evaluate = by_kind_of_directions(_on_shared, _on_nodes)

BACK_END = BackEnd(
    "triton", obstacle, cost, {"cpu": 1.0, "cuda": 5_500.0}, evaluate, needs_gpu=True
)
