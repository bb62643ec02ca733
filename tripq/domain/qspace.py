"""The q-space that all voxels of a scan share: directions, q-edges and quadrature weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tripq.domain.checks import coordinates, vectors_of, weights_of
from tripq.domain.quadrature import exact_order, shell_shares
from tripq.infra.kept import kept, kept_property, ordinary_tensors

QEdges = Literal["full", "shell"]

#: q-vectors whose lengths differ by less than this share of the larger one are on one shell: 7 %
#: in |q| is 14 % in b, more than the spread within a shell and less than the step between shells.
SHELL_TOLERANCE = 0.07


@dataclass(frozen=True, eq=False)
class QSpace:
    """The q-space shared by all voxels of a scan: directions in, directions out, q-edges.

    Attributes
    ----------
    q_in : Tensor of shape (Q_in, 3), float64
        q-vectors of the input features, in world axes, |q| = sqrt(b / b_ref).
    q_out : Tensor of shape (Q_out, 3), float64
        q-vectors of the output features.
    resampled : bool
        Whether the output has a separate sampling.
    weights : Tensor of shape (Q_out, Q_in), float64
        Quadrature weight of each q-edge, 0 where there is no edge.
    reduction : Tensor of shape (1, Q_in), float64
        Quadrature weights where q-space is reduced to a single output.
    given : bool
        Whether the user gave the weights, which are then used as they are.
    shares : Tensor of shape (Q_in,), float64, or None
        Of an integral (`integral`): the share of its shell that each input direction represents.
        None for the weights as they are.
    """

    q_in: Tensor
    q_out: Tensor
    resampled: bool
    weights: Tensor
    reduction: Tensor
    given: bool = False
    shares: Tensor | None = None

    @classmethod
    @kept
    def none(cls, device: torch.device) -> QSpace:
        """The q-space of a map without one: a single direction, of length 0."""
        origin = torch.zeros(1, 3, dtype=torch.float64, device=device)
        one = torch.ones(1, 1, dtype=torch.float64, device=device)
        return cls(origin, origin, False, one, one)

    @ordinary_tensors()
    def to_outputs(self, part: slice) -> QSpace:
        """The q-edges to some of the outputs; itself, with all it has kept, for all of them."""
        if part == slice(0, len(self.q_out)):
            return self
        return replace(self, q_out=self.q_out[part], weights=self.weights[part])

    @kept_property
    def reduced(self) -> QSpace:
        """The same input, joined to a single output at q = 0."""
        origin = torch.zeros_like(self.q_in[:1])
        return QSpace(self.q_in, origin, True, self.reduction, self.reduction, self.given)

    @kept_property
    def expanded(self) -> QSpace:
        """A single input at q = 0, joined to every output direction with weight 1."""
        origin = torch.zeros_like(self.q_in[:1])
        weights = torch.ones_like(self.q_out[:, :1])
        return QSpace(origin, self.q_out, True, weights, weights.new_ones(1, 1))

    @kept_property
    def integral(self) -> QSpace:
        """The same directions with weights of an integral over q; as it is, if they were given.

        On each shell the weight of a direction is the share of the sphere that it represents, and
        the weights of the directions that an output is joined with have the sum 1.  Across shells
        the filter takes care: it divides each radial function of |q_in| by the sum of its values
        on the shells.  The weights are constants: no gradient reaches q through them.
        """
        if self.given:
            return self
        shares = self.shells.shares
        joined = (self.weights != 0) * shares
        member = self.shells.member.to(joined.dtype)
        of_shell = (joined @ member.T).clamp(min=torch.finfo(joined.dtype).tiny)
        return replace(
            self, weights=joined / (of_shell @ member), reduction=shares[None], shares=shares
        )

    @kept_property
    def shells(self) -> QShells:
        """The shells of the input directions."""
        return QShells.of(self.q_in)

    @kept_property
    def q_max(self) -> float:
        """The largest |q|."""
        return longest(torch.cat([self.q_in, self.q_out]))


@dataclass(frozen=True, eq=False)
class QShells:
    """Directions of nearly the same length, and the share of the shell that each represents.

    Attributes
    ----------
    member : Tensor of shape (S, Q), bool
        The directions of each shell, by ascending length; see `SHELL_TOLERANCE`.
    shares : Tensor of shape (Q,), float64
        The share of its shell that a direction represents; see
        `tripq.domain.quadrature.shell_shares`.
    orders : tuple of int
        The even order up to which each shell integrates harmonics exactly; 0 for that of q = 0.
    """

    member: Tensor
    shares: Tensor
    orders: tuple[int, ...]

    @classmethod
    def of(cls, q: Tensor) -> QShells:
        """Those of q-vectors (Q, 3)."""
        vectors = coordinates(q)
        lengths = np.linalg.norm(vectors, axis=1)
        order = np.argsort(lengths, kind="stable")
        steps = np.diff(lengths[order]) > SHELL_TOLERANCE * lengths[order][1:]
        number = np.empty(len(order), np.int64)
        number[order] = np.concatenate([[0], np.cumsum(steps)])
        shares, orders = np.empty(len(order)), []
        for shell in range(int(number.max()) + 1):
            some = number == shell
            shares[some] = shell_shares(vectors[some])
            orders.append(exact_order(vectors[some], shares[some]) if lengths[some].any() else 0)
        member = torch.from_numpy(number == np.arange(len(orders))[:, None])
        return cls(member.to(q.device), torch.from_numpy(shares).to(q.device), tuple(orders))


def longest(q: Tensor) -> float:
    """The largest length of vectors (n, 3); 0 if there are none."""
    return float(q.detach().norm(dim=-1).max()) if len(q) else 0.0


def shared_q_space(
    q: ArrayLike | Tensor | None,
    q_edges: QEdges | ArrayLike | Tensor,
    q_out: ArrayLike | Tensor | None,
    q_weights: ArrayLike | Tensor | None,
) -> QSpace | None:
    """The q-space of the arguments of `PQGraph.from_grid`; None where ``q`` is None.

    Raises
    ------
    ValueError
        If an argument is invalid.
    """
    if q is None:
        if q_out is not None or q_weights is not None:
            raise ValueError("q_out and q_weights need q: this graph has no q-space")
        return None
    q_in = vectors_of(q, "q")
    if not len(q_in):
        raise ValueError("q holds no directions: for maps without q-space give q=None")
    q_to = q_in if q_out is None else vectors_of(q_out, "q_out")
    joined = _joined_directions(q_to, q_in, q_edges)
    if q_weights is None:
        weights = joined / joined.sum(dim=1, keepdim=True).clamp(min=1)
        reduction = torch.full((1, len(q_in)), 1 / max(len(q_in), 1), dtype=torch.float64)
    else:
        given = weights_of(q_weights, len(q_in))
        weights, reduction = joined * given, given[None, :]
    return QSpace(q_in, q_to, q_out is not None, weights, reduction, q_weights is not None)


def _joined_directions(q_out: Tensor, q_in: Tensor, q_edges: QEdges | ArrayLike | Tensor) -> Tensor:
    """1.0 where two directions are joined, else 0.0; shape (Q_out, Q_in)."""
    shape = (len(q_out), len(q_in))
    if isinstance(q_edges, str):
        if q_edges == "full":
            return torch.ones(shape, dtype=torch.float64)
        if q_edges == "shell":
            return same_shell(q_out[:, None], q_in[None, :]).to(torch.float64)
        raise ValueError(f'q_edges must be "full", "shell" or pairs of indices, not {q_edges!r}')
    pairs = index_pairs(q_edges, *shape)
    joined = torch.zeros(shape, dtype=torch.float64)
    joined[pairs[0], pairs[1]] = 1.0
    return joined


def same_shell(q_a: Tensor, q_b: Tensor) -> Tensor:
    """Whether q-vectors (..., 3) lie on one shell, (...): see `SHELL_TOLERANCE`."""
    a, b = q_a.detach().norm(dim=-1), q_b.detach().norm(dim=-1)
    return (a - b).abs() <= SHELL_TOLERANCE * torch.maximum(a, b)


def index_pairs(q_edges: ArrayLike | Tensor, n_out: int, n_in: int) -> Tensor:
    """Pairs of indices (2, M), outputs then inputs, or a `ValueError` if one does not exist."""
    pairs = torch.as_tensor(np.asarray(q_edges))
    if pairs.ndim != 2 or pairs.shape[0] != 2 or pairs.dtype.is_floating_point:
        raise ValueError("given q_edges must be integers of shape (2, M): outputs, then inputs")
    pairs = pairs.to(torch.int64)
    for row, number, name in ((pairs[0], n_out, "output"), (pairs[1], n_in, "input")):
        if len(row) and (int(row.min()) < 0 or int(row.max()) >= number):
            raise ValueError(f"q_edges names an {name} outside 0..{number - 1}")
    return pairs
