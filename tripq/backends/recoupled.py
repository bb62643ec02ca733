r"""The same sum by an exact recoupling: two tensor-product convolutions in a row.

With the recoupling of `tripq.so3.recoupling`, the layer is

1. q-aggregation: features times harmonics of the q-offset, summed over q_in: one GEMM;
2. q-coupling: harmonic and input order to an intermediate order l_1;
3. channel mixing, one GEMM for each l_1 (and each q_out);
4. p-aggregation: the p-harmonic and l_1 to the output order, summed over neighbouring voxels.

Steps 1 to 3 do not depend on neighbours, and step 4 not on input directions, so the cost is that of
the p-edges plus that of the q-edges, not of their product.  If the output has a single direction,
steps 3 and 4 are one: a matrix for each edge type.

A ``"diff"`` filter has one harmonic of both offsets, which does not factor: steps 1 to 3 run for
every p-edge.  If voxels have individual directions, steps 1, 2 and 4 run for every edge, and the
mixing is last.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.profiler import record_function

from tripq.backends.base import BackEnd, Request, Work, by_kind_of_directions, no_obstacle
from tripq.backends.neighbour_sums import aggregate_on_edges, aggregate_on_grid
from tripq.backends.parts import by_directions, parts_of, recomputed
from tripq.backends.precision import full_precision
from tripq.backends.tables import embed_q, mixing_at, q_embedding
from tripq.domain.nodes import NodeSpace
from tripq.domain.qspace import QSpace
from tripq.domain.voxels import PEdges
from tripq.filters.filter import PQFilter, coupling_tensor
from tripq.so3.recoupling import Block, Mixing

# -- a shared q-space ----------------------------------------------------------------------------


def _on_shared(x: Tensor, edges: PEdges, q: QSpace, filter: PQFilter, budget: int) -> Tensor:
    if filter.joint:
        points = edges.with_list().at_points()
        parts = (_on_joint_offsets(x, some, q, filter, budget) for some in points)
        return sum(parts, start=x.new_zeros(()))
    if len(q.q_out) == 1:
        return _to_one_direction(x, edges, q, filter, budget)
    return _on_edges(x, edges, q, filter, budget)


def _on_edges(x: Tensor, edges: PEdges, q: QSpace, filter: PQFilter, budget: int) -> Tensor:
    """Steps 1 to 4 as they are, for a few output directions at a time."""

    def some(part: slice, x: Tensor) -> Tensor:
        outputs = q.to_outputs(part)
        embedding = q_embedding(outputs, filter, x.dtype)
        aggregated = {l: _aggregate_q(x, e) for l, e in embedding.items()}
        coupled = _couple(aggregated, filter)
        mixing = mixing_at(outputs, filter, x.dtype)
        mixed = [a @ w for a, w in zip(coupled, mixing, strict=True)]
        p_embedding = filter.embed_p(edges, x.dtype)
        return _aggregate_p(mixed, p_embedding, edges, filter, budget)

    # Coupled, mixed and gathered features, and the copies that lay them out.
    numbers = sum(
        (2 * m.l_1 + 1) * (2 * m.n_columns + 3 * m.n_rows) for m in filter.recoupling.mixings
    )
    return by_directions(some, len(q.q_out), len(x) * numbers, budget, x)


def _to_one_direction(x: Tensor, edges: PEdges, q: QSpace, filter: PQFilter, budget: int) -> Tensor:
    embedding = q_embedding(q, filter, x.dtype)
    coupled = _couple({l: _aggregate_q(x, e) for l, e in embedding.items()}, filter)
    mixing = mixing_at(q, filter, x.dtype)
    p_embedding = filter.embed_p(edges, x.dtype)
    return _mix_and_aggregate_p(coupled, mixing, p_embedding, edges, filter, budget)


@record_function("tripq: q-aggregation")
def _aggregate_q(x: Tensor, embedding: Tensor) -> Tensor:
    """Step 1: (V, Q_in, dim_in) -> (Q_out, K_3, 2 l + 1, V, dim_in)."""
    n_voxels, n_in, dim = x.shape
    columns = x.transpose(0, 1).reshape(n_in, n_voxels * dim)
    return (embedding.reshape(-1, n_in) @ columns).view(*embedding.shape[:-1], n_voxels, dim)


@record_function("tripq: q-coupling")
def _couple(aggregated: dict[int, Tensor], filter: PQFilter) -> list[Tensor]:
    """Step 2: l -> (Q_out, K_3, 2 l + 1, V, dim_in) to l_1 -> (Q_out, V (2 l_1 + 1), columns)."""
    coupled = []
    for mixing in filter.recoupling.mixings:
        parts = []
        for block in mixing.columns:
            channels = filter.channels_in[block.channels]
            a = aggregated[block.l][..., filter.index_in(block.channels)]
            a = a.unflatten(-1, (channels.mul, 2 * channels.l + 1))
            coefficients = coupling_tensor(block.l, channels.l, mixing.l_1, a)
            parts.append(torch.einsum("okavcb,abn->ovnkc", a, coefficients).flatten(3))
        coupled.append(torch.cat(parts, dim=3).flatten(1, 2))
    return coupled


@record_function("tripq: p-aggregation")
def _aggregate_p(
    mixed: list[Tensor],
    p_embedding: dict[int, Tensor],
    edges: PEdges,
    filter: PQFilter,
    budget: int,
) -> Tensor:
    """Step 4: for each l_1 (Q_out, V (2 l_1 + 1), rows) to (V, Q_out, dim_out)."""
    n_q = mixed[0].shape[0]
    n_voxels = mixed[0].shape[1] // (2 * filter.recoupling.mixings[0].l_1 + 1)
    k_1 = filter.radial[0]
    out = mixed[0].new_zeros(n_voxels, n_q, filter.dim_out)
    for index, channels in enumerate(filter.channels_out):
        features, matrices = [], []
        for z, mixing, block in _row_blocks(mixed, filter, index):
            n_1 = 2 * mixing.l_1 + 1
            part = z[..., block.start : block.stop].view(n_q, n_voxels, n_1, k_1, channels.mul)
            features.append(part.permute(1, 0, 4, 2, 3).flatten(3))
            coefficients = coupling_tensor(block.l, mixing.l_1, channels.l, z)
            matrix = torch.einsum("tkp,pno->tnko", p_embedding[block.l], coefficients)
            matrices.append(matrix.flatten(1, 2))
        if not features:
            continue
        gathered = torch.cat(features, dim=3).flatten(1, 2)
        summed = _over_edges(gathered, torch.cat(matrices, dim=1), edges, budget)
        summed = summed.view(n_voxels, n_q, len(channels.index))
        out = out.index_copy(2, filter.index_out(index), summed)
    return out


@record_function("tripq: p-aggregation")
def _mix_and_aggregate_p(
    coupled: list[Tensor],
    mixing_matrices: list[Tensor],
    p_embedding: dict[int, Tensor],
    edges: PEdges,
    filter: PQFilter,
    budget: int,
) -> Tensor:
    """Steps 3 and 4 at once, where there is one output direction: (V, 1, dim_out)."""
    k_1 = filter.radial[0]
    features, matrices = [], []
    for a, w, mixing in zip(coupled, mixing_matrices, filter.recoupling.mixings, strict=True):
        n_1 = 2 * mixing.l_1 + 1
        features.append(a[0].view(-1, n_1 * mixing.n_columns))
        n_types = len(edges.offsets)
        matrix = w.new_zeros(n_types, n_1, mixing.n_columns, filter.dim_out)
        for block in mixing.rows:
            channels = filter.channels_out[block.channels]
            coefficients = coupling_tensor(block.l, mixing.l_1, channels.l, w)
            angular = torch.einsum("tkp,pno->tnok", p_embedding[block.l], coefficients)
            rows = w[0][:, block.start : block.stop].view(-1, k_1, channels.mul)
            part = torch.einsum("tnok,xkc->tnxco", angular, rows).flatten(3)
            matrix = matrix.index_add(3, filter.index_out(block.channels), part)
        matrices.append(matrix.flatten(1, 2))
    z = torch.cat(features, dim=1)[:, None]
    return _over_edges(z, torch.cat(matrices, dim=1), edges, budget)


def _over_edges(z: Tensor, matrices: Tensor, edges: PEdges, budget: int) -> Tensor:
    table, transposed = edges.table, edges.transposed_table
    if table is not None and transposed is not None:
        return aggregate_on_grid(z, matrices, table, transposed, budget)
    dst, src, type_ = edges.edge_list
    return aggregate_on_edges(z, matrices, dst, src, type_, budget)


def _row_blocks(
    mixed: list[Tensor], filter: PQFilter, channels: int
) -> list[tuple[Tensor, Mixing, Block]]:
    return [
        (z, mixing, block)
        for z, mixing in zip(mixed, filter.recoupling.mixings, strict=True)
        for block in mixing.rows
        if block.channels == channels
    ]


# -- harmonics of both offsets at once -----------------------------------------------------------


def _on_joint_offsets(x: Tensor, edges: PEdges, q: QSpace, filter: PQFilter, budget: int) -> Tensor:
    mixing = mixing_at(q, filter, x.dtype)
    largest = sum(2 * l + 1 for l in {path.inner for path in filter.paths})
    per_edge = len(q.q_out) * (largest * len(q.q_in) * filter.radial[2] + filter.dim_out)

    def contribution(
        x: Tensor, offsets: Tensor, weights: Tensor | None, dst: Tensor, src: Tensor, *w: Tensor
    ) -> Tensor:
        embedding = embed_q(offsets, q, filter)
        features = x[src]
        aggregated = {
            l: torch.einsum("eokmi,eid->okmed", e, features) for l, e in embedding.items()
        }
        coupled = _couple(aggregated, filter)
        mixed = [a @ m for a, m in zip(coupled, w, strict=True)]
        # Each edge is an output voxel with itself as its only neighbour, at its own offset.
        every = torch.arange(len(dst), device=x.device)
        alone = replace(PEdges.listed(len(dst), offsets, every, every, every), weights=weights)
        messages = _aggregate_p(mixed, filter.embed_p(alone, x.dtype), alone, filter, budget)
        return x.new_zeros(x.shape[0], *messages.shape[1:]).index_add(0, dst, messages)

    out = x.new_zeros(x.shape[0], len(q.q_out), filter.dim_out)
    # Several arrays of that size exist at a time.
    for part in parts_of(len(edges.dst), 4 * per_edge, x, budget):
        offsets = edges.offsets[edges.type[part]].to(x.dtype)
        weights = None if edges.weights is None else edges.weights[edges.type[part]]
        ends = edges.dst[part], edges.src[part]
        out = out + recomputed(contribution, x, offsets, weights, *ends, *mixing)
    return out


# -- individual directions in every voxel --------------------------------------------------------


def _on_nodes(x: Tensor, edges: PEdges, nodes: NodeSpace, filter: PQFilter, budget: int) -> Tensor:
    joined = nodes.edges
    n_out = len(nodes.q_out)
    keys = _node_keys(filter)
    per_edge = sum(
        (2 * filter.channels_out[c].l + 1) * filter.radial[0] * mixing.n_columns
        for mixing, c, _ in keys
    )

    radial = filter.radial_q_in(nodes, x.dtype)
    outer = filter.embed_p(edges, x.dtype)

    def contribution(x: Tensor, part: Tensor) -> tuple[Tensor, ...]:
        dst, src = joined.dst[part], joined.src[part]
        offsets = edges.offsets[edges.type[joined.p_edge[part]]].to(x.dtype)
        q_out, q_in = nodes.q_out[dst].to(x.dtype), nodes.q[src].to(x.dtype)
        inner = filter.inner_harmonics(offsets, q_out, q_in)
        phi = radial[src] * joined.weights[part].to(x.dtype)[:, None]
        features = x[src]
        # One "output direction", and the edges in the place of the voxels.
        aggregated = {
            l: torch.einsum("ek,em,ed->kmed", phi, y, features)[None] for l, y in inner.items()
        }
        coupled = dict(
            zip(
                (mixing.l_1 for mixing in filter.recoupling.mixings),
                _couple(aggregated, filter),
                strict=True,
            )
        )
        types = edges.type[joined.p_edge[part]]
        p_embedding = {l: e[types] for l, e in outer.items()}
        sums = []
        for mixing, channels, l in keys:
            l_out = filter.channels_out[channels].l
            coefficients = coupling_tensor(l, mixing.l_1, l_out, x)
            angular = torch.einsum("ekp,pno->ekno", p_embedding[l], coefficients)
            a = coupled[mixing.l_1][0].view(len(part), 2 * mixing.l_1 + 1, mixing.n_columns)
            messages = torch.einsum("ekno,enx->eokx", angular, a)
            sums.append(x.new_zeros(n_out, *messages.shape[1:]).index_add(0, dst, messages))
        return tuple(sums)

    totals: list[Tensor] | None = None
    for part in parts_of(len(joined.dst), 4 * per_edge, x, budget):
        sums = recomputed(contribution, x, part)
        totals = (
            list(sums) if totals is None else [a + b for a, b in zip(totals, sums, strict=True)]
        )
    out = x.new_zeros(n_out, filter.dim_out)
    if totals is None:
        return out
    matrices = dict(
        zip((m.l_1 for m in filter.recoupling.mixings), filter.mixing_matrices(), strict=True)
    )
    phi_out = filter.phi_q_out(nodes.q_out.to(x.dtype).norm(dim=-1))
    for (mixing, index, l), total in zip(keys, totals, strict=True):
        channels = filter.channels_out[index]
        (block,) = (b for b in mixing.rows if (b.channels, b.l) == (index, l))
        matrix = matrices[mixing.l_1][..., block.start : block.stop]
        matrix = matrix.unflatten(2, (filter.radial[0], channels.mul))
        mixed = torch.einsum("nokx,ny,yxkc->nco", total, phi_out, matrix).flatten(1)
        out = out.index_add(1, filter.index_out(index), mixed)
    return out


def _node_keys(filter: PQFilter) -> list[tuple[Mixing, int, int]]:
    """Every (l_1, output channels, outer harmonic) that occurs."""
    return [
        (mixing, block.channels, block.l)
        for mixing in filter.recoupling.mixings
        for block in mixing.rows
    ]


# -- what it takes -------------------------------------------------------------------------------


def cost(request: Request) -> Work:
    """Steps 1 to 4, or their order on nodes and for one output direction."""
    r, f, stages = request, request.filter, request.stages
    aggregated = r.n_in * stages.embedding * f.dim_in + stages.coupling
    if r.nodes:
        operations = r.n_edges * (aggregated + stages.p_dense)
        return Work(
            operations, r.n_edges * (stages.coupled + stages.mixed), r.n_edges * stages.mixed
        )
    # A "diff" filter has embeddings of every edge, and of no voxel.
    places = r.n_edges if f.joint else r.n_voxels
    if r.n_out == 1:
        operations = places * aggregated + r.n_edges * stages.p_joined
        moved = (places + r.n_edges) * stages.coupled
        return Work(operations, 2 * moved, places * stages.coupled)
    operations = r.n_out * (places * (aggregated + stages.mixing) + r.n_edges * stages.p_dense)
    numbers = stages.embedding * f.dim_in + 2 * stages.coupled + 2 * stages.mixed
    moved = r.n_out * (places * numbers + r.n_edges * stages.mixed)
    return Work(operations, moved, r.n_out * places * (stages.coupled + 2 * stages.mixed))


evaluate = full_precision(by_kind_of_directions(_on_shared, _on_nodes))

BACK_END = BackEnd("recoupled", no_obstacle, cost, {"cpu": 10.0, "cuda": 6_500.0}, evaluate)
