"""The task: what is shown, what is hidden, and that neighbours help."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.tasks.signal.conftest import fibres
from tripq.networks.blocks import graph_radius
from tripq.tasks.signal.network import SignalPredictor
from tripq.tasks.signal.task import FEWEST, MOST, SignalTask, spread
from tripq.training import Budget, PatchDataModule, score_scans, train


def patches(*scans: SimpleNamespace, **how: object) -> PatchDataModule:
    options: dict[str, object] = {"radius": 3.0, "box_size": 6, **how}
    return PatchDataModule(scans, SignalTask(), **options)  # type: ignore[arg-type]


def test_directions_are_shown_or_hidden() -> None:
    scan, task = fibres(0, (30, 4, 1)), SignalTask()
    numbers = set()
    for seed in range(60):
        hidden = task.hidden(scan, np.random.default_rng(seed))
        first, second, third = (np.isin(shell.indices, hidden).sum() for shell in scan.dwi.shells)
        numbers.add(30 - int(first))
        assert 0 not in hidden
        assert (int(second), int(third)) == (1, 0)
    assert min(numbers) == FEWEST
    assert 20 < max(numbers) <= MOST


def test_a_box_is_given_what_is_shown_and_wants_what_is_hidden() -> None:
    scan = fibres(0)
    coded = np.tile(np.arange(31, dtype=np.float32), (len(scan.dwi.b0), 1))
    scan.dwi.signal[:] = coded
    batch = patches(scan, n_boxes=2).first()
    (part,) = batch.graph.scans
    shown, hidden = batch.signal[0].long(), batch.target[0].long()
    assert sorted([*shown.tolist(), *hidden.tolist()]) == list(range(31))
    np.testing.assert_array_equal(part.q.q_in, scan.dwi.q[shown])
    np.testing.assert_array_equal(part.q.q_out, scan.dwi.q[hidden])


def test_rows_of_a_batch_end_in_nothing_known() -> None:
    task, batch = SignalTask(), patches(fibres(0), fibres(1, (12,)), n_boxes=6).first()
    known = ~batch.target.isnan()
    assert len(batch.graph.scans) == 2
    assert not known.all()
    assert known.any(dim=1).all()
    output = torch.zeros_like(batch.target, requires_grad=True)
    task.loss(output, batch.target).backward()
    assert output.grad is not None
    assert not output.grad[~known].any()
    error = torch.where(known, batch.target.nan_to_num(), 0)
    by_voxel = (error.square().sum(1) / known.sum(1)).sqrt()
    torch.testing.assert_close(task.loss(output.detach(), batch.target), by_voxel.mean())


def test_trials_show_fixed_numbers_of_directions() -> None:
    scan = fibres(0, (30, 12))
    shown = [
        [len(shell) - np.isin(shell.indices, hidden).sum() for shell in scan.dwi.shells]
        for hidden in SignalTask().trials(scan)
    ]
    assert shown == [[6, 6], [12, 12], [20, 12]]


def test_spread_directions_are_spread() -> None:
    q = fibres(0).dwi.q[1:]
    chosen = spread(q, 6, start=3)
    assert 3 in chosen
    cosines = np.abs(q[chosen] @ q[chosen].T) - np.eye(6)
    drawn = np.random.default_rng(0).permutation(30)[:6]
    assert cosines.max() < (np.abs(q[drawn] @ q[drawn].T) - np.eye(6)).max()


def test_too_few_directions_are_refused() -> None:
    with pytest.raises(ValueError, match="no shell has more than 6 directions"):
        patches(fibres(0, (6,)))


def test_a_process_without_a_scan_has_a_metric() -> None:
    metric = SignalTask().metric()
    assert not math.isfinite(float(metric.compute()))


def test_neighbours_help() -> None:
    torch.manual_seed(0)
    network = SignalPredictor(p_features="4x0e + 2x2e", p_radius=3.0).eval()
    unseen, task = [fibres(9)], SignalTask()
    before = score_scans(network, task, unseen)
    module = patches(*(fibres(i) for i in range(3)), radius=graph_radius(network))
    train(network, module, Budget(steps=16), learning_rate=1e-2)
    after = score_scans(network, task, unseen)
    noise = 0.05
    assert after**2 - noise**2 < 0.7 * (before**2 - noise**2)
