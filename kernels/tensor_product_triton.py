"""The operators of `tensor_product` as Triton kernels: one launch for each coupling.

A lane is a channel c and an i, ``lane = c * I + i``; a program has one node and `BLOCK` lanes, and
loops over the edges of its node.  Consecutive programs have the same lanes of different nodes, so
neighbours share gathered data in the cache.

Per edge, the numbers ``sum over m of C[m, m_g, m_j] Y[m]`` are the same for all lanes, so a thread
has several lanes if its registers suffice.

A kernel takes its tables as a tuple of pointers, `Edges` or `EdgesByType`, and is compiled for one
coupling and number of radial functions, the `Constants` C.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from tripq.kernels.tensor_product_twin import (
    Coupling,
    Product,
    coefficients,
    empty_big,
    empty_small,
)
from tripq.kernels.tuples_triton import add_to, load_row

# A coefficient whose square is smaller than this is zero by symmetry.
_ZERO = 1e-24

# Bytes that a thread may keep in registers: half of the 255 registers it has.
_REGISTERS = 512

# Programs that fill any device, for sums over edges and lanes.
_PROGRAMS = 8192


class Edges(NamedTuple):
    """The edges as `expand_kernel` and `contract_kernel` walk them: node by node.

    Attributes
    ----------
    harmonics : Tensor of shape (T, n_harmonics)
        Spherical harmonics of each edge type.
    starts : Tensor of shape (n_nodes + 1,)
        The edges of node n are those from ``starts[n]`` to ``starts[n + 1]``.
    other, types : Tensors of shape (E,)
        The node at the other end, and the edge type.
    """

    harmonics: Tensor
    starts: Tensor
    other: Tensor
    types: Tensor


class EdgesByType(NamedTuple):
    """The edges as `correlate_kernel` walks them: type by type.

    Attributes
    ----------
    harmonics : Tensor of shape (T, n_harmonics)
        Spherical harmonics of each edge type.
    starts : Tensor of shape (T + 1,)
        The edges of type t are those from ``starts[t]`` to ``starts[t + 1]``.
    small_ends, big_ends : Tensors of shape (E,)
        The nodes at both ends.
    """

    harmonics: Tensor
    starts: Tensor
    small_ends: Tensor
    big_ends: Tensor


class Constants(NamedTuple):
    """Constants of a kernel: one coupling, and a number of radial functions.

    Attributes
    ----------
    l : int
        Order of the harmonic.
    n_small, n_big : int
        Components of the small and of the big features.
    n_radial : int
        Radial functions that a program evaluates at once.
    pairs : tuple of int
        Four numbers for each coupled pair of components: the small and the big component, and start
        and end of its terms.
    m : tuple of int
        For each term, the component of the harmonic.
    factors : tuple of float
        For each term, the Clebsch-Gordan coefficient.
    """

    l: int
    n_small: int
    n_big: int
    n_radial: int
    pairs: tuple[int, ...]
    m: tuple[int, ...]
    factors: tuple[float, ...]


@triton.jit
def _load_lanes(pointers, stride, inside, dtype: tl.constexpr, N: tl.constexpr):
    """All components, each a tensor of lanes."""
    values = ()
    for r in tl.static_range(N):
        values = values + (tl.load(pointers + r * stride, mask=inside, other=0.0).to(dtype),)
    return values


@triton.jit
def _store_lanes(pointers, stride, inside, values, N: tl.constexpr):
    for r in tl.static_range(N):
        value = values[r].to(pointers.dtype.element_ty)
        tl.store(pointers + r * stride, value, mask=inside)


@triton.jit
def _angular(y, BEGIN: tl.constexpr, END: tl.constexpr, C: tl.constexpr):
    """The harmonics times the coefficients of one pair of components."""
    value = C.factors[BEGIN] * y[C.m[BEGIN]]
    for i in tl.static_range(BEGIN + 1, END):
        value += C.factors[i] * y[C.m[i]]
    return value


@triton.jit
def _couple(total, x, y, SOURCE: tl.constexpr, C: tl.constexpr):
    """Add the components x of one end (0: small, 1: big), coupled, to those of the other."""
    for p in tl.static_range(len(C.pairs) // 4):
        a = _angular(y, C.pairs[4 * p + 2], C.pairs[4 * p + 3], C)
        total = add_to(total, a * x[C.pairs[4 * p + SOURCE]], C.pairs[4 * p + 1 - SOURCE])
    return total


@triton.jit
def _times_radial(total, radial, x, K: tl.constexpr, N: tl.constexpr):
    """Add the components x, times each radial function, to the K rows of sums."""
    for k in tl.static_range(K):
        for r in tl.static_range(N):
            total = add_to(total, radial[k] * x[r], k * N + r)
    return total


@triton.jit
def _sum_radial(total, radial, x, K: tl.constexpr, N: tl.constexpr):
    """Sum the K rows of components x, each times its radial function."""
    for k in tl.static_range(K):
        for r in tl.static_range(N):
            total = add_to(total, radial[k] * x[k * N + r], r)
    return total


@triton.jit
def _correlate(total, product, x, K: tl.constexpr, N: tl.constexpr):
    """Add the scalar products of the components `product` with each of the K rows x."""
    for k in tl.static_range(K):
        for r in tl.static_range(N):
            total = add_to(total, product[r] * x[k * N + r], k)
    return total


@triton.jit
def _big_lanes(lanes, inner, N_BIG: tl.constexpr):
    """Positions of lanes (c, i) in a block of big features, (K, mul, N_BIG, inner)."""
    width = inner.to(tl.int32)
    return (lanes // width).to(tl.int64) * (N_BIG * inner) + lanes % width


@triton.jit
def _load_rows(
    pointers, n_lanes, inner, inside, dtype: tl.constexpr, K: tl.constexpr, N_BIG: tl.constexpr
):
    """The K rows of big features, each with all components."""
    values = ()
    for k in tl.static_range(K):
        row = pointers + k * (N_BIG * n_lanes)
        values = values + _load_lanes(row, inner, inside, dtype, N_BIG)
    return values


@triton.jit
def _node_and_lanes(n_nodes, n_lanes, BLOCK: tl.constexpr):
    """The node of a program, its lanes, and which of these exist."""
    node = tl.program_id(0) % n_nodes
    lanes = (tl.program_id(0) // n_nodes).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    return node, lanes, lanes < n_lanes


@triton.jit
def _load_harmonics(edges, t, n_harmonics, DTYPE: tl.constexpr, C: tl.constexpr):
    """The harmonic of an edge type, numbers that all lanes share."""
    return load_row(edges.harmonics + t * n_harmonics + C.l * C.l, 2 * C.l + 1, DTYPE)


@triton.jit(do_not_specialize=["first"])
def expand_kernel(
    small,  # (N, N_SMALL, n_lanes)
    big,  # (n_nodes, n_rows, N_BIG, inner)
    phi,  # (T, K)
    edges,  # Edges
    n_nodes: tl.int64,
    n_lanes: tl.int64,
    inner: tl.int64,
    n_rows: tl.int64,
    first: tl.int64,
    n_harmonics: tl.int64,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One node's block of rows, for some lanes."""
    N_SMALL: tl.constexpr = C.n_small
    N_BIG: tl.constexpr = C.n_big
    K: tl.constexpr = C.n_radial
    node, lanes, inside = _node_and_lanes(n_nodes, n_lanes, BLOCK)
    dtype: tl.constexpr = phi.dtype.element_ty
    zero = tl.zeros((BLOCK,), dtype)
    total = (zero,) * (K * N_BIG)
    for e in range(tl.load(edges.starts + node), tl.load(edges.starts + node + 1)):
        source = small + tl.load(edges.other + e) * (N_SMALL * n_lanes) + lanes
        x = _load_lanes(source, n_lanes, inside, dtype, N_SMALL)  # (BLOCK,) each
        t = tl.load(edges.types + e)
        y = _load_harmonics(edges, t, n_harmonics, dtype, C)
        radial = load_row(phi + t * K, K, dtype)
        product = _couple((zero,) * N_BIG, x, y, 0, C)
        total = _times_radial(total, radial, product, K, N_BIG)
    target = big + (node * n_rows + first) * (N_BIG * inner) + _big_lanes(lanes, inner, N_BIG)
    for k in tl.static_range(K):
        row = target + k * (N_BIG * n_lanes)
        _store_lanes(row, inner, inside, total[k * N_BIG : (k + 1) * N_BIG], N_BIG)


@triton.jit(do_not_specialize=["first"])
def contract_kernel(
    small,  # (n_nodes, N_SMALL, n_lanes)
    big,  # (N, n_rows, N_BIG, inner)
    phi,  # (T, K)
    edges,  # Edges
    n_nodes: tl.int64,
    n_lanes: tl.int64,
    inner: tl.int64,
    n_rows: tl.int64,
    first: tl.int64,
    n_harmonics: tl.int64,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
):
    """One node's components, for some lanes; `ADD`: add to the stored values."""
    N_SMALL: tl.constexpr = C.n_small
    N_BIG: tl.constexpr = C.n_big
    K: tl.constexpr = C.n_radial
    node, lanes, inside = _node_and_lanes(n_nodes, n_lanes, BLOCK)
    dtype: tl.constexpr = phi.dtype.element_ty
    target = small + node * (N_SMALL * n_lanes) + lanes
    if ADD:
        total = _load_lanes(target, n_lanes, inside, dtype, N_SMALL)
    else:
        total = (tl.zeros((BLOCK,), dtype),) * N_SMALL
    block = big + first * (N_BIG * inner) + _big_lanes(lanes, inner, N_BIG)
    zero = tl.zeros((BLOCK,), dtype)
    for e in range(tl.load(edges.starts + node), tl.load(edges.starts + node + 1)):
        source = block + tl.load(edges.other + e) * (n_rows * N_BIG * inner)
        rows = _load_rows(source, n_lanes, inner, inside, dtype, K, N_BIG)  # (BLOCK,) each
        t = tl.load(edges.types + e)
        y = _load_harmonics(edges, t, n_harmonics, dtype, C)
        radial = load_row(phi + t * K, K, dtype)
        x = _sum_radial((zero,) * N_BIG, radial, rows, K, N_BIG)
        total = _couple(total, x, y, 1, C)
    _store_lanes(target, n_lanes, inside, total, N_SMALL)


@triton.jit(do_not_specialize=["first"])
def correlate_kernel(
    small,  # (N, N_SMALL, n_lanes)
    big,  # (N', n_rows, N_BIG, inner)
    partial,  # (T, edge_splits, lane_splits, K)
    edges,  # EdgesByType
    edge_splits: tl.int64,
    lane_splits: tl.int64,
    n_lanes: tl.int64,
    inner: tl.int64,
    n_rows: tl.int64,
    first: tl.int64,
    n_harmonics: tl.int64,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One type's share of sums over edges and lanes."""
    N_SMALL: tl.constexpr = C.n_small
    N_BIG: tl.constexpr = C.n_big
    K: tl.constexpr = C.n_radial
    lane_split = tl.program_id(0) % lane_splits
    edge_split = tl.program_id(0) // lane_splits % edge_splits
    t = tl.program_id(0) // lane_splits // edge_splits
    begin = tl.load(edges.starts + t) + edge_split
    end = tl.load(edges.starts + t + 1)
    dtype: tl.constexpr = edges.harmonics.dtype.element_ty
    zero = tl.zeros((BLOCK,), dtype)
    y = _load_harmonics(edges, t, n_harmonics, dtype, C)
    total = (zero,) * K
    for i in range(lane_split, tl.cdiv(n_lanes, BLOCK), lane_splits):
        lanes = (i * BLOCK + tl.arange(0, BLOCK)).to(tl.int32)
        inside = lanes < n_lanes
        block = big + first * (N_BIG * inner) + _big_lanes(lanes, inner, N_BIG)
        for e in range(begin, end, edge_splits):
            source = small + tl.load(edges.small_ends + e) * (N_SMALL * n_lanes) + lanes
            x = _load_lanes(source, n_lanes, inside, dtype, N_SMALL)  # (BLOCK,) each
            source = block + tl.load(edges.big_ends + e) * (n_rows * N_BIG * inner)
            rows = _load_rows(source, n_lanes, inner, inside, dtype, K, N_BIG)
            product = _couple((zero,) * N_BIG, x, y, 0, C)
            total = _correlate(total, product, rows, K, N_BIG)
    target = partial + tl.program_id(0).to(tl.int64) * K
    for k in tl.static_range(K):
        tl.store(target + k, tl.sum(total[k]))


def expand(
    small: Sequence[Tensor], phi: Tensor, product: Product, orders: Sequence[int]
) -> list[Tensor]:
    """As `tensor_product.expand_twin`."""
    big = empty_big(small, phi, product, orders)
    small = _contiguous(small)
    edges = Edges(*_contiguous([product.harmonics, *product.edges[:3]]))
    n_nodes = big[0].shape[0]
    for c, radial, sizes in _pieces(small, big, product, phi.shape[1]):
        features = small[c.small], big[c.big]
        _launch_on_nodes(expand_kernel, features, phi[:, radial], edges, n_nodes, **sizes)
    return big


def contract(
    big: Sequence[Tensor], phi: Tensor, product: Product, groups: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """As `tensor_product.contract_twin`."""
    small = [torch.empty_like(x, dtype=phi.dtype) for x in empty_small(big, product, groups)]
    big = _contiguous(big)
    edges = Edges(*_contiguous([product.harmonics, *product.edges[3:6]]))
    n_nodes = small[0].shape[0]
    written = set()
    for c, radial, sizes in _pieces(small, big, product, phi.shape[1]):
        features, some = (small[c.small], big[c.big]), phi[:, radial]
        add = c.small in written
        _launch_on_nodes(contract_kernel, features, some, edges, n_nodes, **sizes, ADD=add)
        written.add(c.small)
    for g in set(range(len(small))) - written:
        small[g].zero_()
    return [x.to(big[0].dtype) for x in small]


def correlate(
    small: Sequence[Tensor], big: Sequence[Tensor], product: Product, n_radial: int
) -> Tensor:
    """As `tensor_product.correlate_twin`."""
    small, big = _contiguous(small), _contiguous(big)
    edges = EdgesByType(*_contiguous([product.harmonics, *product.edges[6:]]))
    n_types, n_edges = len(product.harmonics), len(product.edges[7])
    total = product.harmonics.new_zeros(n_types, n_radial)
    if n_edges == 0:
        return total
    edges_of_type = triton.cdiv(n_edges, n_types)
    for c, radial, sizes in _pieces(small, big, product, n_radial):
        # Many types with few edges and many lanes in the q-stage, the reverse in the p-stage.
        n_blocks = triton.cdiv(sizes["n_lanes"], sizes["BLOCK"])
        lane_splits = min(n_blocks, triton.cdiv(_PROGRAMS, n_types))
        edge_splits = min(edges_of_type, triton.cdiv(_PROGRAMS, n_types * lane_splits))
        n_k = radial.stop - radial.start
        partial = total.new_empty(n_types, edge_splits * lane_splits, n_k)
        features = small[c.small], big[c.big], partial
        splits = edge_splits, lane_splits
        _launch(correlate_kernel, partial[..., 0].numel(), *features, edges, *splits, **sizes)
        total[:, radial] += partial.sum(1)
    return total


def _pieces(
    small: Sequence[Tensor], big: Sequence[Tensor], product: Product, n_radial: int
) -> Iterator[tuple[Coupling, slice, dict[str, Any]]]:
    """Every coupling with as many radial functions as fit at once, and the sizes of a launch."""
    size = product.harmonics.element_size()
    for c in product.couplings:
        _, n_small, mul, inner = small[c.small].shape
        _, n_rows, n_big, _ = big[c.big].shape
        if mul * inner >= 2**31:
            raise ValueError(f"{mul} channels times {inner} are 2^31 lanes or more")
        if mul * inner == 0:
            continue
        # A lane has components of both ends and, for each radial function, a row and a sum.
        step = max(1, (_REGISTERS // size - n_small - n_big) // (n_big + 1))
        for k in range(0, n_radial, step):
            n_k = min(step, n_radial - k)
            sizes = {
                "n_lanes": mul * inner,
                "inner": inner,
                "n_rows": n_rows,
                "first": c.first + k * mul,
                "n_harmonics": product.harmonics.shape[1],
                "C": constants(c.l, n_small, n_big, n_k, product.to_small),
                **tile(mul * inner, (n_small + n_big + n_k * (n_big + 1)) * size),
            }
            yield c, slice(k, k + n_k), sizes


def tile(n_lanes: int, kept: int) -> dict[str, int]:
    """Lanes and warps of a program, where a thread keeps `kept` bytes for each of its lanes."""
    per_thread = 4 if 4 * kept <= _REGISTERS else 2 if 2 * kept <= _REGISTERS else 1
    # The size that pads the lanes least, the largest of these.
    sizes = (128 * per_thread, 64 * per_thread, 32 * per_thread)
    block = min(sizes, key=lambda size: triton.cdiv(n_lanes, size) * size)
    block = min(block, max(triton.next_power_of_2(n_lanes), 32))
    return {"BLOCK": block, "num_warps": max(1, block // (32 * per_thread))}


@cache
def constants(l: int, n_small: int, n_big: int, n_radial: int, to_small: bool) -> Constants:
    """Compile-time constants of a kernel."""
    c = coefficients(l, n_small // 2, n_big // 2, to_small)
    pairs: list[int] = []
    terms: list[tuple[int, float]] = []
    for g, j in np.ndindex(n_small, n_big):
        coupled = [(m, float(value)) for m, value in enumerate(c[:, g, j]) if value**2 > _ZERO]
        if coupled:
            pairs += [g, j, len(terms), len(terms) + len(coupled)]
            terms += coupled
    m, values = zip(*terms, strict=True)
    return Constants(l, n_small, n_big, n_radial, tuple(pairs), m, values)


def _launch_on_nodes(
    kernel: Any,
    features: tuple[Tensor, Tensor],
    phi: Tensor,
    edges: Edges,
    n_nodes: int,
    **sizes: Any,
) -> None:
    """A program for each node and block of lanes."""
    n_programs = n_nodes * triton.cdiv(sizes["n_lanes"], sizes["BLOCK"])
    _launch(kernel, n_programs, *features, phi.contiguous(), edges, n_nodes, **sizes)


def _launch(kernel: Any, n_programs: int, *args: Any, **sizes: Any) -> None:
    if n_programs:
        with torch.cuda.device_of(args[0]):
            kernel[(n_programs,)](*args, **sizes, enable_fp_fusion=True)


def _contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [x.contiguous() for x in tensors]
