"""Lists of edges against the edges that they list."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import seeds
from tripq.domain.adjacency import Adjacency


@given(seed=seeds, sizes=st.tuples(*[st.integers(1, 4)] * 3), n_edges=st.integers(0, 20))
def test_every_edge_is_listed_by_both_ends_and_by_type(seed, sizes, n_edges):
    """In the order in which they were given, where an end or a type has several."""
    rng = np.random.default_rng(seed)
    dst, src, type_ = (torch.from_numpy(rng.integers(0, n, n_edges)) for n in sizes)
    edges = Adjacency.build(dst, src, type_, *sizes)
    by_output, by_input, (starts, type_src, type_dst) = (
        edges.by_output,
        edges.by_input,
        edges.by_type,
    )
    for key, n, begins, listed in (
        (dst, sizes[0], by_output.starts, {by_output.other: src, by_output.type: type_}),
        (src, sizes[1], by_input.starts, {by_input.other: dst, by_input.type: type_}),
        (type_, sizes[2], starts, {type_src: src, type_dst: dst}),
    ):
        assert len(begins) == n + 1
        assert (begins[0], begins[-1]) == (0, n_edges)
        for found, given_ in listed.items():
            assert found.shape == (n_edges,)
            for i in range(n):
                assert found[begins[i] : begins[i + 1]].equal(given_[key == i])
