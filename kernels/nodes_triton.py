"""The sums of `tripq.kernels.nodes` as Triton kernels.

One warp loops over the edges of one node for one channel, an edge in each lane, with partial
results in registers; these are added at the end.  Lanes behind the last edge repeat it with weight
0.  Each kernel is compiled for one coupling, with its polynomials and Clebsch-Gordan coefficients
as constants, C.  Geometry and edges are tuples of pointers: `Geometry` and `Edges`.

* `_sum`: the edges of an output node; a slice of the radial functions of p at a time, as many as
  fit into the registers.
* `_to_features`: the edges of an input node, backwards through both couplings.
* `_to_radial`: the edges of an edge type, or of an input node, in splits whose partial sums torch
  adds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tripq.kernels.nodes_arguments import Constants, Geometry
from tripq.kernels.nodes_constants import compiled
from tripq.kernels.nodes_parts_triton import (
    _add_product,
    _coupled,
    _harmonics,
    _lanes,
    _message,
    _scalar_product,
)
from tripq.kernels.tuples_triton import add_to, load_row

# Edges that a program holds at a time: the lanes of its only warp.
BLOCK = 32

# 32-bit registers of a thread for results, leaving the others for what an edge takes.
_ACCUMULATORS = 96

# Edges of an edge type or an input node that one program correlates.
_SPLIT = 4096

# -- kernels -------------------------------------------------------------------------------------


class Edges(NamedTuple):
    """The edges as a kernel walks them: of row n those from ``starts[n]`` to ``starts[n + 1]``.

    Attributes
    ----------
    dst, src, types, weight : Tensors of shape (E,)
        As in `NodeCsr`.
    starts : Tensor of shape (R + 1,)
        For R output nodes, input nodes or edge types.
    order : Tensor of shape (E,), or None
        The edges, listed by these; None for output nodes, by which they are sorted.
    """

    dst: Tensor
    src: Tensor
    types: Tensor
    weight: Tensor
    starts: Tensor
    order: Tensor | None


@triton.jit
def _sum(
    x,  # (N_in, mul, 2 l_in + 1)
    phi_p,  # (T, K_P)
    phi_q,  # (N_in, K_Q)
    geometry,
    edges,
    out,  # (N_out, mul, K_P, K_Q, 2 l_out + 1)
    mul,
    C: tl.constexpr,
    K_P: tl.constexpr,
    K_Q: tl.constexpr,
    SLICE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    DTYPE: tl.constexpr = edges.weight.dtype.element_ty
    N_OUT: tl.constexpr = 2 * C.l_out + 1
    program = tl.program_id(0).to(tl.int64)
    first_p = program % (K_P // SLICE) * SLICE
    row = program // (K_P // SLICE)  # of (N_out, mul)
    node, channel = row // mul, row % mul
    begin, end = tl.load(edges.starts + node), tl.load(edges.starts + node + 1)
    q_out = load_row(geometry.q_out + 3 * node, 3, DTYPE)
    zero = tl.zeros((BLOCK,), DTYPE)
    total = (zero,) * (SLICE * K_Q * N_OUT)
    for first in range(begin, end, BLOCK):
        e, inside = _lanes(first, end, BLOCK)
        s = tl.load(edges.src + e)
        t = tl.load(edges.types + e)
        x_row = x + (s * mul + channel) * (2 * C.l_in + 1)
        q_in = load_row(geometry.q_in + 3 * s, 3, DTYPE)
        message = _message(x_row, geometry, t, q_out, q_in, zero, DTYPE, C)
        w = tl.where(inside, tl.load(edges.weight + e), zero)
        a = load_row(phi_p + t * K_P + first_p, SLICE, DTYPE)
        b = load_row(phi_q + s * K_Q, K_Q, DTYPE)
        for i in tl.static_range(SLICE):
            for j in tl.static_range(K_Q):
                total = _add_product(total, w * a[i] * b[j], message, (i * K_Q + j) * N_OUT, N_OUT)
    out_row = out + (row * K_P + first_p) * (K_Q * N_OUT)
    for i in tl.static_range(SLICE * K_Q * N_OUT):
        tl.store(out_row + i, tl.sum(total[i], axis=0))


@triton.jit
def _to_features(
    grad,  # (N_out, mul, K_P, K_Q, 2 l_out + 1)
    phi_p,  # (T, K_P)
    phi_q,  # (N_in, K_Q)
    geometry,
    edges,
    out,  # (N_in, mul, 2 l_in + 1)
    mul,
    C: tl.constexpr,
    K_P: tl.constexpr,
    K_Q: tl.constexpr,
    BLOCK: tl.constexpr,
):
    DTYPE: tl.constexpr = edges.weight.dtype.element_ty
    N_IN: tl.constexpr = 2 * C.l_in + 1
    N_OUT: tl.constexpr = 2 * C.l_out + 1
    row = tl.program_id(0).to(tl.int64)  # of (N_in, mul)
    node, channel = row // mul, row % mul
    begin, end = tl.load(edges.starts + node), tl.load(edges.starts + node + 1)
    q_in = load_row(geometry.q_in + 3 * node, 3, DTYPE)
    zero = tl.zeros((BLOCK,), DTYPE)
    total = (zero,) * N_IN
    for first in range(begin, end, BLOCK):
        position, inside = _lanes(first, end, BLOCK)
        e = tl.load(edges.order + position)
        n = tl.load(edges.dst + e)
        t = tl.load(edges.types + e)
        to_out = (zero,) * N_OUT
        # Not unrolled: Triton's compile time grows with the square of the number of loads.
        for k in range(K_P * K_Q):
            a = tl.load(phi_p + t * K_P + k // K_Q).to(DTYPE)
            b = tl.load(phi_q + node * K_Q + k % K_Q).to(DTYPE)
            g = load_row(grad + ((n * mul + channel) * (K_P * K_Q) + k) * N_OUT, N_OUT, DTYPE)
            to_out = _add_product(to_out, a * b, g, 0, N_OUT)
        y_p = load_row(geometry.harmonics_p + t * (2 * C.l_p + 1), 2 * C.l_p + 1, DTYPE)
        q_out = load_row(geometry.q_out + 3 * n, 3, DTYPE)
        y_q = _harmonics(geometry, t, q_out, q_in, zero, DTYPE, C)
        to_1 = _coupled(y_p, to_out, zero, C.outer, C.outer_factors, 0, 2, 1, 2 * C.l_1 + 1)
        to_in = _coupled(y_q, to_1, zero, C.inner, C.inner_factors, 0, 2, 1, N_IN)
        w = tl.where(inside, tl.load(edges.weight + e), zero)
        total = _add_product(total, w, to_in, 0, N_IN)
    for i in tl.static_range(N_IN):
        tl.store(out + row * N_IN + i, tl.sum(total[i], axis=0))


@triton.jit
def _to_radial(
    grad,  # (N_out, mul, K_P, K_Q, 2 l_out + 1)
    x,  # (N_in, mul, 2 l_in + 1)
    other,  # (N_in, K_Q) if the gradient is that of phi_p, else (T, K_P)
    geometry,
    edges,
    out,  # (R, splits, mul, K)
    mul,
    splits,
    C: tl.constexpr,
    K_P: tl.constexpr,
    K_Q: tl.constexpr,
    OF_P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    DTYPE: tl.constexpr = edges.weight.dtype.element_ty
    N_OUT: tl.constexpr = 2 * C.l_out + 1
    K: tl.constexpr = K_P if OF_P else K_Q
    K_OTHER: tl.constexpr = K_Q if OF_P else K_P
    # Steps in (K_P, K_Q) along either.
    STEP: tl.constexpr = K_Q if OF_P else 1
    STEP_OTHER: tl.constexpr = 1 if OF_P else K_Q
    program = tl.program_id(0).to(tl.int64)
    channel, split, row = program % mul, program // mul % splits, program // mul // splits
    begin, end = tl.load(edges.starts + row), tl.load(edges.starts + row + 1)
    share = tl.cdiv(end - begin, splits)
    begin += split * share
    end = tl.minimum(begin + share, end)
    zero = tl.zeros((BLOCK,), DTYPE)
    total = (zero,) * K
    for first in range(begin, end, BLOCK):
        position, inside = _lanes(first, end, BLOCK)
        e = tl.load(edges.order + position)
        n = tl.load(edges.dst + e)
        s = tl.load(edges.src + e)
        t = tl.load(edges.types + e)
        x_row = x + (s * mul + channel) * (2 * C.l_in + 1)
        q_out = load_row(geometry.q_out + 3 * n, 3, DTYPE)
        q_in = load_row(geometry.q_in + 3 * s, 3, DTYPE)
        message = _message(x_row, geometry, t, q_out, q_in, zero, DTYPE, C)
        w = tl.where(inside, tl.load(edges.weight + e), zero)
        other_row = other + (s if OF_P else t) * K_OTHER
        for i in tl.static_range(K):
            for j in range(K_OTHER):
                k = i * STEP + j * STEP_OTHER
                g = load_row(grad + ((n * mul + channel) * (K_P * K_Q) + k) * N_OUT, N_OUT, DTYPE)
                c = w * tl.load(other_row + j).to(DTYPE)
                total = add_to(total, c * _scalar_product(message, g, zero, N_OUT), i)
    for i in tl.static_range(K):
        tl.store(out + program * K + i, tl.sum(total[i], axis=0))


# -- launches ------------------------------------------------------------------------------------


def sum_over_edges(x: Tensor, phi_p: Tensor, phi_q: Tensor, fixed: Constants) -> Tensor:
    """As `tripq.kernels.nodes_twin.sum_over_edges`."""
    edges = fixed.edges
    shape = n_nodes, mul, k_p, k_q, n_out = fixed.shape(x, phi_p, phi_q)
    out = torch.empty(shape, dtype=x.dtype, device=x.device)
    held = slice_of(k_p, k_q * n_out * edges.weight.element_size() // 4)
    _launch(
        _sum,
        n_nodes * mul * (k_p // held),
        (x, phi_p, phi_q),
        fixed,
        (edges.output_starts, None),
        (out, mul),
        K_P=k_p,
        K_Q=k_q,
        SLICE=held,
    )
    return out


def gradient_for_features(grad: Tensor, phi_p: Tensor, phi_q: Tensor, fixed: Constants) -> Tensor:
    """As `tripq.kernels.nodes_twin.gradient_for_features`."""
    edges = fixed.edges
    n_nodes, mul = len(phi_q), grad.shape[1]
    shape = n_nodes, mul, 2 * fixed.coupling.l_in + 1
    out = torch.empty(shape, dtype=grad.dtype, device=grad.device)
    _launch(
        _to_features,
        n_nodes * mul,
        (grad, phi_p, phi_q),
        fixed,
        (edges.input_starts, edges.input_order),
        (out, mul),
        K_P=phi_p.shape[1],
        K_Q=phi_q.shape[1],
    )
    return out


def gradient_for_radial(
    grad: Tensor, x: Tensor, phi_p: Tensor, phi_q: Tensor, fixed: Constants, of_p: bool
) -> Tensor:
    """As `tripq.kernels.nodes_twin.gradient_for_radial`."""
    edges = fixed.edges
    wanted, other = (phi_p, phi_q) if of_p else (phi_q, phi_p)
    starts, order = (
        (edges.type_starts, edges.type_order) if of_p else (edges.input_starts, edges.input_order)
    )
    (n_rows, k), mul = wanted.shape, x.shape[1]
    splits = triton.cdiv(max(len(edges.dst), 1), _SPLIT * max(n_rows, 1))
    partial = torch.empty(
        n_rows, splits, mul, k, dtype=edges.weight.dtype, device=edges.weight.device
    )
    _launch(
        _to_radial,
        n_rows * splits * mul,
        (grad, x, other),
        fixed,
        (starts, order),
        (partial, mul, splits),
        K_P=phi_p.shape[1],
        K_Q=phi_q.shape[1],
        OF_P=of_p,
    )
    return partial.sum(dim=(1, 2)).to(grad.dtype)


def _launch(
    kernel: Any,
    programs: int,
    inputs: tuple[Tensor, ...],
    fixed: Constants,
    listed: tuple[Tensor, Tensor | None],
    results: tuple[Any, ...],
    **sizes: Any,
) -> None:
    """One program a warp; inputs and geometry may have strides."""
    if programs == 0:
        return
    edges = fixed.edges
    with torch.cuda.device_of(inputs[0]):
        kernel[(programs,)](
            *(t.contiguous() for t in inputs),
            Geometry(*(t.contiguous() for t in fixed.geometry)),
            Edges(edges.dst, edges.src, edges.type, edges.weight, *listed),
            *results,
            C=compiled(fixed.coupling),
            **sizes,
            BLOCK=BLOCK,
            num_warps=1,
            enable_fp_fusion=True,
        )


def slice_of(k_p: int, registers: int) -> int:
    """Number of radial functions of p at a time, given the registers for one."""
    divisors = (n for n in range(k_p, 1, -1) if k_p % n == 0)
    return next((n for n in divisors if n * registers <= _ACCUMULATORS), 1)
