"""Arguments of the sums over edges between nodes: edges, geometry and couplings.

With N_in input nodes, N_out output nodes, E edges between them and T types of p-offsets:

* `NodeCsr`, the edges with their weights, (E,), listed by output node, input node and type;
* `Geometry`, the positions, (T, 3), (N_out, 3) and (N_in, 3), and harmonics of the p-offsets;
* `Term`, one coupling of orders as callers describe it, and `Coupling`, the same for kernels;
* `Constants`, the constants of the sum of one coupling: all that is not differentiated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tripq.domain.adjacency import listed_by


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
        output_starts, order = listed_by(dst, n_out)
        dst, src, type_, weight = dst[order], src[order], type_[order], weight[order]
        by_input, by_type = listed_by(src, n_in), listed_by(type_, n_types)
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


class Constants(NamedTuple):
    """The constants of the sum of one coupling."""

    geometry: Geometry
    edges: NodeCsr
    coupling: Coupling

    def shape(self, x: Tensor, phi_p: Tensor, phi_q: Tensor) -> tuple[int, ...]:
        """Shape of the sum, (N_out, mul, K_1, K_3, 2 l_out + 1)."""
        n_out, n_components = self.geometry.q_out.shape[0], 2 * self.coupling.l_out + 1
        return n_out, x.shape[1], phi_p.shape[1], phi_q.shape[1], n_components
