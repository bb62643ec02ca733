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

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from tripq.kernels.launch import accumulation_dtype, gradients_of_twin, higher_derivatives
from tripq.kernels.nodes_arguments import (
    Constants,
    Coupling,
    Geometry,
    NodeCsr,
    Term,
)
from tripq.kernels.nodes_twin import gradient_for_features, gradient_for_radial, sum_over_edges
from tripq.kernels.operators import operator


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
        sums.append(_node_sum(part, phi_p, phi_q, geometry, walk, orders, flat_signs, joint))
    return sums


# -- the operators -------------------------------------------------------------------------------


def _read(*args: Any) -> tuple[Any, ...]:
    """The arguments of an operator as those of its twin: the last five, flat lists, are one."""
    *tensors, geometry, edges, orders, signs, joint = args
    l_p, l_q, l_in, l_1, l_out = orders
    coupling = Coupling(l_p, l_q, l_in, l_1, l_out, tuple(signs), joint)
    return *tensors, Constants(Geometry(*geometry), NodeCsr(*edges), coupling)


def _read_choice(*args: Any) -> tuple[Any, ...]:
    *others, of_p = args
    return *_read(*others), of_p


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
            lambda: sum_over_edges(*_read(x, phi_p, phi_q, *same)),
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


_SUM = "Tensor[] geometry, Tensor[] edges, SymInt[] orders, SymInt[] signs, bool joint"

_node_sum = operator(
    "node_sum",
    f"(Tensor x, Tensor phi_p, Tensor phi_q, {_SUM}) -> Tensor",
    lambda x, phi_p, phi_q, fixed: x.new_empty(fixed.shape(x, phi_p, phi_q)),
    twin=sum_over_edges,
    kernel="nodes_triton.sum_over_edges",
    read=_read,
    keep=_keep,
    differentiate=_backward,
)
_gradient_for_features = operator(
    "node_sum_gradient_for_features",
    f"(Tensor grad, Tensor phi_p, Tensor phi_q, {_SUM}) -> Tensor",
    lambda grad, _, phi_q, fixed: grad.new_empty(
        phi_q.shape[0], grad.shape[1], 2 * fixed.coupling.l_in + 1
    ),
    twin=gradient_for_features,
    kernel="nodes_triton.gradient_for_features",
    read=_read,
)
_gradient_for_radial = operator(
    "node_sum_gradient_for_radial",
    f"(Tensor grad, Tensor x, Tensor phi_p, Tensor phi_q, {_SUM}, bool of_p) -> Tensor",
    lambda grad, _, phi_p, phi_q, __, of_p: grad.new_empty((phi_p if of_p else phi_q).shape),
    twin=gradient_for_radial,
    kernel="nodes_triton.gradient_for_radial",
    read=_read_choice,
)
