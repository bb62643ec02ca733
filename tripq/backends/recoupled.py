r"""The same sum by an exact recoupling: two tensor-product convolutions in a row.

With the recoupling of `tripq.recoupling`, the layer is

1. q-aggregation: features times harmonics of the q-offset, summed over q_in: one GEMM;
2. q-coupling: harmonic and input order to an intermediate order l_1;
3. channel mixing, one GEMM for each l_1 (and each q_out);
4. p-aggregation: the p-harmonic and l_1 to the output order, summed over neighbouring voxels.

Steps 1 to 3 know nothing of neighbours and step 4 nothing of directions, so the cost is that of the
p-edges plus that of the q-edges, not of their product.  Where the output has a single direction,
steps 3 and 4 are joined: one matrix for each edge type does both.

A ``"diff"`` filter has one harmonic of both offsets, which does not come apart: there steps 1 to 3
run for every p-edge.  Where every voxel has directions of its own, steps 1, 2 and 4 run for every
edge, and the mixing comes last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tripq.filter import PQFilter, coupling_tensor
from tripq.graph import NodeSpace, PaddedBox, PEdges, QSpace
from tripq.kernels.box import Coupling, Layout, Operands, convolve
from tripq.kernels.p_stage import aggregate_on_edges, aggregate_on_grid
from tripq.recoupling import Block, Mixing

Result = TypeVar("Result")

# Numbers that a chunk of edges may hold, where the work goes edge by edge.
_BUDGET = 1 << 22

# A box computes its margins too, and is several times faster for each voxel than going by the
# table of neighbours: it pays down to this share of voxels.
_SPARSE = 0.2


def evaluate(
    x: Tensor, edges: PEdges, q: QSpace | NodeSpace, filter: PQFilter, budget: int
) -> Tensor:
    """The sum over all edges; shapes as in `tripq.backends`."""
    if not filter.paths:
        n_out = (len(q.q_out),) if isinstance(q, NodeSpace) else (x.shape[0], len(q.q_out))
        return x.new_zeros(*n_out, filter.dim_out)
    if isinstance(q, NodeSpace):
        return _on_nodes(x, edges, q, filter)
    if filter.kind == "diff":
        return _on_joint_offsets(x, edges, q, filter)
    return _on_product(x, edges, q, filter)


# -- a shared q-space ----------------------------------------------------------------------------


def _on_product(x: Tensor, edges: PEdges, q: QSpace, filter: PQFilter) -> Tensor:
    box = edges.box
    if len(q.q_out) > 1 and box is not None and box.fill > _SPARSE:
        return _on_box(x, edges, box, q, filter)
    embedding = _q_embedding(x.new_zeros(3), q, filter)
    aggregated = {l: _aggregate_q(x, e) for l, e in embedding.items()}
    coupled = _couple(aggregated, filter)
    mixing = _mixing(q.q_out.to(x.dtype), filter)
    p_embedding = _p_embedding(edges.offsets.to(x.dtype), filter)
    if len(q.q_out) == 1:
        return _mix_and_aggregate_p(coupled, mixing, p_embedding, edges, filter)
    mixed = [a @ w for a, w in zip(coupled, mixing, strict=True)]
    return _aggregate_p(mixed, p_embedding, edges, filter)


# -- a padded box --------------------------------------------------------------------------------


def _on_box(x: Tensor, edges: PEdges, box: PaddedBox, q: QSpace, filter: PQFilter) -> Tensor:
    """All steps on the box around a grid, by `tripq.kernels.box`."""
    # Of each pair of opposite offsets the one that leads ahead, and the zero offset.
    ahead = [t for t, shift in enumerate(box.shifts) if shift >= 0]
    offsets = edges.offsets[ahead].to(x.dtype)
    layout, harmonics = _box_layout(filter, x)
    even, odd = _box_projections(_p_embedding(offsets, filter), layout, filter)
    embedding = _q_embedding(x.new_zeros(3), q, filter)
    operands = Operands(
        [
            _spread(x[..., filter.index_in(g).view(mul, dim).T.flatten()], box)
            for g, (mul, dim) in enumerate(layout.inputs)
        ],
        [embedding[l].flatten(1, 2) for l in harmonics],
        _mixing(q.q_out.to(x.dtype), filter),
        even,
        odd,
    )
    out = x.new_zeros(x.shape[0], len(q.q_out), filter.dim_out)
    shifts = tuple(box.shifts[t] for t in ahead)
    for g, rows in enumerate(convolve(operands, layout, shifts)):
        features = rows.flatten(1, 2).index_select(2, box.position).permute(2, 0, 1)
        out = out.index_copy(2, filter.index_out(g), features)
    return out


def _spread(x: Tensor, box: PaddedBox) -> Tensor:
    """(V, Q_in, dim) to (Q_in, dim L), zero in the margins."""
    n_q, dim = x.shape[1:]
    rows = x.new_zeros(n_q, dim, box.length)
    return rows.index_copy(2, box.position, x.permute(1, 2, 0)).flatten(1)


def _box_layout(filter: PQFilter, like: Tensor) -> tuple[Layout, list[int]]:
    """What meets what, and the orders of the q-harmonics."""
    mixings = filter.recoupling.mixings
    harmonics = sorted({block.l for mixing in mixings for block in mixing.columns})
    couplings = []
    for h, l in enumerate(harmonics):
        for g, channels in enumerate(filter.channels_in):
            targets = [
                (i, block.start)
                for i, mixing in enumerate(mixings)
                for block in mixing.columns
                if (block.channels, block.l) == (g, l)
            ]
            if not targets:
                continue
            coefficients = [
                coupling_tensor(l, channels.l, mixings[i].l_1, like).flatten(0, 1).T
                for i, _ in targets
            ]
            scalar = l == 0 or channels.l == 0
            matrix = None if scalar else torch.cat(coefficients)
            couplings.append(Coupling(h, g, matrix, tuple(targets)))
    return Layout(
        filter.radial[0],
        filter.radial[2],
        tuple(2 * mixing.l_1 + 1 for mixing in mixings),
        tuple((c.mul, 2 * c.l + 1) for c in filter.channels_in),
        tuple((c.mul, 2 * c.l + 1) for c in filter.channels_out),
        tuple(couplings),
        tuple(_rows_of(filter, g, 0) for g in range(len(filter.channels_out))),
        tuple(_rows_of(filter, g, 1) for g in range(len(filter.channels_out))),
    ), harmonics


def _rows_of(filter: PQFilter, channels: int, parity: int) -> tuple[tuple[int, int], ...]:
    """Rows of the mixing matrices that lead to some channels, by the parity of l_p."""
    return tuple(
        (i, block.start)
        for i, mixing in enumerate(filter.recoupling.mixings)
        for block in mixing.rows
        if block.channels == channels and block.l % 2 == parity
    )


def _box_projections(
    p_embedding: dict[int, Tensor], layout: Layout, filter: PQFilter
) -> tuple[list[Tensor], list[Tensor]]:
    """Step 4 as matrices (H (2 l_out + 1), R), apart for even and odd l_p."""
    like = next(iter(p_embedding.values()))
    projections: tuple[list[Tensor], list[Tensor]] = ([], [])
    for parity, by_channels in enumerate((layout.even, layout.odd)):
        for channels, places in zip(filter.channels_out, by_channels, strict=True):
            blocks = [like.new_zeros(len(like), 2 * channels.l + 1, 0)]
            for i, start in places:
                mixing = filter.recoupling.mixings[i]
                (l,) = (block.l for block in mixing.rows if block.start == start)
                coefficients = coupling_tensor(l, mixing.l_1, channels.l, like)
                matrix = torch.einsum("tkp,pno->tokn", p_embedding[l], coefficients)
                blocks.append(matrix.flatten(2))
            projections[parity].append(torch.cat(blocks, dim=2).flatten(0, 1))
    return projections


def _q_embedding(p_offset: Tensor, q: QSpace, filter: PQFilter) -> dict[int, Tensor]:
    """Quadrature weight x phi_3 x inner harmonics: l -> (..., Q_out, K_3, 2 l + 1, Q_in)."""
    q_in, q_out = q.q_in.to(p_offset.dtype), q.q_out.to(p_offset.dtype)
    harmonics = filter.inner_harmonics(p_offset[..., None, None, :], q_out[:, None], q_in)
    phi = filter.phi_q_in(q_in.norm(dim=-1))
    weights = q.weights.to(p_offset.dtype)
    return {l: torch.einsum("oi,ik,...oim->...okmi", weights, phi, y) for l, y in harmonics.items()}


def _aggregate_q(x: Tensor, embedding: Tensor) -> Tensor:
    """Step 1: (V, Q_in, dim_in) -> (Q_out, K_3, 2 l + 1, V, dim_in)."""
    n_voxels, n_in, dim = x.shape
    columns = x.transpose(0, 1).reshape(n_in, n_voxels * dim)
    return (embedding.reshape(-1, n_in) @ columns).view(*embedding.shape[:-1], n_voxels, dim)


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


def _mixing(q_out: Tensor, filter: PQFilter) -> list[Tensor]:
    """For each l_1 the mixing matrices at the lengths of `q_out`: (Q_out, columns, rows)."""
    phi = filter.phi_q_out(q_out.norm(dim=-1))
    return [torch.einsum("ok,kcr->ocr", phi, matrix) for matrix in filter.mixing_matrices()]


def _p_embedding(offsets: Tensor, filter: PQFilter) -> dict[int, Tensor]:
    """phi_1 x outer harmonics of the p-offsets: l -> (T, K_1, 2 l + 1)."""
    phi = filter.phi_p(offsets.norm(dim=-1))
    harmonics = filter.outer_harmonics(offsets)
    return {l: torch.einsum("tk,tm->tkm", phi, y) for l, y in harmonics.items()}


def _aggregate_p(
    mixed: list[Tensor], p_embedding: dict[int, Tensor], edges: PEdges, filter: PQFilter
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
        summed = _over_edges(gathered, torch.cat(matrices, dim=1), edges)
        summed = summed.view(n_voxels, n_q, len(channels.index))
        out = out.index_copy(2, filter.index_out(index), summed)
    return out


def _mix_and_aggregate_p(
    coupled: list[Tensor],
    mixing_matrices: list[Tensor],
    p_embedding: dict[int, Tensor],
    edges: PEdges,
    filter: PQFilter,
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
    return _over_edges(torch.cat(features, dim=1)[:, None], torch.cat(matrices, dim=1), edges)


def _over_edges(z: Tensor, matrices: Tensor, edges: PEdges) -> Tensor:
    if edges.table is not None and edges.transposed_table is not None:
        return aggregate_on_grid(z, matrices, edges.table, edges.transposed_table)
    return aggregate_on_edges(z, matrices, edges.dst, edges.src, edges.type)


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


def _on_joint_offsets(x: Tensor, edges: PEdges, q: QSpace, filter: PQFilter) -> Tensor:
    mixing = _mixing(q.q_out.to(x.dtype), filter)
    largest = sum(2 * l + 1 for l in {path.l_filter for path in filter.paths})
    per_edge = len(q.q_out) * (largest * len(q.q_in) * filter.radial[2] + filter.dim_out)

    def contribution(x: Tensor, offsets: Tensor, dst: Tensor, src: Tensor, *w: Tensor) -> Tensor:
        embedding = _q_embedding(offsets, q, filter)
        features = x[src]
        aggregated = {
            l: torch.einsum("eokmi,eid->okmed", e, features) for l, e in embedding.items()
        }
        coupled = _couple(aggregated, filter)
        mixed = [a @ m for a, m in zip(coupled, w, strict=True)]
        # Each edge is an output voxel with itself as its only neighbour, at its own offset.
        every = torch.arange(len(dst), device=x.device)
        alone = PEdges.listed(offsets, every, every, every)
        messages = _aggregate_p(mixed, _p_embedding(offsets, filter), alone, filter)
        return x.new_zeros(x.shape[0], *messages.shape[1:]).index_add(0, dst, messages)

    out = x.new_zeros(x.shape[0], len(q.q_out), filter.dim_out)
    for part in _chunks(len(edges.dst), per_edge, x):
        offsets = edges.offsets[edges.type[part]].to(x.dtype)
        out = out + _recomputed(contribution, x, offsets, edges.dst[part], edges.src[part], *mixing)
    return out


# -- directions of its own at every voxel --------------------------------------------------------


def _on_nodes(x: Tensor, edges: PEdges, nodes: NodeSpace, filter: PQFilter) -> Tensor:
    joined = nodes.edges
    n_out = len(nodes.q_out)
    keys = _node_keys(filter)
    per_edge = sum(
        (2 * filter.channels_out[c].l + 1) * filter.radial[0] * mixing.n_columns
        for mixing, c, _ in keys
    )

    def contribution(x: Tensor, part: Tensor) -> tuple[Tensor, ...]:
        dst, src = joined.dst[part], joined.src[part]
        offsets = edges.offsets[edges.type[joined.p_edge[part]]].to(x.dtype)
        q_out, q_in = nodes.q_out[dst].to(x.dtype), nodes.q[src].to(x.dtype)
        inner = filter.inner_harmonics(offsets, q_out, q_in)
        phi = filter.phi_q_in(q_in.norm(dim=-1)) * joined.weights[part].to(x.dtype)[:, None]
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
        p_embedding = _p_embedding(offsets, filter)
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
    for part in _chunks(len(joined.dst), per_edge, x):
        sums = _recomputed(contribution, x, part)
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


# -- chunks --------------------------------------------------------------------------------------


def _chunks(n_edges: int, per_edge: int, x: Tensor) -> tuple[Tensor, ...]:
    if n_edges == 0:
        return ()
    return torch.arange(n_edges, device=x.device).split(max(1, _BUDGET // max(1, per_edge)))


def _recomputed(function: Callable[..., Result], *args: Tensor) -> Result:
    """Evaluate a chunk so that the backward pass recomputes it instead of keeping it."""
    result: Result = checkpoint(function, *args, use_reentrant=False)
    return result
