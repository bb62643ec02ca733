r"""Tensor products with spherical harmonics, summed over the edges of a graph, for many lanes.

The two ends of an edge have two kinds of features (i numbers lanes that share all geometry):

* *small* ones, :math:`f_g` of shape (N, 2 l_g + 1, mul_g, I), one tensor for each group of
  channels;
* *big* ones, :math:`b_j` of shape (N, R_j, 2 l_j + 1, I), one tensor for each order; their rows are
  blocks of K mul_g rows, with radial function k of channel c in row ``first + k * mul_g + c``.

A `Coupling` joins group g to one block of tensor j through the harmonic of order l.  With harmonics
Y and radial functions :math:`\varphi` of every edge type t, this module computes the three
derivatives of one number, the sum over edges e and couplings of

.. math::
    \sum_{k c i} \varphi_{t k} \sum_{m\, m_g\, m_j} C_{m\, m_g\, m_j}\, Y_{t l m}\,
    f_g[s, m_g, c, i]\; b_j[d, first + k\, mul_g + c, m_j, i],

where s is the end with the small features, d the end with the big ones, and C couples to one of the
two orders.  The derivative by b is `expand`, by f `contract`, and by :math:`\varphi` the gradient
of learnable radial functions.  The derivatives of each are the two others, so all can be
differentiated any number of times.  The harmonics are constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from tripq.domain.adjacency import Adjacency, Csr
from tripq.kernels.launch import accumulation_dtype
from tripq.kernels.operators import operator
from tripq.kernels.tensor_product_twin import (
    Coupling,
    Product,
    contract_twin,
    correlate_twin,
    empty_big,
    empty_small,
    expand_twin,
    rows_of,
    small_shape,
)


def expand(
    small: Sequence[Tensor],
    phi: Tensor,
    harmonics: Tensor,
    edges: Adjacency,
    couplings: Sequence[Coupling],
    orders: tuple[int, ...],
) -> list[Tensor]:
    r"""Couple small features with harmonics and radial functions, summed over edges.

    .. math::
        b_j[n, first + k\, mul_g + c, m_j, i] = \sum_{e \to n} \varphi_{t_e k} \sum_{m\, m_g}
        C(l_j; l\, l_g)_{m\, m_g\, m_j}\, Y_{t_e l m}\, f_g[src_e, m_g, c, i]

    Parameters
    ----------
    small : sequence of Tensors of shape (N_in, 2 l_g + 1, mul_g, I)
        At least one.  Their type is that of the result.
    phi : Tensor of shape (T, K)
        Radial functions of each edge type.
    harmonics : Tensor of shape (T, S)
        Spherical harmonics of each edge type, order l in columns l^2 to (l + 1)^2 - 1.
    edges : Adjacency
    couplings : sequence of Coupling
        Their blocks cover every row exactly once.
    orders : tuple of int
        The order l_j of each big tensor.

    Returns
    -------
    list of Tensors of shape (N_out, R_j, 2 l_j + 1, I)
    """
    small, phi, harmonics = _typed(small, phi, harmonics)
    groups = [((x.shape[1] - 1) // 2, x.shape[2]) for x in small]
    n_out, lanes = len(edges.by_output.starts) - 1, small[0].shape[3]
    _check(phi, harmonics, edges, couplings, groups, orders)
    _check_shapes(small, [small_shape(len(edges.by_input.starts) - 1, lanes, g) for g in groups])
    if not couplings:
        return [small[0].new_zeros(n_out, 0, 2 * l + 1, lanes) for l in orders]
    lists = [*_tensors(edges.by_output), *_tensors(edges.by_input), *edges.by_type]
    big: list[Tensor] = _expand(small, phi, harmonics, lists, _flat(couplings), list(orders), False)
    return big


def contract(
    big: Sequence[Tensor],
    phi: Tensor,
    harmonics: Tensor,
    edges: Adjacency,
    couplings: Sequence[Coupling],
    outputs: tuple[tuple[int, int], ...],
) -> list[Tensor]:
    r"""Couple big features with harmonics and radial functions, summed over edges and rows.

    .. math::
        f_g[n, m_g, c, i] = \sum_{e \to n} \sum_{couplings\ of\ g}\ \sum_{k\, m\, m_j}
        \varphi_{t_e k}\, C(l_g; l\, l_j)_{m\, m_j\, m_g}\, Y_{t_e l m}\,
        b_j[src_e, first + k\, mul_g + c, m_j, i]

    Parameters
    ----------
    big : sequence of Tensors of shape (N_in, R_j, 2 l_j + 1, I)
        At least one.  Their type is that of the result.
    phi, harmonics, edges, couplings
        As in `expand`; the blocks of the couplings cover every row exactly once.
    outputs : tuple of (l_g, mul_g)
        Order and number of channels of each small tensor.

    Returns
    -------
    list of Tensors of shape (N_out, 2 l_g + 1, mul_g, I)
    """
    big, phi, harmonics = _typed(big, phi, harmonics)
    orders = [(x.shape[2] - 1) // 2 for x in big]
    n_out, n_in = (len(csr.starts) - 1 for csr in (edges.by_output, edges.by_input))
    lanes = big[0].shape[3]
    _check(phi, harmonics, edges, couplings, outputs, orders)
    rows = rows_of(couplings, outputs, len(orders), phi.shape[1])
    _check_shapes(big, [(n_in, r, 2 * l + 1, lanes) for r, l in zip(rows, orders, strict=True)])
    if not couplings:
        return [big[0].new_zeros(small_shape(n_out, lanes, group)) for group in outputs]
    by_type, inputs, outs = edges.by_type
    lists = [*_tensors(edges.by_input), *_tensors(edges.by_output), by_type, outs, inputs]
    flat_outputs = [n for group in outputs for n in group]
    small: list[Tensor] = _contract(
        big, phi, harmonics, lists, _flat(couplings), flat_outputs, True
    )
    return small


# -- the three operators -------------------------------------------------------------------------
#
# Their edges are the nine tensors of `Product`.


def _save_expand(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    small, phi, harmonics, edges, ctx.couplings, _, ctx.to_small = inputs
    ctx.groups = [n for x in small for n in ((x.shape[1] - 1) // 2, x.shape[2])]
    ctx.needs_phi = phi.requires_grad
    # Features are the bulk of the memory, and needed for the gradient of phi alone.
    ctx.save_for_backward(phi, harmonics, *edges, *(small if ctx.needs_phi else ()))


def _backward_expand(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    phi, harmonics, *tensors = ctx.saved_tensors
    edges, small = tensors[:9], tensors[9:]
    grad_phi = None
    grad_small: Sequence[Tensor | None] = [None] * (len(ctx.groups) // 2)
    if any(ctx.needs_input_grad[0]):
        grad_small = _contract(
            grads, phi, harmonics, edges, ctx.couplings, ctx.groups, ctx.to_small
        )
    if ctx.needs_input_grad[1]:
        grad_phi = _correlate(
            small, grads, harmonics, edges, ctx.couplings, phi.shape[1], ctx.to_small
        )
    return grad_small, grad_phi, None, [None] * 9, None, None, None


def _save_contract(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    big, phi, harmonics, edges, ctx.couplings, _, ctx.to_small = inputs
    ctx.orders = [(x.shape[2] - 1) // 2 for x in big]
    ctx.needs_phi = phi.requires_grad
    ctx.save_for_backward(phi, harmonics, *edges, *(big if ctx.needs_phi else ()))


def _backward_contract(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    phi, harmonics, *tensors = ctx.saved_tensors
    edges, big = tensors[:9], tensors[9:]
    grad_phi = None
    grad_big: Sequence[Tensor | None] = [None] * len(ctx.orders)
    if any(ctx.needs_input_grad[0]):
        grad_big = _expand(grads, phi, harmonics, edges, ctx.couplings, ctx.orders, ctx.to_small)
    if ctx.needs_input_grad[1]:
        grad_phi = _correlate(
            grads, big, harmonics, edges, ctx.couplings, phi.shape[1], ctx.to_small
        )
    return grad_big, grad_phi, None, [None] * 9, None, None, None


def _save_correlate(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    small, big, harmonics, edges, ctx.couplings, _, ctx.to_small = inputs
    ctx.n_small = len(small)
    ctx.save_for_backward(harmonics, *edges, *small, *big)


def _backward_correlate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    harmonics, *tensors = ctx.saved_tensors
    edges, features = tensors[:9], tensors[9:]
    small, big = features[: ctx.n_small], features[ctx.n_small :]
    groups = [n for x in small for n in ((x.shape[1] - 1) // 2, x.shape[2])]
    orders = [(x.shape[2] - 1) // 2 for x in big]
    grad_small: Sequence[Tensor | None] = [None] * len(small)
    grad_big: Sequence[Tensor | None] = [None] * len(big)
    if any(ctx.needs_input_grad[0]):
        grad_small = _contract(big, grad, harmonics, edges, ctx.couplings, groups, ctx.to_small)
    if any(ctx.needs_input_grad[1]):
        grad_big = _expand(small, grad, harmonics, edges, ctx.couplings, orders, ctx.to_small)
    return grad_small, grad_big, None, [None] * 9, None, None, None


def _read(
    first: Sequence[Tensor],
    second: Any,
    harmonics: Tensor,
    edges: Sequence[Tensor],
    couplings: Sequence[int],
    last: Any,
    to_small: bool,
) -> tuple[Any, ...]:
    """The arguments of an operator as those of its twin."""
    return first, second, Product(harmonics, edges, _unflat(couplings), to_small), last


def _read_groups(*args: Any) -> tuple[Any, ...]:
    *others, groups = _read(*args)
    return *others, _pairs(groups)


_SHARED = "Tensor harmonics, Tensor[] edges, SymInt[] couplings"

_expand = operator(
    "expand",
    f"(Tensor[] small, Tensor phi, {_SHARED}, SymInt[] orders, bool to_small) -> Tensor[]",
    empty_big,
    twin=expand_twin,
    kernel="tensor_product_triton.expand",
    read=_read,
    keep=_save_expand,
    differentiate=_backward_expand,
)
_contract = operator(
    "contract",
    f"(Tensor[] big, Tensor phi, {_SHARED}, SymInt[] groups, bool to_small) -> Tensor[]",
    lambda big, _, product, groups: empty_small(big, product, groups),
    twin=contract_twin,
    kernel="tensor_product_triton.contract",
    read=_read_groups,
    keep=_save_contract,
    differentiate=_backward_contract,
)
_correlate = operator(
    "correlate",
    f"(Tensor[] small, Tensor[] big, {_SHARED}, SymInt n_radial, bool to_small) -> Tensor",
    lambda _, __, product, n: product.harmonics.new_empty(product.harmonics.shape[0], n),
    twin=correlate_twin,
    kernel="tensor_product_triton.correlate",
    read=_read,
    keep=_save_correlate,
    differentiate=_backward_correlate,
)


# -- arguments -----------------------------------------------------------------------------------


def _typed(
    features: Sequence[Tensor], phi: Tensor, harmonics: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Features of one type, and tables of the type of accumulated sums."""
    if harmonics.requires_grad:
        raise ValueError("harmonics are constants of the geometry: they must not require grad")
    dtype = reduce(torch.promote_types, (x.dtype for x in features))
    table = accumulation_dtype(dtype)
    return [x.to(dtype) for x in features], phi.to(table), harmonics.to(table)


def _check(
    phi: Tensor,
    harmonics: Tensor,
    edges: Adjacency,
    couplings: Sequence[Coupling],
    groups: Sequence[tuple[int, int]],
    orders: Sequence[int],
) -> None:
    """Raise if a kernel would read or write past the end of a tensor."""
    n_types = len(edges.by_type[0]) - 1
    if len(phi) != n_types or len(harmonics) != n_types:
        raise ValueError(
            f"{n_types} edge types, but {len(phi)} rows of phi and {len(harmonics)} of harmonics"
        )
    stop = [0] * len(orders)
    for c in sorted(couplings, key=lambda c: c.first):
        l_small, mul = groups[c.small]
        if not abs(l_small - orders[c.big]) <= c.l <= l_small + orders[c.big]:
            raise ValueError(f"{c} cannot couple orders {l_small} and {orders[c.big]}")
        if (c.l + 1) ** 2 > harmonics.shape[1]:
            raise ValueError(f"{c} needs more than {harmonics.shape[1]} components of harmonics")
        if c.first != stop[c.big]:
            raise ValueError(f"{c} should begin at row {stop[c.big]}, where the rows before end")
        stop[c.big] += phi.shape[1] * mul


def _check_shapes(tensors: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> None:
    for x, shape in zip(tensors, shapes, strict=True):
        if tuple(x.shape) != shape:
            raise ValueError(f"features of shape {tuple(x.shape)} should be of shape {shape}")


def _tensors(csr: Csr) -> tuple[Tensor, Tensor, Tensor]:
    return csr.starts, csr.other, csr.type


def _flat(couplings: Sequence[Coupling]) -> list[int]:
    return [n for c in couplings for n in (c.small, c.big, c.first, c.l)]


def _unflat(numbers: Sequence[int]) -> list[Coupling]:
    return [Coupling(*numbers[i : i + 4]) for i in range(0, len(numbers), 4)]


def _pairs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(numbers[::2], numbers[1::2], strict=True))
