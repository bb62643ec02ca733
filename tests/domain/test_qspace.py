"""The q-space that voxels share: which directions are joined, and with which weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.domain.parts import scan_of
from tripq import PQGraph
from tripq.domain.qspace import QSpace

SHELLS = np.array([[0, 0, 0], [1.0, 0, 0], [0, 1.02, 0], [0, 0, 1.7], [1.68, 0, 0]])


def q_space(**options):
    return scan_of(PQGraph.from_points(np.zeros((1, 3)), SHELLS, 1.0, **options)).q


def test_every_direction_is_joined_with_every_direction():
    q = q_space()
    assert q.weights.equal(torch.full((5, 5), 0.2, dtype=torch.float64))
    assert q.reduction.equal(torch.full((1, 5), 0.2, dtype=torch.float64))
    assert q.q_in is q.q_out
    assert not q.resampled


def test_shells_are_complete_within_themselves():
    blocks = [torch.ones(1, 1), torch.full((2, 2), 0.5), torch.full((2, 2), 0.5)]
    q = q_space(q_edges="shell")
    assert q.weights.equal(torch.block_diag(*blocks).double())
    assert q.reduction.equal(q_space().reduction), "a reduction joins all shells"


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_shells_do_not_depend_on_the_unit_of_q(factor):
    scaled = PQGraph.from_points(np.zeros((1, 3)), factor * SHELLS, 1.0, q_edges="shell")
    assert scan_of(scaled).q.weights.equal(q_space(q_edges="shell").weights)


@pytest.mark.parametrize(("longer", "joined"), [(1.074, 4), (1.077, 2)])
def test_a_shell_is_as_wide_as_a_share_of_its_longer_vector(longer, joined):
    q = np.diag([1.0, longer, 0.0])[:2]
    scan = scan_of(PQGraph.from_points(np.zeros((1, 3)), q, 1.0, q_edges="shell"))
    assert int((scan.q.weights > 0).sum()) == joined


@pytest.mark.parametrize("as_given", [list, np.array, torch.tensor])
def test_given_q_edges(as_given):
    q = q_space(q_edges=as_given([[0, 0, 3], [1, 2, 3]]))
    expected = torch.zeros(5, 5).double()
    expected[0, [1, 2]] = 0.5
    expected[3, 3] = 1.0
    assert q.weights.equal(expected)


def test_another_output_sampling():
    q = q_space(q_out=SHELLS[3:] / 1.7, q_edges="shell")
    assert q.resampled
    expected = torch.zeros(2, 5).double()
    expected[:, [1, 2]] = 0.5
    assert q.weights.equal(expected)


def test_given_quadrature_weights_are_not_normalised():
    q = q_space(q_edges="shell", q_weights=[1.0, 2.0, 3.0, 4.0, 5.0])
    given = torch.tensor([1.0, 2, 3, 4, 5]).double()
    assert q.reduction.equal(given[None])
    assert q.weights.equal(given * (q_space(q_edges="shell").weights > 0))


def test_a_map_without_q_space_has_one_direction_of_length_0_and_weight_1():
    q = QSpace.none(torch.device("cpu"))
    assert q.q_in.equal(torch.zeros(1, 3).double())
    assert q.q_in is q.q_out
    assert not q.resampled
    for weights in (q.weights, q.reduction):
        assert weights.dtype == torch.float64
        assert weights.tolist() == [[1.0]]


def test_a_reduced_q_space_has_one_output_at_the_origin():
    q = q_space(q_edges="shell")
    assert q.reduced.q_out.equal(torch.zeros(1, 3).double())
    assert q.reduced.q_in is q.q_in
    assert q.reduced.weights.equal(q.reduction)
    assert q.q_max == pytest.approx(1.7)
    assert q_space(q_out=0.5 * SHELLS).q_max == pytest.approx(1.7)
    assert q_space(q_out=2 * SHELLS).q_max == pytest.approx(3.4)
