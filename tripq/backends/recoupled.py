r"""The same sum by an exact recoupling: two tensor-product convolutions in a row.

With the recoupling of `tripq.recoupling`, the layer is

1. q-aggregation: features times harmonics of the q-offset, summed over q_in: one GEMM;
2. q-coupling: harmonic and input order to an intermediate order l_1;
3. channel mixing, one GEMM for each l_1 (and each q_out);
4. p-aggregation: the p-harmonic and l_1 to the output order, summed over neighbouring voxels.

Steps 1 to 3 know nothing of neighbours and step 4 nothing of directions, so the cost is that of the
p-edges plus that of the q-edges, not of their product.  Where the output has a single direction,
steps 3 and 4 are joined: one matrix for each edge type does both.

On a grid the sum over neighbours is a convolution.  Where the output has several directions, it is
done in Fourier space, frequency by frequency, by `tripq.kernels.box`: there is no recoupling there.

A ``"diff"`` filter has one harmonic of both offsets, which does not come apart: there steps 1 to 3
run for every p-edge.  Where every voxel has directions of its own, steps 1, 2 and 4 run for every
edge, and the mixing comes last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from tripq.filter import PQFilter, coupling_tensor, path_coupling
from tripq.graph import Grid, NodeSpace, PEdges, QSpace
from tripq.kernels.box import DEFAULT_BUDGET, Layout, Operands, Tiles, bytes_per_place, convolve
from tripq.kernels.p_stage import aggregate_on_edges, aggregate_on_grid
from tripq.radial import ConstantFunction, RadialFunctions
from tripq.recoupling import Block, Mixing

Result = TypeVar("Result")

# Tiles of a grid compute their margins too, and are many times faster for each voxel than going by
# the table of neighbours: they pay down to this share of voxels.
_SPARSE = 0.05

# Lengths of q-vectors that differ by less than this, relatively, are the same but for rounding.
_SAME_LENGTH = 1e-12


def evaluate(
    x: Tensor,
    edges: PEdges,
    q: QSpace | NodeSpace,
    filter: PQFilter,
    budget: int = DEFAULT_BUDGET,
) -> Tensor:
    """The sum over all edges; shapes as in `tripq.backends`."""
    if not filter.paths:
        n_out = (len(q.q_out),) if isinstance(q, NodeSpace) else (x.shape[0], len(q.q_out))
        return x.new_zeros(*n_out, filter.dim_out)
    if isinstance(q, NodeSpace):
        return _on_nodes(x, edges, q, filter, budget)
    if filter.kind == "diff":
        return _on_joint_offsets(x, edges, q, filter, budget)
    if len(q.q_out) == 1:
        return _to_one_direction(x, edges, q, filter, budget)
    if len(x) and edges.grid is not None and edges.steps is not None:
        out = _on_grid(x, edges, edges.grid, edges.steps, q, filter, budget)
        if out is not None:
            return out
    return _on_edges(x, edges, q, filter, budget)


# -- a shared q-space ----------------------------------------------------------------------------


def _on_edges(x: Tensor, edges: PEdges, q: QSpace, filter: PQFilter, budget: int) -> Tensor:
    """Steps 1 to 4 as they are, for a few output directions at a time."""

    def some(x: Tensor, part: Tensor) -> Tensor:
        outputs = replace(q, q_out=q.q_out[part], weights=q.weights[part])
        embedding = _q_embedding(x.new_zeros(3), outputs, filter)
        aggregated = {l: _aggregate_q(x, e) for l, e in embedding.items()}
        coupled = _couple(aggregated, filter)
        mixing = _mixing(outputs.q_out.to(x.dtype), filter)
        mixed = [a @ w for a, w in zip(coupled, mixing, strict=True)]
        p_embedding = _p_embedding(edges.offsets.to(x.dtype), filter)
        return _aggregate_p(mixed, p_embedding, edges, filter, budget)

    # Coupled, mixed and gathered features, and the copies that lay them out.
    numbers = sum(
        (2 * m.l_1 + 1) * (2 * m.n_columns + 3 * m.n_rows) for m in filter.recoupling.mixings
    )
    parts = _chunks(len(q.q_out), len(x) * numbers, x, budget)
    if len(parts) == 1:
        return some(x, parts[0])
    return torch.cat([_recomputed(some, x, part) for part in parts], dim=1)


def _to_one_direction(x: Tensor, edges: PEdges, q: QSpace, filter: PQFilter, budget: int) -> Tensor:
    embedding = _q_embedding(x.new_zeros(3), q, filter)
    coupled = _couple({l: _aggregate_q(x, e) for l, e in embedding.items()}, filter)
    mixing = _mixing(q.q_out.to(x.dtype), filter)
    p_embedding = _p_embedding(edges.offsets.to(x.dtype), filter)
    return _mix_and_aggregate_p(coupled, mixing, p_embedding, edges, filter, budget)


# -- a grid --------------------------------------------------------------------------------------


def _on_grid(
    x: Tensor, edges: PEdges, grid: Grid, steps: Tensor, q: QSpace, filter: PQFilter, budget: int
) -> Tensor | None:
    """All steps in Fourier space, by `tripq.kernels.box`; None where that does not pay."""
    largest = budget // bytes_per_place(x, len(q.q_out), filter.dim_out)
    margin = steps.abs().amax(dim=0).tolist()
    tiles = Tiles.cut(grid.voxels, margin, largest)
    if len(x) < _SPARSE * tiles.source.numel():
        return None
    out = _Shells.of(q.q_out, filter.phi_q_out, 2 * filter.radial[1], x)
    into = _Shells.of(q.q_in, filter.phi_q_in, filter.radial[2], x)
    order = torch.cat(out.directions)
    ends = [0, *accumulate(len(shell) for shell in out.directions)]
    groups = _groups(filter)
    even = [l for l in _outer_orders(filter) if l % 2 == 0]
    layout = Layout(
        tuple(group.index for group in groups for _ in into.directions),
        tuple(shell for _ in groups for shell in into.directions),
        tuple(slice(*run) for run in pairwise(ends)),
        order,
        filter.radial[0] * sum(2 * l + 1 for l in even),
    )
    harmonics = filter.inner_harmonics(
        x.new_zeros(3), q.q_out[order].to(x.dtype), q.q_in[:, None].to(x.dtype)
    )
    weights = q.weights[order].to(x.dtype)
    embeddings = []
    for group in groups:
        y = torch.cat([harmonics[l] for l in group.orders], dim=-1)
        whole = torch.einsum("oi,oj,ik,iob->ijkbo", weights, out.factors[order], into.factors, y)
        embeddings += [whole[shell].flatten(1, 3) for shell in into.directions]
    p_embedding = _p_embedding(edges.offsets.to(x.dtype), filter)
    functions = torch.cat([p_embedding[l].flatten(1) for l in _outer_orders(filter)], dim=1)
    transfer = tiles.transfer(steps, functions, layout.n_even)
    operands = Operands(transfer, _coefficients(filter, groups, out, into), embeddings)
    return convolve(x, operands, layout, tiles, budget)


@dataclass(frozen=True, eq=False)
class _Shells:
    """Radial functions of |q|, in the basis that is cheapest for a gradient table.

    On a few shells that is the functions' values on each of them, and all else is done for a shell
    at a time; else it is the functions themselves.

    Attributes
    ----------
    directions : tuple of Tensors, int64
        The directions of each of S shells, or all of them as one.
    values : Tensor of shape (S, J, K)
        The K functions in terms of J on each shell.
    factors : Tensor of shape (Q, J)
        These J functions at each direction.
    """

    directions: tuple[Tensor, ...]
    values: Tensor
    factors: Tensor

    @classmethod
    def of(
        cls, q: Tensor, phi: RadialFunctions | ConstantFunction, most: int, like: Tensor
    ) -> _Shells:
        """On shells if there are no more than `most`; dtype as `like`."""
        # In the precision of the graph, or rounding would part a shell.
        lengths, order = q.norm(dim=-1).sort(stable=True)
        first = lengths.diff(prepend=lengths[:1] - 1) > _SAME_LENGTH * lengths[-1:]
        counts = first.cumsum(0).sub(1).bincount().tolist()
        if len(counts) > most or phi.number == 1:
            identity = torch.eye(phi.number, dtype=like.dtype, device=q.device)
            values = phi(q.norm(dim=-1).to(like.dtype))
            return cls((torch.arange(len(q), device=q.device),), identity[None], values)
        values = phi(lengths[first].to(like.dtype))
        return cls(
            order.split(counts), values[:, None], torch.ones_like(values[:1, :1]).expand(len(q), 1)
        )


@dataclass(frozen=True)
class _Group:
    """Groups of input channels that meet the same orders of q-harmonics, as one.

    Attributes
    ----------
    starts : dict from int to int
        Where the components of each of the groups begin.
    index : Tensor of shape (C,), int64
        Where the components stand in the features.
    orders : tuple of int
        Of the q-harmonics.
    """

    starts: dict[int, int]
    index: Tensor
    orders: tuple[int, ...]


def _groups(filter: PQFilter) -> list[_Group]:
    members: dict[tuple[int, ...], list[int]] = {}
    for g in range(len(filter.channels_in)):
        met = {path.l_q for path in filter.paths if filter.channels_of(path)[0] == g}
        if met:
            members.setdefault(tuple(sorted(met)), []).append(g)
    groups = []
    for orders, some in members.items():
        index = [filter.index_in(g) for g in some]
        starts = accumulate((len(i) for i in index), initial=0)
        groups.append(_Group(dict(zip(some, starts, strict=False)), torch.cat(index), orders))
    return groups


def _coefficients(
    filter: PQFilter, groups: list[_Group], out: _Shells, into: _Shells
) -> list[Tensor]:
    """What joins the p- and q-embeddings and the channels, as `tripq.kernels.box` wants it."""
    tensors: tuple[Tensor, ...] = _Coefficients.apply(filter, groups, filter.weight)
    outputs = torch.cat([filter.index_out(g) for g in range(len(filter.channels_out))])
    back = outputs.argsort()
    coefficients = []
    for tensor in tensors:
        joined = torch.einsum("sjk,rlm,akmcbn->rsancjlb", out.values, into.values, tensor)
        coefficients += list(joined.flatten(4).index_select(3, back))
    return coefficients


class _Coefficients(torch.autograd.Function):
    """Weights times coupling coefficients, a linear map.

    For each group of input channels that takes part a tensor (B_p, K_q_out, K_q_in, channels,
    components of the inner harmonics, dim_out).
    """

    @staticmethod
    def forward(
        ctx: Any, filter: PQFilter, groups: list[_Group], weight: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.filter, ctx.groups = filter, groups
        k_p, k_out, k_in = filter.radial
        n_p = k_p * sum(2 * l + 1 for l in _outer_orders(filter))
        tensors = [
            weight.new_zeros(
                n_p,
                k_out,
                k_in,
                len(group.index),
                sum(2 * l + 1 for l in group.orders),
                filter.dim_out,
            )
            for group in groups
        ]
        for part, block, coupling in _path_blocks(filter, groups, tensors):
            block += torch.einsum("vuabc,pqio->apbcuiqvo", part, coupling)
        return tuple(tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor]:
        parts = [
            torch.einsum("apbcuiqvo,pqio->vuabc", block, coupling).flatten()
            for _, block, coupling in _path_blocks(ctx.filter, ctx.groups, grads)
        ]
        return None, None, torch.cat(parts)


def _path_blocks(
    filter: PQFilter, groups: list[_Group], tensors: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each path its weights, its block of the coefficients and its coupling.

    The block is a view (K_p, 2 l_p + 1, K_q_out, K_q_in, mul_in, 2 l_in + 1, 2 l_q + 1, mul_out,
    2 l_out + 1).
    """
    rows = _starts(_outer_orders(filter))
    ends = list(accumulate((len(c.index) for c in filter.channels_out), initial=0))
    for path, weight in filter.path_weights():
        i, o = filter.channels_of(path)
        ((group, tensor),) = ((g, t) for g, t in zip(groups, tensors, strict=True) if i in g.starts)
        k_p, n_p, n_q = filter.radial[0], 2 * path.l_p + 1, 2 * path.l_q + 1
        row, column, first = k_p * rows[path.l_p], _starts(group.orders)[path.l_q], group.starts[i]
        block = tensor[row : row + k_p * n_p].narrow(3, first, len(filter.channels_in[i].index))
        block = block[..., column : column + n_q, ends[o] : ends[o + 1]]
        block = block.unflatten(5, (-1, 2 * path.l_out + 1)).unflatten(3, (-1, 2 * path.l_in + 1))
        yield weight, block.unflatten(0, (k_p, n_p)), path_coupling(path, weight)


def _starts(orders: Sequence[int]) -> dict[int, int]:
    """Where the components of each harmonic begin."""
    return dict(zip(orders, accumulate((2 * l + 1 for l in orders), initial=0), strict=False))


def _outer_orders(filter: PQFilter) -> list[int]:
    """Orders of the p-harmonics, first the even ones."""
    return sorted({path.l_p for path in filter.paths}, key=lambda l: (l % 2, l))


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
    if edges.table is not None and edges.transposed_table is not None:
        return aggregate_on_grid(z, matrices, edges.table, edges.transposed_table, budget)
    return aggregate_on_edges(z, matrices, edges.dst, edges.src, edges.type, budget)


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
        alone = PEdges(offsets, every, every, every)
        messages = _aggregate_p(mixed, _p_embedding(offsets, filter), alone, filter, budget)
        return x.new_zeros(x.shape[0], *messages.shape[1:]).index_add(0, dst, messages)

    out = x.new_zeros(x.shape[0], len(q.q_out), filter.dim_out)
    # Several arrays of that size exist at a time.
    for part in _chunks(len(edges.dst), 4 * per_edge, x, budget):
        offsets = edges.offsets[edges.type[part]].to(x.dtype)
        out = out + _recomputed(contribution, x, offsets, edges.dst[part], edges.src[part], *mixing)
    return out


# -- directions of its own at every voxel --------------------------------------------------------


def _on_nodes(x: Tensor, edges: PEdges, nodes: NodeSpace, filter: PQFilter, budget: int) -> Tensor:
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
    for part in _chunks(len(joined.dst), 4 * per_edge, x, budget):
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


def _chunks(number: int, size: int, x: Tensor, budget: int) -> tuple[Tensor, ...]:
    """Indices below `number`, as many at a time as the budget allows; each makes `size` numbers."""
    if number == 0:
        return ()
    step = max(1, budget // max(1, x.element_size() * size))
    return torch.arange(number, device=x.device).split(step)


def _recomputed(function: Callable[..., Result], *args: Tensor) -> Result:
    """Evaluate a chunk so that the backward pass recomputes it instead of keeping it."""
    result: Result = checkpoint(function, *args, use_reentrant=False)
    return result
