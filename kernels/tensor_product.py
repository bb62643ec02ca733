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
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tripq.domain.adjacency import Adjacency, Csr
from tripq.kernels.launch import accumulation_dtype, needs_twin, runs_in_triton
from tripq.so3.recoupling import clebsch_gordan


@dataclass(frozen=True)
class Coupling:
    """A group of small features, a block of big ones, and the harmonic between them.

    Attributes
    ----------
    small, big : int
        Numbers of the tensors.
    first : int
        First row of the block.
    l : int
        Order of the harmonic.
    """

    small: int
    big: int
    first: int
    l: int


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
    _check_shapes(small, [_small_shape(len(edges.by_input.starts) - 1, lanes, g) for g in groups])
    if not couplings:
        return [small[0].new_zeros(n_out, 0, 2 * l + 1, lanes) for l in orders]
    lists = [*_tensors(edges.by_output), *_tensors(edges.by_input), *edges.by_type]
    return _expanded(small, phi, harmonics, lists, _flat(couplings), list(orders), False)


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
    rows = _rows(couplings, outputs, len(orders), phi.shape[1])
    _check_shapes(big, [(n_in, r, 2 * l + 1, lanes) for r, l in zip(rows, orders, strict=True)])
    if not couplings:
        return [big[0].new_zeros(_small_shape(n_out, lanes, group)) for group in outputs]
    by_type, inputs, outs = edges.by_type
    lists = [*_tensors(edges.by_input), *_tensors(edges.by_output), by_type, outs, inputs]
    flat_outputs = [n for group in outputs for n in group]
    return _contracted(big, phi, harmonics, lists, _flat(couplings), flat_outputs, True)


# -- the three operators -------------------------------------------------------------------------
#
# Their edges are nine tensors: the lists by the big end and by the small end, and by type with
# small ends before big ones. `to_small` tells which order the coefficients couple to.


@torch.library.custom_op("tripq::expand", mutates_args=())
def _expand(
    small: Sequence[Tensor],
    phi: Tensor,
    harmonics: Tensor,
    edges: Sequence[Tensor],
    couplings: Sequence[int],
    orders: Sequence[int],
    to_small: bool,
) -> list[Tensor]:
    args = small, phi, harmonics, edges, _unflat(couplings), orders, to_small
    if runs_in_triton(phi):
        from tripq.kernels import tensor_product_triton

        return tensor_product_triton.expand(*args)
    with torch.autocast(phi.device.type, enabled=False):
        return expand_twin(*args)


@torch.library.custom_op("tripq::contract", mutates_args=())
def _contract(
    big: Sequence[Tensor],
    phi: Tensor,
    harmonics: Tensor,
    edges: Sequence[Tensor],
    couplings: Sequence[int],
    groups: Sequence[int],
    to_small: bool,
) -> list[Tensor]:
    args = big, phi, harmonics, edges, _unflat(couplings), _pairs(groups), to_small
    if runs_in_triton(phi):
        from tripq.kernels import tensor_product_triton

        return tensor_product_triton.contract(*args)
    with torch.autocast(phi.device.type, enabled=False):
        return contract_twin(*args)


@torch.library.custom_op("tripq::correlate", mutates_args=())
def _correlate(
    small: Sequence[Tensor],
    big: Sequence[Tensor],
    harmonics: Tensor,
    edges: Sequence[Tensor],
    couplings: Sequence[int],
    n_radial: int,
    to_small: bool,
) -> Tensor:
    args = small, big, harmonics, edges, _unflat(couplings), n_radial, to_small
    if runs_in_triton(harmonics):
        from tripq.kernels import tensor_product_triton

        return tensor_product_triton.correlate(*args)
    with torch.autocast(harmonics.device.type, enabled=False):
        return correlate_twin(*args)


def _expanded(
    small: Sequence[Tensor],
    phi: Tensor,
    harmonics: Tensor,
    edges: Sequence[Tensor],
    couplings: Sequence[int],
    orders: Sequence[int],
    to_small: bool,
) -> list[Tensor]:
    """`_expand`, or its twin for derivatives that the operator lacks."""
    if needs_twin():
        with torch.autocast(phi.device.type, enabled=False):
            return expand_twin(small, phi, harmonics, edges, _unflat(couplings), orders, to_small)
    result: list[Tensor] = _expand(small, phi, harmonics, edges, couplings, orders, to_small)
    return result


def _contracted(
    big: Sequence[Tensor],
    phi: Tensor,
    harmonics: Tensor,
    edges: Sequence[Tensor],
    couplings: Sequence[int],
    groups: Sequence[int],
    to_small: bool,
) -> list[Tensor]:
    """`_contract`, likewise."""
    if needs_twin():
        args = big, phi, harmonics, edges, _unflat(couplings), _pairs(groups), to_small
        with torch.autocast(phi.device.type, enabled=False):
            return contract_twin(*args)
    result: list[Tensor] = _contract(big, phi, harmonics, edges, couplings, groups, to_small)
    return result


def _correlated(
    small: Sequence[Tensor],
    big: Sequence[Tensor],
    harmonics: Tensor,
    edges: Sequence[Tensor],
    couplings: Sequence[int],
    n_radial: int,
    to_small: bool,
) -> Tensor:
    """`_correlate`, likewise."""
    if needs_twin():
        args = small, big, harmonics, edges, _unflat(couplings), n_radial, to_small
        with torch.autocast(harmonics.device.type, enabled=False):
            return correlate_twin(*args)
    result: Tensor = _correlate(small, big, harmonics, edges, couplings, n_radial, to_small)
    return result


# -- what they compute ---------------------------------------------------------------------------


def expand_twin(
    small: Sequence[Tensor],
    phi: Tensor,
    harmonics: Tensor,
    edges: Sequence[Tensor],
    couplings: Sequence[Coupling],
    orders: Sequence[int],
    to_small: bool,
) -> list[Tensor]:
    """The derivative by the big features, in plain torch."""
    starts, s, t = edges[:3]
    d = _ends(starts)
    big = empty_big(small, phi, edges, couplings, orders)
    blocks: list[list[Tensor]] = [[x[:, :0].to(phi.dtype)] for x in big]
    for c in sorted(couplings, key=lambda c: c.first):
        x = small[c.small][s].to(phi.dtype)
        angular = _angular(harmonics, c.l, (x.shape[1] - 1) // 2, orders[c.big], to_small)
        block = torch.einsum("ek,egj,egci->ekcji", phi[t], angular[t], x).flatten(1, 2)
        zeros = block.new_zeros(len(big[c.big]), *block.shape[1:])
        blocks[c.big].append(zeros.index_add(0, d, block))
    return [torch.cat(rows, dim=1).to(small[0].dtype) for rows in blocks]


def contract_twin(
    big: Sequence[Tensor],
    phi: Tensor,
    harmonics: Tensor,
    edges: Sequence[Tensor],
    couplings: Sequence[Coupling],
    groups: Sequence[tuple[int, int]],
    to_small: bool,
) -> list[Tensor]:
    """The derivative by the small features, in plain torch."""
    starts, d, t = edges[3:6]
    s = _ends(starts)
    small = empty_small(big, edges, groups)
    total = [torch.zeros_like(x, dtype=phi.dtype) for x in small]
    for c in couplings:
        l_small, mul = groups[c.small]
        l_big = (big[c.big].shape[2] - 1) // 2
        angular = _angular(harmonics, c.l, l_small, l_big, to_small)
        block = big[c.big][:, c.first : c.first + phi.shape[1] * mul]
        x = block[d].to(phi.dtype).unflatten(1, (phi.shape[1], mul))
        block = torch.einsum("ekcji,ek,egj->egci", x, phi[t], angular[t])
        total[c.small] = total[c.small].index_add(0, s, block)
    return [x.to(big[0].dtype) for x in total]


def correlate_twin(
    small: Sequence[Tensor],
    big: Sequence[Tensor],
    harmonics: Tensor,
    edges: Sequence[Tensor],
    couplings: Sequence[Coupling],
    n_radial: int,
    to_small: bool,
) -> Tensor:
    """The derivative by the radial functions, in plain torch."""
    starts, s, d = edges[6:]
    t = _ends(starts)
    total = harmonics.new_zeros(len(harmonics), n_radial)
    for c in couplings:
        x = small[c.small][s].to(total.dtype)
        l_small, l_big = ((n - 1) // 2 for n in (x.shape[1], big[c.big].shape[2]))
        angular = _angular(harmonics, c.l, l_small, l_big, to_small)
        block = big[c.big][:, c.first : c.first + n_radial * x.shape[2]]
        y = block[d].to(total.dtype).unflatten(1, (n_radial, x.shape[2]))
        total = total.index_add(0, t, torch.einsum("egj,egci,ekcji->ek", angular[t], x, y))
    return total


def coefficients(l: int, l_small: int, l_big: int, to_small: bool) -> NDArray[np.float64]:
    """Clebsch-Gordan coefficients, shape (2 l + 1, 2 l_small + 1, 2 l_big + 1)."""
    if to_small:
        return clebsch_gordan(l, l_big, l_small).transpose(0, 2, 1)
    return clebsch_gordan(l, l_small, l_big)


def _angular(harmonics: Tensor, l: int, l_small: int, l_big: int, to_small: bool) -> Tensor:
    """Matrices between the components of both ends, (T, 2 l_small + 1, 2 l_big + 1)."""
    c = harmonics.new_tensor(coefficients(l, l_small, l_big, to_small))
    return torch.einsum("tm,mgj->tgj", harmonics[:, l * l : (l + 1) ** 2], c)


def _ends(starts: Tensor) -> Tensor:
    """The node (or type) of each edge of a list, (E,)."""
    return torch.arange(len(starts) - 1, device=starts.device).repeat_interleave(starts.diff())


# -- shapes and derivatives ----------------------------------------------------------------------


def empty_big(
    small: Sequence[Tensor],
    phi: Tensor,
    edges: Sequence[Tensor],
    couplings: Sequence[Coupling],
    orders: Sequence[int],
) -> list[Tensor]:
    """Big tensors to be written."""
    n, lanes = len(edges[0]) - 1, small[0].shape[3]
    groups = [(0, x.shape[2]) for x in small]
    rows = _rows(couplings, groups, len(orders), phi.shape[1])
    return [small[0].new_empty(n, r, 2 * l + 1, lanes) for r, l in zip(rows, orders, strict=True)]


def empty_small(
    big: Sequence[Tensor], edges: Sequence[Tensor], groups: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Small tensors to be written."""
    n, lanes = len(edges[3]) - 1, big[0].shape[3]
    return [big[0].new_empty(_small_shape(n, lanes, group)) for group in groups]


@_expand.register_fake
def _(
    small: Sequence[Tensor],
    phi: Tensor,
    harmonics: Tensor,
    edges: Sequence[Tensor],
    couplings: Sequence[int],
    orders: Sequence[int],
    to_small: bool,
) -> list[Tensor]:
    return empty_big(small, phi, edges, _unflat(couplings), orders)


@_contract.register_fake
def _(
    big: Sequence[Tensor],
    phi: Tensor,
    harmonics: Tensor,
    edges: Sequence[Tensor],
    couplings: Sequence[int],
    groups: Sequence[int],
    to_small: bool,
) -> list[Tensor]:
    return empty_small(big, edges, _pairs(groups))


@_correlate.register_fake
def _(
    small: Sequence[Tensor],
    big: Sequence[Tensor],
    harmonics: Tensor,
    edges: Sequence[Tensor],
    couplings: Sequence[int],
    n_radial: int,
    to_small: bool,
) -> Tensor:
    return harmonics.new_empty(len(harmonics), n_radial)


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
        grad_small = _contracted(
            grads, phi, harmonics, edges, ctx.couplings, ctx.groups, ctx.to_small
        )
    if ctx.needs_input_grad[1]:
        grad_phi = _correlated(
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
        grad_big = _expanded(grads, phi, harmonics, edges, ctx.couplings, ctx.orders, ctx.to_small)
    if ctx.needs_input_grad[1]:
        grad_phi = _correlated(
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
        grad_small = _contracted(big, grad, harmonics, edges, ctx.couplings, groups, ctx.to_small)
    if any(ctx.needs_input_grad[1]):
        grad_big = _expanded(small, grad, harmonics, edges, ctx.couplings, orders, ctx.to_small)
    return grad_small, grad_big, None, [None] * 9, None, None, None


_expand.register_autograd(_backward_expand, setup_context=_save_expand)
_contract.register_autograd(_backward_contract, setup_context=_save_contract)
_correlate.register_autograd(_backward_correlate, setup_context=_save_correlate)


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


def _rows(
    couplings: Sequence[Coupling], groups: Sequence[tuple[int, int]], n_big: int, n_radial: int
) -> list[int]:
    """Number of rows of each big tensor."""
    rows = [0] * n_big
    for c in couplings:
        rows[c.big] += n_radial * groups[c.small][1]
    return rows


def _small_shape(n: int, lanes: int, group: tuple[int, int]) -> tuple[int, int, int, int]:
    l, mul = group
    return n, 2 * l + 1, mul, lanes


def _tensors(csr: Csr) -> tuple[Tensor, Tensor, Tensor]:
    return csr.starts, csr.other, csr.type


def _flat(couplings: Sequence[Coupling]) -> list[int]:
    return [n for c in couplings for n in (c.small, c.big, c.first, c.l)]


def _unflat(numbers: Sequence[int]) -> list[Coupling]:
    return [Coupling(*numbers[i : i + 4]) for i in range(0, len(numbers), 4)]


def _pairs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(numbers[::2], numbers[1::2], strict=True))
