r"""The sums of `tripq.kernels.nodes` in plain torch, which define the results.

For the sum S (N_out, mul, K_1, K_3, 2 l_out + 1) of features x (N_in, mul, 2 l_in + 1) with radial
functions :math:`\varphi_1` (T, K_1) and :math:`\varphi_3` (N_in, K_3), and its gradient G:

* `sum_over_edges`, :math:`(x, \varphi_1, \varphi_3) \to S`;
* `gradient_for_features`, :math:`(G, \varphi_1, \varphi_3) \to \partial x`;
* `gradient_for_radial`, :math:`(G, x, \varphi_1, \varphi_3) \to \partial\varphi_1` or
  :math:`\partial\varphi_3`.

The terms of the edges are held for a chunk of edges at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tripq.infra.chunks import chunks
from tripq.kernels.nodes_arguments import Constants, Coupling, NodeCsr
from tripq.so3.harmonics import mean_over_signs, spherical_harmonics
from tripq.so3.recoupling import clebsch_gordan

# Numbers that are held of a chunk of edges.
_CHUNK = 1 << 22


def sum_over_edges(x: Tensor, phi_p: Tensor, phi_q: Tensor, fixed: Constants) -> Tensor:
    """The sum, (N_out, mul, K_1, K_3, 2 l_out + 1)."""
    total = fixed.edges.weight.new_zeros(fixed.shape(x, phi_p, phi_q))
    for part in _chunks(fixed.edges, total):
        message = _messages(x, part, fixed)
        a, b = phi_p[part.type].to(total), phi_q[part.src].to(total)
        sums = torch.einsum("e,ea,eb,eco->ecabo", part.weight, a, b, message)
        total = total.index_add(0, part.dst, sums)
    return total.to(x.dtype)


def gradient_for_features(grad: Tensor, phi_p: Tensor, phi_q: Tensor, fixed: Constants) -> Tensor:
    """From the gradient of the sum to the gradient of x, (N_in, mul, 2 l_in + 1)."""
    total = fixed.edges.weight.new_zeros(len(phi_q), grad.shape[1], 2 * fixed.coupling.l_in + 1)
    outer, inner = _coefficients(fixed.coupling, total)
    for part in _chunks(fixed.edges, grad):
        a, b, g = (t.to(total) for t in (phi_p[part.type], phi_q[part.src], grad[part.dst]))
        to_out = torch.einsum("e,ea,eb,ecabo->eco", part.weight, a, b, g)
        to_1 = torch.einsum("ep,pno,eco->ecn", fixed.geometry.harmonics_p[part.type], outer, to_out)
        y = _inner_harmonic(part, fixed)
        total.index_add_(0, part.src, torch.einsum("eq,qin,ecn->eci", y, inner, to_1))
    return total.to(grad.dtype)


def gradient_for_radial(
    grad: Tensor, x: Tensor, phi_p: Tensor, phi_q: Tensor, fixed: Constants, of_p: bool
) -> Tensor:
    """From the gradient of the sum to that of phi_p, (T, K_1), or of phi_q, (N_in, K_3)."""
    total = fixed.edges.weight.new_zeros((phi_p if of_p else phi_q).shape)
    for part in _chunks(fixed.edges, grad):
        message = _messages(x, part, fixed)
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
    for part in chunks(len(edges.dst), like[0].numel() if len(like) else 1, _CHUNK):
        yield _Edges(*(t[part] for t in edges.tensors()[:4]))


def _messages(x: Tensor, edges: _Edges, fixed: Constants) -> Tensor:
    """The coupled terms of the edges, without radial functions: (E, mul, 2 l_out + 1)."""
    outer, inner = _coefficients(fixed.coupling, edges.weight)
    y = _inner_harmonic(edges, fixed)
    to_1 = torch.einsum("eq,qin,eci->ecn", y, inner, x[edges.src].to(y))
    return torch.einsum("ep,pno,ecn->eco", fixed.geometry.harmonics_p[edges.type], outer, to_1)


def _coefficients(coupling: Coupling, like: Tensor) -> tuple[Tensor, Tensor]:
    """C(l_out; l_p l_1) and C(l_1; l_q l_in)."""
    outer = clebsch_gordan(coupling.l_p, coupling.l_1, coupling.l_out)
    inner = clebsch_gordan(coupling.l_q, coupling.l_in, coupling.l_1)
    return torch.tensor(outer).to(like), torch.tensor(inner).to(like)


def _inner_harmonic(edges: _Edges, fixed: Constants) -> Tensor:
    """The mean over the signs, (E, 2 l_q + 1)."""
    geometry, coupling = fixed.geometry, fixed.coupling
    p, q_out, q_in = geometry.p_offsets[edges.type], geometry.q_out[edges.dst], geometry.q_in
    pairs = list(zip(coupling.signs[::2], coupling.signs[1::2], strict=True))

    def harmonics(offset: Tensor) -> list[Tensor]:
        v = p - offset if coupling.joint else offset
        return [spherical_harmonics((coupling.l_q,), v)[coupling.l_q]]

    (mean,) = mean_over_signs(harmonics, q_out, q_in[edges.src], pairs)
    return mean
