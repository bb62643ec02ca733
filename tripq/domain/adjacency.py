"""Edges of a graph, listed by the nodes at their ends and by their types."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Csr:
    """Edges listed by one of their ends.

    Attributes
    ----------
    starts : Tensor of shape (N + 1,), int64
        Where the edges of each node begin; those of the last one end at ``starts[N]``.
    other : Tensor of shape (E,), int64
        The node at the other end.
    type : Tensor of shape (E,), int64
        Row of the tables of harmonics and of radial functions.
    """

    starts: Tensor
    other: Tensor
    type: Tensor

    @classmethod
    def build(cls, end: Tensor, other: Tensor, type: Tensor, n_nodes: int) -> Csr:
        """List edges by `end`; edges of one node keep their order."""
        starts, order = listed_by(end, n_nodes)
        return cls(starts, other[order], type[order])


@dataclass(frozen=True, eq=False)
class Adjacency:
    """Edges listed by either end and by type.

    Attributes
    ----------
    by_output, by_input : Csr
        The edges of each output node and, with outputs as the other ends, of each input node.
    by_type : (Tensor of shape (T + 1,), Tensor of shape (E,), Tensor of shape (E,)), int64
        Where each type begins; input and output node of every edge, sorted by type.
    """

    by_output: Csr
    by_input: Csr
    by_type: tuple[Tensor, Tensor, Tensor]

    @classmethod
    def build(
        cls, dst: Tensor, src: Tensor, type: Tensor, n_out: int, n_in: int, n_types: int
    ) -> Adjacency:
        """List the edges from `src` to `dst`, all of shape (E,) and int64, on any device."""
        starts, order = listed_by(type, n_types)
        return cls(
            Csr.build(dst, src, type, n_out),
            Csr.build(src, dst, type, n_in),
            (starts, src[order], dst[order]),
        )


def listed_by(key: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Edges listed by a key (E,) below `number`, those of one key in their order.

    Returns
    -------
    starts : Tensor of shape (number + 1,), int64
        The edges of key n are ``order[starts[n] : starts[n + 1]]``.
    order : Tensor of shape (E,), int64
        The permutation that sorts the keys.

    Examples
    --------
    >>> import torch
    >>> listed_by(torch.tensor([2, 0, 2]), 3)
    (tensor([0, 1, 1, 3]), tensor([1, 0, 2]))
    """
    key, order = torch.sort(key, stable=True)
    return torch.searchsorted(key, torch.arange(number + 1, device=key.device)), order
