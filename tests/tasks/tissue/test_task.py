"""The loss counts what is labelled, and the network learns from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from tests.tasks.tissue.conftest import head
from tripq.networks.blocks import graph_radius
from tripq.networks.encoder import VoxelNetwork
from tripq.tasks.tissue.classes import UNLABELLED
from tripq.tasks.tissue.task import TissueTask
from tripq.training import Budget, PatchDataModule, score_scans, train

TASK = TissueTask((0.5, 0.3, 0.15, 0.05))


def batch(number: int = 40, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    logits = torch.tensor(rng.normal(size=(number, 4)), dtype=torch.float32, requires_grad=True)
    return logits, torch.tensor(rng.integers(-1, 4, number), dtype=torch.float32)


def test_the_loss_is_that_of_the_formula() -> None:
    logits, target = batch()
    known = (target >= 0).numpy()
    p = logits.detach().softmax(dim=1).numpy()[known]
    t = np.eye(4)[target.numpy()[known].astype(int)]
    entropy = -(t * np.array(TASK.weights) * np.log(p)).sum() / known.sum()
    dice = 2 * (p * t).sum(axis=0) / (p + t).sum(axis=0)
    loss = TASK.loss(logits.detach(), target)
    assert float(loss) == pytest.approx(entropy + 1 - dice.mean(), rel=1e-5)


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_weights_balance_the_classes(balance: float) -> None:
    task = replace(TASK, balance=balance)
    shares = np.array(task.fractions) * np.array(task.weights)
    expected = np.array(task.fractions) ** (1 - balance)
    np.testing.assert_allclose(shares, expected / expected.sum())


def test_fractions_are_those_of_the_labelled_voxels() -> None:
    scans = [head(1), head(2)]
    labels = np.concatenate([scan.labels for scan in scans])
    task = TissueTask.of(scans, 5)
    counts = np.bincount(labels[labels >= 0], minlength=5)
    np.testing.assert_allclose(task.fractions, (counts + 0.5) / (counts + 0.5).sum())
    assert counts[4] == 0
    assert np.isfinite(task.weights).all()


def test_voxels_without_a_label_do_not_count() -> None:
    logits, target = batch()
    TASK.loss(logits, target).backward()
    assert logits.grad is not None
    assert not logits.grad[target < 0].any()
    assert logits.grad[target >= 0].any(dim=1).all()
    labelled = target >= 0
    torch.testing.assert_close(
        TASK.loss(logits, target), TASK.loss(logits[labelled], target[labelled])
    )


def test_a_batch_without_a_label_has_no_gradient() -> None:
    logits, target = batch()
    loss = TASK.loss(logits, torch.full_like(target, UNLABELLED))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_a_class_that_is_missing_in_a_batch_is_not_punished() -> None:
    target = torch.tensor([0.0, 0, 1, 1])
    logits = 40 * torch.nn.functional.one_hot(target.long(), 4).float()
    assert float(TASK.loss(logits, target)) == pytest.approx(0, abs=1e-6)
    logits.requires_grad_()
    TASK.loss(logits, target[:1].expand(4)).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_one_class_has_nothing_to_learn() -> None:
    logits = torch.randn(6, 1, requires_grad=True)
    loss = TissueTask((1.0,)).loss(logits, torch.zeros(6))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros(6, 1))


def test_the_score_is_the_mean_dice_of_the_classes_that_are_there() -> None:
    logits, target = batch(60)
    logits = logits.detach()
    target[target == 3] = UNLABELLED
    logits[:, 3] = -10  # neither labelled nor found
    metric = TASK.metric()
    for part in (slice(0, 25), slice(25, 60)):
        metric.update(TASK.prediction(logits[part]), target[part].to(torch.int8))
    found, known = logits.argmax(dim=1).numpy(), target.numpy()
    found = found[known >= 0]
    known = known[known >= 0]
    dice = [
        2 * ((found == c) & (known == c)).sum() / ((found == c).sum() + (known == c).sum())
        for c in range(3)
    ]
    assert float(metric.compute()) == pytest.approx(np.mean(dice), rel=1e-5)


def test_a_process_without_a_scan_has_a_score() -> None:
    assert float(TASK.metric().compute()) == 0


@pytest.mark.gpu
def test_the_score_of_a_device_is_that_of_the_cpu() -> None:
    network, scan = small().eval(), head(0)
    here = score_scans(network, TASK, [scan])
    assert score_scans(network.cuda(), TASK, [scan], device="cuda") == pytest.approx(here, abs=0.02)


def test_boxes_look_for_the_rarest_class() -> None:
    scan = head(0)
    np.testing.assert_array_equal(TASK.focus(scan), scan.labels == 3)
    nothing = replace(scan, labels=np.full_like(scan.labels, UNLABELLED))
    assert not TASK.focus(nothing).any()


def test_scans_without_a_label_are_refused() -> None:
    scan = head(0)
    nothing = replace(scan, labels=np.full_like(scan.labels, UNLABELLED))
    with pytest.raises(ValueError, match="none of the 1 training scans has a labelled voxel"):
        PatchDataModule([nothing], TASK, radius=3.0)


def small() -> VoxelNetwork:
    torch.manual_seed(0)
    return VoxelNetwork("4x0e", q_features="6x0e + 3x2e", p_features="6x0e", n_p_layers=1)


def test_an_untrained_network_gives_the_weighted_fractions() -> None:
    network = small()
    TASK.initialise(network, PatchDataModule([head(0)], TASK, radius=3.0, box_size=6).first())
    assert network.head.bias is not None
    shares = np.array(TASK.fractions) * np.array(TASK.weights)
    np.testing.assert_allclose(network.head.bias.detach().softmax(dim=0), shares, rtol=1e-5)


def test_it_learns_what_holds_for_turned_heads_and_other_tables(few_settling: None) -> None:
    network, scans = small(), [head(seed) for seed in (1, 2)]
    task = TissueTask.of(scans, 4)
    turn = Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix()
    unseen = [head(7), head(8, directions=20, turn=turn)]
    assert score_scans(network.eval(), task, unseen) < 0.3
    patches = PatchDataModule(scans, task, radius=graph_radius(network), box_size=9)
    train(network, patches, Budget(steps=16), learning_rate=2e-2)
    for scan in unseen:
        assert score_scans(network, task, [scan]) > 0.6
