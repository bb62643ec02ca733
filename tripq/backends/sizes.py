"""Sizes of the stages of the recoupled evaluation, from which costs of back ends follow."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from tripq.filters.filter import PQFilter
from tripq.infra.kept import kept_with_owner
from tripq.so3.recoupling import clebsch_gordan


@dataclass(frozen=True)
class Stages:
    """Sizes of the recoupled evaluation of a filter, for one voxel and output direction.

    Attributes
    ----------
    embedding : int
        Harmonics times radial functions of the q-offset.
    outer : int
        The same of the p-offset.
    coupled, mixed : int
        Numbers after the q-coupling and after the mixing.
    coupling, mixing : int
        Multiply-adds of the two.
    p_dense, p_sparse : int
        Of the p-stage, for one neighbour: by matrices, and by Clebsch-Gordan coefficients that are
        not zero.
    p_joined : int
        Of mixing and p-stage by one matrix for each neighbour.
    """

    embedding: int
    outer: int
    coupled: int
    mixed: int
    coupling: int
    mixing: int
    p_dense: int
    p_sparse: int
    p_joined: int


@kept_with_owner
def stages_of(filter: PQFilter) -> Stages:
    """The sizes of a filter."""
    k_p, _, k_q = filter.radial
    inner: set[int] = set()
    coupled = mixed = coupling = mixing = p_dense = p_sparse = 0
    for m in filter.recoupling.mixings:
        n = 2 * m.l_1 + 1
        coupled += n * m.n_columns
        mixed += n * m.n_rows
        mixing += n * m.n_columns * m.n_rows
        for block in m.columns:
            inner.add(block.l)
            channels = filter.channels_in[block.channels]
            coupling += k_q * channels.mul * _nonzeros(block.l, channels.l, m.l_1)
        for block in m.rows:
            channels = filter.channels_out[block.channels]
            p_dense += channels.mul * k_p * n * (2 * channels.l + 1)
            p_sparse += channels.mul * (k_p * n + _nonzeros(block.l, m.l_1, channels.l))
    return Stages(
        embedding=k_q * sum(2 * l + 1 for l in inner),
        outer=k_p * sum(2 * l + 1 for l in {path.outer for path in filter.paths}),
        coupled=coupled,
        mixed=mixed,
        coupling=coupling,
        mixing=mixing,
        p_dense=p_dense,
        p_sparse=p_sparse,
        p_joined=coupled * filter.dim_out,
    )


@cache
def _nonzeros(l_a: int, l_b: int, l_c: int) -> int:
    return int(np.count_nonzero(np.abs(clebsch_gordan(l_a, l_b, l_c)) > 1e-12))
