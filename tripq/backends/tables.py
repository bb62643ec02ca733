"""Small tables that several back ends start from: embeddings, mixing matrices, orders."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tripq.filter import PQFilter
from tripq.graph import QSpace
from tripq.paths import Channels


def embed_q(p_offset: Tensor, q: QSpace, filter: PQFilter) -> dict[int, Tensor]:
    """Quadrature weight x phi_3 x inner harmonics: l -> (..., Q_out, K_3, 2 l + 1, Q_in)."""
    q_in, q_out = q.q_in.to(p_offset.dtype), q.q_out.to(p_offset.dtype)
    harmonics = filter.inner_harmonics(p_offset[..., None, None, :], q_out[:, None], q_in)
    phi = filter.phi_q_in(q_in.norm(dim=-1))
    weights = q.weights.to(p_offset.dtype)
    return {l: torch.einsum("oi,ik,...oim->...okmi", weights, phi, y) for l, y in harmonics.items()}


def embed_p(offsets: Tensor, filter: PQFilter) -> dict[int, Tensor]:
    """phi_1 x outer harmonics of the p-offsets: l -> (T, K_1, 2 l + 1)."""
    phi = filter.phi_p(offsets.norm(dim=-1))
    harmonics = filter.outer_harmonics(offsets)
    return {l: torch.einsum("tk,tm->tkm", phi, y) for l, y in harmonics.items()}


def mixing_at(q_out: Tensor, filter: PQFilter) -> list[Tensor]:
    """For each l_1 the mixing matrices at the lengths of `q_out`: (Q_out, columns, rows)."""
    phi = filter.phi_q_out(q_out.norm(dim=-1))
    return [torch.einsum("ok,kcr->ocr", phi, matrix) for matrix in filter.mixing_matrices()]


def ungrouped(channels: Sequence[Channels], device: torch.device) -> Tensor:
    """The order that puts components that stand group after group back in their places."""
    return torch.argsort(torch.tensor([i for c in channels for i in c.index], device=device))
