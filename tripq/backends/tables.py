"""Small tables shared by several back ends: embeddings, coefficients, mixing matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tripq.domain.qspace import QSpace
from tripq.filters.filter import PQFilter
from tripq.filters.sparse import SparseMatrix
from tripq.infra.kept import keep
from tripq.so3.paths import Path
from tripq.so3.recoupling import path_coupling

Index = NDArray[np.int64]


def embed_q(p_offset: Tensor, q: QSpace, filter: PQFilter) -> dict[int, Tensor]:
    """Quadrature weight x phi_3 x inner harmonics: l -> (..., Q_out, K_3, 2 l + 1, Q_in)."""
    q_in, q_out = q.q_in.to(p_offset.dtype), q.q_out.to(p_offset.dtype)
    harmonics = filter.inner_harmonics(p_offset[..., None, None, :], q_out[:, None], q_in)
    phi = filter.radial_q_in(q, p_offset.dtype)
    weights = q.weights.to(p_offset.dtype)
    return {l: torch.einsum("oi,ik,...oim->...okmi", weights, phi, y) for l, y in harmonics.items()}


def q_embedding(q: QSpace, filter: PQFilter, dtype: torch.dtype) -> dict[int, Tensor]:
    """`embed_q` of a filter whose inner harmonics are those of the q-offset; kept with `q`."""

    def make() -> dict[int, Tensor]:
        return embed_q(torch.zeros(3, dtype=dtype, device=q.q_in.device), q, filter)

    return keep(q, filter.constants_q(q, dtype), make)


def radial_q_out(q: QSpace, filter: PQFilter, dtype: torch.dtype) -> Tensor:
    """phi_q_out at the output directions, (Q_out, K_q_out); kept with `q`."""
    key = filter.constants_q(q, dtype)
    return keep(q, key and ("out", key), lambda: filter.phi_q_out(q.q_out.to(dtype).norm(dim=-1)))


@dataclass(frozen=True, eq=False)
class Terms:
    """Indices of the basis products that the weights of one path multiply; they broadcast.

    Attributes
    ----------
    path : Path
        The path.
    k_p, k_q_out, k_q_in : ndarrays of int
        Radial functions.
    m_p, m_q : ndarrays of int
        Components of the outer and the inner harmonic, from 0.
    output, input : ndarrays of int
        Components of the features.
    """

    path: Path
    k_p: Index
    k_q_out: Index
    k_q_in: Index
    m_p: Index
    m_q: Index
    output: Index
    input: Index


def coefficient_matrix(
    filter: PQFilter, size: int, place: Callable[[Terms], Index]
) -> SparseMatrix:
    """The matrix from the weights to the coefficients of all products of harmonics.

    Parameters
    ----------
    filter : PQFilter
        With its paths.
    size : int
        How many coefficients there are.
    place : callable
        Positions of the weights of the given terms among them.
    """
    rows, columns, values = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0)]
    first = 0
    for path, weight in filter.path_weights():
        coupling = path_coupling(path)
        p, q, i, o = coupling.nonzero()
        u, v, a, b, c = (n.reshape(-1, 1) for n in np.indices(weight.shape))
        channels_in, channels_out = filter.channels_of(path)
        index_in = np.asarray(filter.channels_in[channels_in].index)
        index_out = np.asarray(filter.channels_out[channels_out].index)
        output = index_out[u * (2 * path.l_out + 1) + o]
        input = index_in[v * (2 * path.l_in + 1) + i]
        terms = Terms(path, a, b, c, p, q, output, input)
        number = first + np.arange(weight.numel())[:, None]
        for whole, part in (
            (rows, place(terms)),
            (columns, number),
            (values, coupling[p, q, i, o]),
        ):
            whole.append(np.broadcast_to(part, (weight.numel(), len(p))).ravel())
        first += weight.numel()
    return SparseMatrix.of(
        (size, first), np.concatenate(rows), np.concatenate(columns), np.concatenate(values)
    )


def mixing_at(q: QSpace, filter: PQFilter, dtype: torch.dtype) -> list[Tensor]:
    """For each l_1 the mixing matrices at the output directions: (Q_out, columns, rows)."""
    phi = radial_q_out(q, filter, dtype)
    return [torch.einsum("ok,kcr->ocr", phi, matrix) for matrix in filter.mixing_matrices()]
