"""Rows of a batch: padding, and which rows it fills."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.strategies import RADIUS, table_of
from tripq import PQGraph


def test_rows_of_a_batch_end_in_zeros():
    q = table_of(0, 3)
    graph = PQGraph.merge(
        [PQGraph.from_points(np.zeros((n, 3)), q[:k], RADIUS) for n, k in ((2, 3), (1, 2))]
    )
    x = graph.stack([torch.ones(2, 3, 4), torch.ones(1, 2, 4)])
    assert x.shape == (3, 3, 4)
    assert x.sum(-1).tolist() == [[4.0] * 3, [4.0] * 3, [4.0, 4.0, 0.0]]
    assert graph.filled(x).tolist() == [[True] * 3, [True] * 3, [True, True, False]]
    assert graph.filled(x[:, 0]) is None
    assert PQGraph(graph.scans[:1]).filled(x[:2]) is None
    (_, a), (_, b) = graph.by_scan(x)
    assert (len(a), len(b)) == (2, 1)
    with pytest.raises(ValueError, match="the features have 3 rows, but the graph has 4"):
        graph.by_scan(x, [2, 2])


def test_rows_of_a_batch_are_filled_up_to_the_output_directions():
    q = table_of(0, 3)
    graph = PQGraph.merge(
        [PQGraph.from_points(np.zeros((n, 3)), q, 1.0, q_out=q[:k]) for n, k in ((2, 2), (1, 1))]
    )
    assert graph.filled(torch.ones(3, 2, 4)).tolist() == [[True] * 2, [True] * 2, [True, False]]
    assert graph.filled(torch.ones(3, 3, 4)) is None, "those of the input, which are as many"
    with pytest.raises(ValueError, match="the features have 4 directions, but the graph has 3"):
        graph.filled(torch.ones(3, 4, 4))
