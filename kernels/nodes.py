r"""Sums over the edges between nodes (p, q), with individual directions in every voxel.

For features x of input nodes and one coupling of orders (l_p, l_q, l_in, l_1, l_out),

.. math::
    out[n, c, k_1, k_3, m_{out}] = \sum_{e \to n} w_e\, \varphi_1[t_e, k_1]\, \varphi_3[s_e, k_3]
    \sum C(l_{out}; l_p\, l_1)\, Y_{l_p}[t_e]\;
         C(l_1; l_q\, l_{in})\, Y_{l_q}(q_{out}[n] - q_{in}[s_e])\; x[s_e, c].

An edge e leads from input node s_e to output node n; t_e is the type of its p-offset.  The order of
the sums is that of `tripq.so3.recoupling`: the harmonic of the q-offset is coupled to the input
first, and the weights of a filter act on the result, node by node.

The inner harmonic is a mean over signs of the q-vectors, which makes a filter antipodal, and its
argument may be the joint offset p - (q_out - q_in).  The terms are never stored for all edges: the
Triton kernels keep them in registers, the twin in chunks of edges, and the backward pass recomputes
them.  Gradients reach the features and both radial functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import torch
from e3nn import o3
from torch import Tensor

from tripq.infra.kept import kept
from tripq.kernels.launch import (
    accumulation_dtype,
    gradients_of_twin,
    higher_derivatives,
    needs_twin,
    runs_in_triton,
)
from tripq.so3.harmonics import spherical_harmonics
from tripq.so3.recoupling import clebsch_gordan

# Numbers that the twin holds of a chunk of edges.
_CHUNK = 1 << 22

# A polynomial coefficient is either 0 by symmetry or of order 0.1 and more.
_NEGLIGIBLE = 1e-9


@dataclass(frozen=True)
class Term:
    """One coupling: input features and orders.

    Attributes
    ----------
    group : int
        Number of the input features, whose order is l_in.
    l_p, l_q : int
        Orders of the harmonics of the p-offset and of the q-offset.
    l_1, l_out : int
        Results of coupling `l_q` with l_in, and `l_p` with `l_1`.
    """

    group: int
    l_p: int
    l_q: int
    l_1: int
    l_out: int


@dataclass(frozen=True, eq=False)
class NodeCsr:
    """Edges between nodes, sorted by output node, with the orders of the backward pass.

    Attributes
    ----------
    dst, src, type : Tensors of shape (E,), int64
        Output node, input node and type of the p-offset of each edge, sorted by `dst`.
    weight : Tensor of shape (E,)
        Quadrature weights.
    output_starts : Tensor of shape (N_out + 1,), int64
        The edges of output node n are ``output_starts[n]`` to ``output_starts[n + 1]``.
    input_starts, input_order : Tensors of shapes (N_in + 1,) and (E,), int64
        The edges of input node n are those of the same range of `input_order`.
    type_starts, type_order : Tensors of shapes (T + 1,) and (E,), int64
        The same for the types.
    """

    dst: Tensor
    src: Tensor
    type: Tensor
    weight: Tensor
    output_starts: Tensor
    input_starts: Tensor
    input_order: Tensor
    type_starts: Tensor
    type_order: Tensor

    @classmethod
    def build(
        cls,
        dst: Tensor,
        src: Tensor,
        type_: Tensor,
        weight: Tensor,
        n_out: int,
        n_in: int,
        n_types: int,
    ) -> NodeCsr:
        """Sort edges (E,) given in any order."""
        output_starts, order = _arranged(dst, n_out)
        dst, src, type_, weight = dst[order], src[order], type_[order], weight[order]
        by_input, by_type = _arranged(src, n_in), _arranged(type_, n_types)
        return cls(dst, src, type_, weight, output_starts, *by_input, *by_type)

    def to(self, dtype: torch.dtype) -> NodeCsr:
        """The same edges with weights of another type."""
        return NodeCsr(self.dst, self.src, self.type, self.weight.to(dtype), *self.tensors()[4:])

    def tensors(self) -> list[Tensor]:
        """All attributes, in their order."""
        return [
            self.dst,
            self.src,
            self.type,
            self.weight,
            self.output_starts,
            self.input_starts,
            self.input_order,
            self.type_starts,
            self.type_order,
        ]


def _arranged(key: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Start of each run of equal keys, and the permutation that sorts the keys."""
    key, order = torch.sort(key, stable=True)
    return torch.searchsorted(key, torch.arange(number + 1, device=key.device)), order


class Geometry(NamedTuple):
    """The constants of the nodes and of the edge types, for one order l_p.

    Attributes
    ----------
    harmonics_p : Tensor of shape (T, 2 l_p + 1)
        Harmonics of the p-offsets.
    p_offsets : Tensor of shape (T, 3)
        The p-offsets.
    q_out, q_in : Tensors of shape (N_out, 3) and (N_in, 3)
        q-vectors, or their directions.
    """

    harmonics_p: Tensor
    p_offsets: Tensor
    q_out: Tensor
    q_in: Tensor


class Coupling(NamedTuple):
    """The five orders of a sum and the argument of its inner harmonic.

    Attributes
    ----------
    l_p, l_q, l_in, l_1, l_out : int
        As in `Term`; l_in is the order of the input.
    signs : tuple of int
        The signs of (q_out, q_in) in the mean of the inner harmonic, pair after pair.
    joint : bool
        Whether its argument is the joint offset.
    """

    l_p: int
    l_q: int
    l_in: int
    l_1: int
    l_out: int
    signs: tuple[int, ...]
    joint: bool


@kept
def harmonic_polynomial(l: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The spherical harmonics of order `l` as polynomials of degree `l` of the unit vector.

    Returns
    -------
    monomials : tuple of int
        For each monomial four numbers: its component m + l, and its exponents of x, y and z, which
        sum to `l`.
    coefficients : tuple of float
        Their factors, in e3nn's basis and "component" normalisation.

    Examples
    --------
    >>> monomials, coefficients = harmonic_polynomial(1)
    >>> monomials, [round(c, 6) for c in coefficients]
    ((0, 1, 0, 0, 1, 0, 1, 0, 2, 0, 0, 1), [1.732051, 1.732051, 1.732051])
    """
    # On the sphere the monomials of one degree are independent: there is only one solution.
    exponents = [(a, b, l - a - b) for a in range(l, -1, -1) for b in range(l - a, -1, -1)]
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(8 * len(exponents), 3, generator=generator, dtype=torch.float64)
    points = points / points.norm(dim=1, keepdim=True)
    values = torch.stack([points.pow(torch.tensor(e)).prod(dim=1) for e in exponents], dim=1)
    harmonics = o3.spherical_harmonics(l, points, normalize=False, normalization="component")
    fitted = torch.linalg.lstsq(values, harmonics).solution.T.tolist()
    terms = [
        (component, *e, c)
        for component, row in enumerate(fitted)
        for e, c in zip(exponents, row, strict=True)
        if abs(c) > _NEGLIGIBLE
    ]
    return tuple(n for term in terms for n in term[:4]), tuple(term[4] for term in terms)


# -- the sum -------------------------------------------------------------------------------------


def aggregate_nodes(
    x: Sequence[Tensor],
    phi_p: Tensor,
    harmonics_p: Tensor,
    phi_q: Tensor,
    p_offsets: Tensor,
    q_out: Tensor,
    q_in: Tensor,
    edges: NodeCsr,
    terms: Sequence[Term],
    signs: Sequence[tuple[int, int]] = ((1, 1),),
    joint: bool = False,
) -> list[Tensor]:
    """Sum features over the edges to each node, one sum for each coupling.

    Parameters
    ----------
    x : sequence of Tensors of shape (N_in, mul, 2 l_in + 1)
        Features of the input nodes, one tensor for each group of channels of one order.
    phi_p : Tensor of shape (T, K_1)
        Radial functions of the p-offsets, by edge type.
    harmonics_p : Tensor of shape (T, (L_p + 1)^2)
        Harmonics of the p-offsets; those of order l begin at column l^2.
    phi_q : Tensor of shape (N_in, K_3)
        Radial functions of the q-vectors of the input nodes.
    p_offsets : Tensor of shape (T, 3)
        p_out - p_in in mm, by edge type; only a joint argument depends on them.
    q_out, q_in : Tensors of shape (N_out, 3) and (N_in, 3)
        q-vectors of the nodes, or their directions.
    edges : NodeCsr
        The edges.
    terms : sequence of Term
        The couplings.
    signs : sequence of (int, int)
        Signs of (q_out, q_in) in the mean of the inner harmonic.
    joint : bool
        Whether its argument is p - (q_out - q_in) instead of q_out - q_in.

    Returns
    -------
    list of Tensors of shape (N_out, mul, K_1, K_3, 2 l_out + 1)
        One for each term, in the common type of `x`, `phi_p` and `phi_q`.

    Raises
    ------
    ValueError
        If the geometry requires a gradient: it must be constant.
    """
    if any(t.requires_grad for t in (harmonics_p, p_offsets, q_out, q_in, edges.weight)):
        raise ValueError("sums over nodes have no gradients for coordinates, harmonics or weights")
    dtype = reduce(torch.promote_types, (t.dtype for t in (*x, phi_p, phi_q)))
    # A difference of coordinates in half precision would have no direction left.
    exact = accumulation_dtype(dtype)
    features = [part.to(dtype) for part in x]
    phi_p, phi_q = phi_p.to(dtype), phi_q.to(dtype)
    harmonics_p, p_offsets = harmonics_p.to(exact), p_offsets.to(exact)
    q_out, q_in = q_out.to(exact), q_in.to(exact)
    walk = edges.to(exact).tensors()
    flat_signs = [sign for pair in signs for sign in pair]
    sums = []
    for term in terms:
        part = features[term.group]
        harmonics = harmonics_p[:, term.l_p**2 : (term.l_p + 1) ** 2]
        geometry = [harmonics, p_offsets, q_out, q_in]
        orders = [term.l_p, term.l_q, (part.shape[2] - 1) // 2, term.l_1, term.l_out]
        constants = geometry, walk, orders, flat_signs, joint
        if needs_twin():
            with torch.autocast(part.device.type, enabled=False):
                sums.append(sum_over_edges(part, phi_p, phi_q, *_constants(*constants)))
        else:
            sums.append(_node_sum(part, phi_p, phi_q, *constants))
    return sums


# -- the twin ------------------------------------------------------------------------------------


def sum_over_edges(
    x: Tensor, phi_p: Tensor, phi_q: Tensor, geometry: Geometry, edges: NodeCsr, coupling: Coupling
) -> Tensor:
    """The sum, (N_out, mul, K_1, K_3, 2 l_out + 1)."""
    radial = phi_p.shape[1], phi_q.shape[1]
    shape = len(geometry.q_out), x.shape[1], *radial, 2 * coupling.l_out + 1
    total = edges.weight.new_zeros(shape)
    for part in _chunks(edges, total):
        message = _messages(x, geometry, part, coupling)
        a, b = phi_p[part.type].to(total), phi_q[part.src].to(total)
        sums = torch.einsum("e,ea,eb,eco->ecabo", part.weight, a, b, message)
        total = total.index_add(0, part.dst, sums)
    return total.to(x.dtype)


def gradient_for_features(
    grad: Tensor,
    phi_p: Tensor,
    phi_q: Tensor,
    geometry: Geometry,
    edges: NodeCsr,
    coupling: Coupling,
) -> Tensor:
    """From the gradient of the sum to the gradient of x, (N_in, mul, 2 l_in + 1)."""
    total = edges.weight.new_zeros(len(phi_q), grad.shape[1], 2 * coupling.l_in + 1)
    outer, inner = _coefficients(coupling, total)
    for part in _chunks(edges, grad):
        a, b, g = (t.to(total) for t in (phi_p[part.type], phi_q[part.src], grad[part.dst]))
        to_out = torch.einsum("e,ea,eb,ecabo->eco", part.weight, a, b, g)
        to_1 = torch.einsum("ep,pno,eco->ecn", geometry.harmonics_p[part.type], outer, to_out)
        y = _inner_harmonic(geometry, part, coupling)
        total.index_add_(0, part.src, torch.einsum("eq,qin,ecn->eci", y, inner, to_1))
    return total.to(grad.dtype)


def gradient_for_radial(
    grad: Tensor,
    x: Tensor,
    phi_p: Tensor,
    phi_q: Tensor,
    geometry: Geometry,
    edges: NodeCsr,
    coupling: Coupling,
    of_p: bool,
) -> Tensor:
    """From the gradient of the sum to that of phi_p, (T, K_1), or of phi_q, (N_in, K_3)."""
    total = edges.weight.new_zeros((phi_p if of_p else phi_q).shape)
    for part in _chunks(edges, grad):
        message = _messages(x, geometry, part, coupling)
        g = grad[part.dst].to(total)
        both = torch.einsum("e,eco,ecabo->eab", part.weight, message, g)
        if of_p:
            row, sums = part.type, torch.einsum("eab,eb->ea", both, phi_q[part.src].to(total))
        else:
            row, sums = part.src, torch.einsum("eab,ea->eb", both, phi_p[part.type].to(total))
        total.index_add_(0, row, sums)
    return total.to(grad.dtype)


class _Edges(NamedTuple):
    """A chunk of edges."""

    dst: Tensor
    src: Tensor
    type: Tensor
    weight: Tensor


def _chunks(edges: NodeCsr, like: Tensor) -> Iterator[_Edges]:
    """Chunks with as many edges as rows of `like` fit into the buffer."""
    step = max(1, _CHUNK // max(1, like[0].numel() if len(like) else 1))
    for start in range(0, len(edges.dst), step):
        yield _Edges(*(t[start : start + step] for t in edges.tensors()[:4]))


def _messages(x: Tensor, geometry: Geometry, edges: _Edges, coupling: Coupling) -> Tensor:
    """The coupled terms of the edges, without radial functions: (E, mul, 2 l_out + 1)."""
    outer, inner = _coefficients(coupling, edges.weight)
    y = _inner_harmonic(geometry, edges, coupling)
    to_1 = torch.einsum("eq,qin,eci->ecn", y, inner, x[edges.src].to(y))
    return torch.einsum("ep,pno,ecn->eco", geometry.harmonics_p[edges.type], outer, to_1)


def _coefficients(coupling: Coupling, like: Tensor) -> tuple[Tensor, Tensor]:
    """C(l_out; l_p l_1) and C(l_1; l_q l_in)."""
    outer = clebsch_gordan(coupling.l_p, coupling.l_1, coupling.l_out)
    inner = clebsch_gordan(coupling.l_q, coupling.l_in, coupling.l_1)
    return torch.tensor(outer).to(like), torch.tensor(inner).to(like)


def _inner_harmonic(geometry: Geometry, edges: _Edges, coupling: Coupling) -> Tensor:
    """The mean over the signs, (E, 2 l_q + 1)."""
    p, q_out, q_in = geometry.p_offsets[edges.type], geometry.q_out[edges.dst], geometry.q_in
    total = torch.zeros_like(p[:, :1])
    pairs = list(zip(coupling.signs[::2], coupling.signs[1::2], strict=True))
    for sign_out, sign_in in pairs:
        offset = sign_out * q_out - sign_in * q_in[edges.src]
        v = p - offset if coupling.joint else offset
        total = total + spherical_harmonics((coupling.l_q,), v)[coupling.l_q]
    return total / len(pairs)


# -- the operators -------------------------------------------------------------------------------


def _constants(
    geometry: Sequence[Tensor],
    edges: Sequence[Tensor],
    orders: Sequence[int],
    signs: Sequence[int],
    joint: bool,
) -> tuple[Geometry, NodeCsr, Coupling]:
    """The list arguments of an operator, by their names."""
    l_p, l_q, l_in, l_1, l_out = orders
    coupling = Coupling(l_p, l_q, l_in, l_1, l_out, tuple(signs), joint)
    return Geometry(*geometry), NodeCsr(*edges), coupling


@torch.library.custom_op("tripq::node_sum", mutates_args=())
def _node_sum(
    x: Tensor,
    phi_p: Tensor,
    phi_q: Tensor,
    geometry: Sequence[Tensor],
    edges: Sequence[Tensor],
    orders: Sequence[int],
    signs: Sequence[int],
    joint: bool,
) -> Tensor:
    constants = _constants(geometry, edges, orders, signs, joint)
    if runs_in_triton(x):
        from tripq.kernels import nodes_triton

        return nodes_triton.sum_over_edges(x, phi_p, phi_q, *constants)
    return sum_over_edges(x, phi_p, phi_q, *constants)


@_node_sum.register_fake
def _(
    x: Tensor,
    phi_p: Tensor,
    phi_q: Tensor,
    geometry: Sequence[Tensor],
    edges: Sequence[Tensor],
    orders: Sequence[int],
    *_: Any,
) -> Tensor:
    n_out = Geometry(*geometry).q_out.shape[0]
    radial = phi_p.shape[1], phi_q.shape[1]
    return x.new_empty(n_out, x.shape[1], *radial, 2 * orders[-1] + 1)


@torch.library.custom_op("tripq::node_sum_gradient_for_features", mutates_args=())
def _gradient_for_features(
    grad: Tensor,
    phi_p: Tensor,
    phi_q: Tensor,
    geometry: Sequence[Tensor],
    edges: Sequence[Tensor],
    orders: Sequence[int],
    signs: Sequence[int],
    joint: bool,
) -> Tensor:
    constants = _constants(geometry, edges, orders, signs, joint)
    if runs_in_triton(grad):
        from tripq.kernels import nodes_triton

        return nodes_triton.gradient_for_features(grad, phi_p, phi_q, *constants)
    return gradient_for_features(grad, phi_p, phi_q, *constants)


@_gradient_for_features.register_fake
def _(
    grad: Tensor,
    phi_p: Tensor,
    phi_q: Tensor,
    geometry: Sequence[Tensor],
    edges: Sequence[Tensor],
    orders: Sequence[int],
    *_: Any,
) -> Tensor:
    return grad.new_empty(phi_q.shape[0], grad.shape[1], 2 * orders[2] + 1)


@torch.library.custom_op("tripq::node_sum_gradient_for_radial", mutates_args=())
def _gradient_for_radial(
    grad: Tensor,
    x: Tensor,
    phi_p: Tensor,
    phi_q: Tensor,
    geometry: Sequence[Tensor],
    edges: Sequence[Tensor],
    orders: Sequence[int],
    signs: Sequence[int],
    joint: bool,
    of_p: bool,
) -> Tensor:
    constants = _constants(geometry, edges, orders, signs, joint)
    if runs_in_triton(grad):
        from tripq.kernels import nodes_triton

        return nodes_triton.gradient_for_radial(grad, x, phi_p, phi_q, *constants, of_p)
    return gradient_for_radial(grad, x, phi_p, phi_q, *constants, of_p)


@_gradient_for_radial.register_fake
def _(grad: Tensor, x: Tensor, phi_p: Tensor, phi_q: Tensor, *rest: Any) -> Tensor:
    of_p = rest[-1]
    return grad.new_empty((phi_p if of_p else phi_q).shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, phi_p, phi_q, geometry, edges, *ctx.coupling = inputs
    ctx.save_for_backward(x, phi_p, phi_q, *geometry, *edges)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, phi_p, phi_q, *constants = ctx.saved_tensors
    n = len(Geometry._fields)
    same = constants[:n], constants[n:], *ctx.coupling
    nothing = [None] * n, [None] * (len(constants) - n), None, None, None
    if higher_derivatives():
        found = gradients_of_twin(
            lambda: sum_over_edges(x, phi_p, phi_q, *_constants(*same)),
            (x, phi_p, phi_q),
            ctx.needs_input_grad[:3],
            grad,
        )
        return *found, *nothing
    grad_x = grad_p = grad_q = None
    if ctx.needs_input_grad[0]:
        grad_x = _gradient_for_features(grad, phi_p, phi_q, *same)
    if ctx.needs_input_grad[1]:
        grad_p = _gradient_for_radial(grad, x, phi_p, phi_q, *same, True)
    if ctx.needs_input_grad[2]:
        grad_q = _gradient_for_radial(grad, x, phi_p, phi_q, *same, False)
    return grad_x, grad_p, grad_q, *nothing


_node_sum.register_autograd(_backward, setup_context=_keep)
