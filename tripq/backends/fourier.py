r"""The same sum on a grid in Fourier space, where the sum over neighbours is a product.

For voxels on a grid that share their directions, the sum over neighbours is a convolution, and in
Fourier space a product at each frequency.  There the p-harmonics and the weights give one matrix
from the features aggregated over q to the output; `tripq.backends.spectral` gives the formula.
If a gradient table has few shells, the radial functions of |q| are evaluated once for each shell.

The cost depends on the box around the voxels and its margins, and hardly on the neighbourhood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod

import numpy as np
import torch
from torch import Tensor

from tripq.backends.base import BackEnd, Request, Work, empty_sum, grid_obstacle
from tripq.backends.precision import full_precision
from tripq.backends.spectral.convolution import bytes_per_place, convolve
from tripq.backends.spectral.stages import Layout, Operands
from tripq.backends.spectral.tiles import Tiles
from tripq.backends.tables import Index, Terms, coefficient_matrix
from tripq.domain.nodes import NodeSpace
from tripq.domain.qspace import QSpace
from tripq.domain.voxels import PEdges, VoxelGrid
from tripq.filters.filter import PQFilter, positions
from tripq.filters.sparse import SparseMatrix
from tripq.infra.kept import keep, kept_with_owner
from tripq.kernels.launch import needs_twin

# Lengths of q-vectors that differ by less than this, relatively, are the same but for rounding.
_SAME_LENGTH = 1e-12


@full_precision
def evaluate(
    x: Tensor, edges: PEdges, q: QSpace | NodeSpace, filter: PQFilter, budget: int
) -> Tensor:
    """The sum over all edges; shapes as in `tripq.backends`."""
    assert isinstance(q, QSpace)  # see `obstacle`
    assert edges.grid is not None
    assert edges.steps is not None
    if not filter.paths or not len(x):
        return empty_sum(x, q, filter)
    groups = _groups(filter, x.device)
    key = filter.constants_q(q, x.dtype)
    orders = tuple(group.orders for group in groups)
    on_q = keep(q, key and (orders, key), lambda: _OnQ.of(q, filter, orders, x.dtype))
    layout = Layout(
        tuple(group.index for group in groups for _ in on_q.into.directions),
        tuple(shell for _ in groups for shell in on_q.into.directions),
        on_q.runs,
        on_q.order,
        _n_even(filter),
    )
    coefficients = _coefficients(filter, groups, on_q.out, on_q.into)
    largest = budget // bytes_per_place(x, len(q.q_out), filter.dim_out)
    others = layout.work(coefficients) // (x[0].numel() + len(q.q_out) * filter.dim_out)
    tiles = _tiles(edges.grid, edges.margin, largest, others)
    key = filter.constants_p(edges, x.dtype)
    transfer = keep(
        edges, key and (tiles.shape, key), lambda: _transfer(edges, filter, tiles, x.dtype)
    )
    return convolve(x, Operands(transfer, coefficients, on_q.embeddings), layout, tiles, budget)


def _transfer(edges: PEdges, filter: PQFilter, tiles: Tiles, dtype: torch.dtype) -> Tensor:
    """The p-embedding in Fourier space, even orders first."""
    assert edges.steps is not None
    outer = filter.embed_p(edges, dtype)
    functions = torch.cat([outer[l].flatten(1) for l in _outer_orders(filter)], dim=1)
    return tiles.transfer(edges.steps, functions, _n_even(filter))


@kept_with_owner
def _tiles(grid: VoxelGrid, margin: tuple[int, int, int], largest: int, others: int) -> Tiles:
    return Tiles.cut(grid.voxels, margin, largest, others)


@dataclass(frozen=True, eq=False)
class _Shells:
    """Radial functions of |q|, in the basis that is cheapest for a gradient table.

    On a few shells that is the functions' values on each of them, and all else is done for a shell
    at a time; else it is the functions themselves.  So too where the q-vectors have derivatives:
    the directions of a shell have one value, but each a slope of its own.

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
        cls,
        space: QSpace,
        outputs: bool,
        values: Tensor,
        most: int,
    ) -> _Shells:
        """On shells if there are no more than `most`, of the `values` (Q, K) of K functions."""
        q = space.q_out if outputs else space.q_in
        number = values.shape[1]
        differentiated = q.requires_grad or needs_twin()
        if number == 1 or differentiated or len(_same_lengths(space, outputs)) > most:
            identity = torch.eye(number, dtype=values.dtype, device=q.device)
            return cls((torch.arange(len(q), device=q.device),), identity[None], values)
        directions = _same_lengths(space, outputs)
        first = torch.stack([some[0] for some in directions])
        factors = torch.ones_like(values[:1, :1]).expand(len(q), 1)
        return cls(directions, values[first][:, None], factors)


@kept_with_owner
def _same_lengths(space: QSpace, outputs: bool) -> tuple[Tensor, ...]:
    """The output or input directions of each length, by ascending length."""
    # In the precision of the graph, or rounding would part a shell.
    q = space.q_out if outputs else space.q_in
    lengths, order = q.detach().norm(dim=-1).sort(stable=True)
    first = lengths.diff(prepend=lengths[:1] - 1) > _SAME_LENGTH * lengths[-1:]
    counts = first.cumsum(0).sub(1).bincount().tolist()
    parts: tuple[Tensor, ...] = order.split(counts)
    return parts


@dataclass(frozen=True, eq=False)
class _OnQ:
    """What depends on the directions: shells, the order of outputs, and q-embeddings.

    Attributes
    ----------
    out, into : _Shells
        Of the output directions and of the input directions.
    order : Tensor of shape (Q_out,), int64
        The output directions, shell by shell.
    runs : tuple of slices
        The shells in this order.
    embeddings : list of Tensors
        For each group of orders and each input shell, see `Operands`.
    """

    out: _Shells
    into: _Shells
    order: Tensor
    runs: tuple[slice, ...]
    embeddings: list[Tensor]

    @classmethod
    def of(
        cls, q: QSpace, filter: PQFilter, groups: tuple[tuple[int, ...], ...], dtype: torch.dtype
    ) -> _OnQ:
        """For groups with these orders of q-harmonics."""
        at_outputs = filter.phi_q_out(q.q_out.to(dtype).norm(dim=-1))
        out = _Shells.of(q, True, at_outputs, 2 * filter.radial[1])
        into = _Shells.of(q, False, filter.radial_q_in(q, dtype), filter.radial[2])
        order = torch.cat(out.directions)
        ends = [0, *accumulate(len(shell) for shell in out.directions)]
        origin = torch.zeros(3, dtype=dtype, device=order.device)
        harmonics = filter.inner_harmonics(
            origin, q.q_out[order].to(dtype), q.q_in[:, None].to(dtype)
        )
        weights, at_out = q.weights[order].to(dtype), out.factors[order]
        embeddings = []
        for orders in groups:
            y = torch.cat([harmonics[l] for l in orders], dim=-1)
            whole = torch.einsum("oi,oj,ik,iob->ijkbo", weights, at_out, into.factors, y)
            embeddings += [whole[shell].flatten(1, 3) for shell in into.directions]
        return cls(out, into, order, tuple(slice(*run) for run in pairwise(ends)), embeddings)


@dataclass(frozen=True)
class _Group:
    """Groups of input channels with the same orders of q-harmonics, evaluated together.

    Attributes
    ----------
    starts : dict from int to int
        Where the components of each of the groups begin.
    index : Tensor of shape (C,), int64
        Positions of the components in the features.
    orders : tuple of int
        Of the q-harmonics.
    """

    starts: dict[int, int]
    index: Tensor
    orders: tuple[int, ...]


@kept_with_owner
def _groups(filter: PQFilter, device: torch.device) -> list[_Group]:
    members: dict[tuple[int, ...], list[int]] = {}
    for g in range(len(filter.channels_in)):
        met = {path.inner for path in filter.paths if filter.channels_of(path)[0] == g}
        if met:
            members.setdefault(tuple(sorted(met)), []).append(g)
    groups = []
    for orders, some in members.items():
        index = [positions(filter.channels_in[g].index, device) for g in some]
        starts = accumulate((len(i) for i in index), initial=0)
        groups.append(_Group(dict(zip(some, starts, strict=False)), torch.cat(index), orders))
    return groups


def _coefficients(
    filter: PQFilter, groups: list[_Group], out: _Shells, into: _Shells
) -> list[Tensor]:
    """Coefficients that join p- and q-embeddings and channels; see `tripq.backends.spectral`."""
    flat = _coefficient_matrix(filter).times(filter.exact_weight)
    shapes = [_shape(filter, group) for group in groups]
    coefficients = []
    for part, shape in zip(flat.split([prod(s) for s in shapes]), shapes, strict=True):
        joined = torch.einsum("sjk,rlm,akmcbn->rsancjlb", out.values, into.values, part.view(shape))
        coefficients += list(joined.flatten(4).contiguous())
    return coefficients


@kept_with_owner
def _coefficient_matrix(filter: PQFilter) -> SparseMatrix:
    """Coefficients from weights: the tensors of all groups, one after another."""
    groups = _groups(filter, torch.device("cpu"))
    sizes = [prod(_shape(filter, group)) for group in groups]
    begins = list(accumulate(sizes, initial=0))
    rows = _starts(_outer_orders(filter))
    k_p, k_out, k_in = filter.radial

    def place(t: Terms) -> Index:
        i, _ = filter.channels_of(t.path)
        ((begin, group),) = ((b, g) for b, g in zip(begins, groups, strict=False) if i in g.starts)
        _, _, _, n_channels, n_inner, n_out = _shape(filter, group)
        within = np.empty(filter.dim_in, np.int64)
        within[[j for g in group.starts for j in filter.channels_in[g].index]] = range(n_channels)
        row = k_p * rows[t.path.outer] + t.k_p * (2 * t.path.outer + 1) + t.m_p
        channel = ((row * k_out + t.k_q_out) * k_in + t.k_q_in) * n_channels + within[t.input]
        inner = _starts(group.orders)[t.path.inner] + t.m_q
        return begin + (channel * n_inner + inner) * n_out + t.output

    return coefficient_matrix(filter, begins[-1], place)


def _shape(filter: PQFilter, group: _Group) -> tuple[int, int, int, int, int, int]:
    """(B_p, K_q_out, K_q_in, channels, components of the inner harmonics, dim_out)."""
    k_p, k_out, k_in = filter.radial
    n_p = k_p * sum(2 * l + 1 for l in _outer_orders(filter))
    n_q = sum(2 * l + 1 for l in group.orders)
    return n_p, k_out, k_in, len(group.index), n_q, filter.dim_out


def _starts(orders: Sequence[int]) -> dict[int, int]:
    """Where the components of each harmonic begin."""
    return dict(zip(orders, accumulate((2 * l + 1 for l in orders), initial=0), strict=False))


def _outer_orders(filter: PQFilter) -> list[int]:
    """Orders of the p-harmonics, first the even ones."""
    return sorted({path.outer for path in filter.paths}, key=lambda l: (l % 2, l))


def _n_even(filter: PQFilter) -> int:
    """How many functions of the p-offset are even."""
    return filter.radial[0] * sum(2 * l + 1 for l in _outer_orders(filter) if l % 2 == 0)


# -- what it takes -------------------------------------------------------------------------------


def obstacle(request: Request) -> str | None:
    """The reason why this back end cannot evaluate a request, or None."""
    if (why := grid_obstacle(request)) is not None:
        return why
    if request.filter.joint:
        return 'a "diff" filter does not factor into p- and q-space'
    if request.differentiated_p:
        return "it needs constant p-offsets in pairs, p and -p, but some require gradients"
    return None


def cost(request: Request) -> Work:
    """Products and sums at each place of the box with its margins."""
    r, f, stages = request, request.filter, request.stages
    joined = stages.embedding * f.dim_in
    # At half as many frequencies as places, but real and imaginary parts; J serves a whole shell.
    products = joined * (r.n_in + 2 * f.dim_out) * r.n_out
    joining = f.radial[1] * stages.outer * joined * f.dim_out / 2
    features = r.n_in * f.dim_in + r.n_out * f.dim_out
    numbers = 4 * features + 2 * r.n_out * joined + 2 * f.radial[1] * joined * f.dim_out
    return Work(r.n_places * (products + joining), r.n_places * numbers, 2 * r.n_places * features)


BACK_END = BackEnd("fourier", obstacle, cost, {"cpu": 35.0, "cuda": 6_000.0}, evaluate)
