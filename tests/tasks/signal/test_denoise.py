"""Denoising: a volume does not see itself, and the result turns with the head."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from tests.tasks.signal.conftest import fibres
from tests.tasks.signal.test_network import small, table
from tripq.domain.graph import PQGraph
from tripq.networks.blocks import predict_blocks
from tripq.scans import DWI, DWIError
from tripq.tasks.signal.denoise import FOLDS, Denoiser, check_denoising, split_folds
from tripq.tasks.signal.network import SignalPredictor
from tripq.testing import assert_equivariant


def denoised(dwi: DWI, **how: int) -> np.ndarray:
    return predict_blocks(Denoiser(small()).eval(), dwi, **how)


def test_noise_of_a_volume_does_not_reach_its_own_prediction() -> None:
    dwi = fibres(0, (12, 9)).dwi
    before = denoised(dwi)
    for column in (1, 5, 14):
        signal = dwi.signal.copy()
        signal[:, column] += np.random.default_rng(0).normal(size=len(signal)).astype(np.float32)
        changed = np.abs(denoised(replace(dwi, signal=signal)) - before).max(axis=0)
        assert changed[column] == 0
        shell = next(shell for shell in dwi.shells if column in shell.indices)
        assert (changed[shell.indices] > 1e-3).sum() >= len(shell) - 2  # it and one of its fold


def test_the_result_turns_with_the_head() -> None:
    assert_equivariant(Denoiser(small()), domain="grid", seeds=2)


def test_blocks_do_not_matter() -> None:
    dwi = fibres(0, (9,)).dwi
    whole, parts = (denoised(dwi, max_voxels=n) for n in (10_000, 250))
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_scans_of_a_batch_do_not_know_each_other() -> None:
    network = Denoiser(small())
    scans = [fibres(0, (9,)).dwi, fibres(1, (12, 8)).dwi]
    graphs = [PQGraph.from_grid(dwi.mask, dwi.affine, dwi.q, 3.0) for dwi in scans]
    signals = [torch.from_numpy(dwi.signal) for dwi in scans]
    graph = PQGraph.merge(graphs)
    together = network(graph.stack(signals), graph)
    for dwi, one, rows in zip(
        scans, signals, together.split([len(s) for s in signals]), strict=True
    ):
        alone = network(one, PQGraph.from_grid(dwi.mask, dwi.affine, dwi.q, 3.0))
        torch.testing.assert_close(rows[:, : alone.shape[1]], alone)


@pytest.mark.parametrize("number", [3, 8, 12, 61])
def test_folds_are_a_partition_that_turns_with_the_directions(number: int) -> None:
    q = table(number)[1:]
    folds = split_folds(q)
    assert sorted(np.concatenate(folds)) == list(range(number))
    sizes = [len(fold) for fold in folds]
    assert len(folds) == min(FOLDS, number)
    assert max(sizes) - min(sizes) <= 1
    turn = Rotation.random(random_state=0).as_matrix()
    signs = np.where(np.arange(number) % 2, 1, -1)[:, None]
    for fold, turned in zip(folds, split_folds(signs * q @ turn.T), strict=True):
        np.testing.assert_array_equal(fold, turned)


def test_what_is_near_a_direction_is_in_other_folds() -> None:
    q = table(60)[1:]
    cosines = np.abs(q @ q.T) - np.eye(60)
    for fold in split_folds(q):
        others = np.setdiff1d(np.arange(60), fold)
        assert (cosines[fold][:, others].max(axis=1) > cosines[fold][:, fold].max(axis=1)).all()


def test_repetitions_of_a_direction_predict_each_other() -> None:
    for fold in split_folds(np.repeat(table(7)[1:], 3, axis=0)):
        assert len(np.unique(fold // 3)) == len(fold)


def test_too_few_directions_are_refused() -> None:
    check_denoising(fibres(0, (7, 9)).dwi)
    with pytest.raises(DWIError, match=r"b = 2000 s/mm2 has 6 directions.* --shell"):
        check_denoising(fibres(0, (7, 6)).dwi)
    alone = fibres(0, (7,)).dwi.with_samples(np.array([0]))
    with pytest.raises(DWIError, match="no diffusion-weighted volume"):
        check_denoising(alone)


def test_less_noise_is_left() -> None:
    noisy, clean = (fibres(0, (64,), noise=noise).dwi for noise in (0.05, 0.0))
    found = predict_blocks(Denoiser(SignalPredictor()).eval(), noisy)
    before, after = (np.square(x - clean.signal)[:, 1:].mean() for x in (noisy.signal, found))
    assert after < 0.3 * before  # 15 coefficients of 56 directions
