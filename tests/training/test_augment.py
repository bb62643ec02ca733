"""Augmented boxes: the same voxels and targets, another noise, bias and table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.training.test_training import labelled_scan
from tripq.infra.rank import Rank
from tripq.scans import DWI
from tripq.simulate import GradientTable
from tripq.tasks.lesions.config import LesionConfig
from tripq.tasks.lesions.task import LesionTask
from tripq.tasks.tissue.config import TissueConfig
from tripq.training import Augmentation, PatchDataModule, PatchDataset
from tripq.training.config import TrainingConfig, parse_config

NOTHING = Augmentation(noise=0.0, bias=0.0, b0_error=0.0, dropped=0.0, field=0.0, contrast=0.0)


def box(n_directions: int = 12, level: float = 0.5) -> DWI:
    """A cube of uniform tissue, brighter on one side, with two shells."""
    table = GradientTable.from_shells([1000.0, 2000.0], [n_directions, 7])
    mask = np.ones((12, 12, 12), bool)
    signal = np.full((mask.size, len(table)), level, np.float32)
    signal[:, 0] = 1.0
    length = np.sqrt(table.b_values / 1000)[:, None]
    return DWI(
        signal=signal,
        b_values=table.b_values,
        q=length * np.where(table.b0[:, None], 0, table.directions),
        mask=mask,
        affine=np.diag([2.0, 2.0, 2.0, 1.0]),
        b0=np.where(np.indices(mask.shape)[0] < 6, 500, 2000).ravel().astype(np.float32),
    )


def changed(dwi: DWI, augmentation: Augmentation, key: int = 0) -> DWI:
    return augmentation(dwi, np.random.default_rng(key), np.random.default_rng(key + 100))


def patches(**options: object) -> PatchDataset:
    scans = [labelled_scan(0), labelled_scan(1)]
    how = {"radius": 2.6, "box_size": 8, "n_boxes": 3, **options}
    return PatchDataModule(scans, LesionTask(), **how).patches  # type: ignore[arg-type]


def test_nothing_changes_nothing() -> None:
    before = box()
    after = changed(before, NOTHING)
    np.testing.assert_array_equal(after.signal, before.signal)
    np.testing.assert_array_equal(after.q, before.q)
    np.testing.assert_array_equal(after.b0, before.b0)


def test_a_receive_field_and_an_echo_time_change_b0_alone() -> None:
    before = replace(box(), b0=np.linspace(200, 600, 1728, dtype=np.float32))
    after = changed(before, replace(NOTHING, contrast=0.5))
    np.testing.assert_array_equal(after.signal, before.signal)
    ratio = np.log(after.b0 / np.median(before.b0)) / np.log(before.b0 / np.median(before.b0))
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)
    assert abs(ratio[0] - 1) > 0.01

    after = changed(before, replace(NOTHING, field=0.3))
    np.testing.assert_array_equal(after.signal, before.signal)
    ratio = after.b0 / before.b0
    assert 0.7 <= ratio.min() < 0.99
    assert 1.01 < ratio.max() <= 1.3
    assert ratio.min() + ratio.max() == pytest.approx(2)


def test_directions_are_left_out_of_every_shell_and_the_table_follows() -> None:
    before = box()
    coded = replace(before, signal=np.tile(np.arange(20, dtype=np.float32), (1728, 1)) + 1)
    counts = set()
    for key in range(20):
        after = changed(coded, replace(NOTHING, dropped=0.7), key)
        columns = after.signal[0].astype(int) - 1
        np.testing.assert_array_equal(after.q, before.q[columns])
        np.testing.assert_array_equal(after.b_values, before.b_values[columns])
        assert columns[0] == 0
        many, few = (len(shell) for shell in after.shells)
        assert 6 <= many <= 12
        assert 6 <= few <= 7
        counts.add(many)
    assert len(counts) > 4
    assert len(changed(box(6), replace(NOTHING, dropped=0.9)).shells[0]) == 6


def test_noise_is_uniform_in_the_unit_of_the_scanner() -> None:
    """Four times as much in the half of the box whose b0 is a fourth."""
    before = replace(box(), b0_volumes=100)  # so many that their mean has little noise
    after = changed(before, replace(NOTHING, noise=0.04))
    spread = after.signal[:, 1:].std(axis=1)
    dark, bright = (spread[before.b0 == level].mean() for level in (500, 2000))
    assert dark / bright == pytest.approx(4, rel=0.1)
    assert 0 < bright < 0.04
    assert (after.signal[:, 0] == 1).all()
    silent = changed(box(level=0.0), replace(NOTHING, noise=0.04))
    assert silent.signal[:, 1:].min() > 0  # the floor of magnitudes


def test_bias_and_error_of_b0_are_the_same_for_all_volumes() -> None:
    after = changed(box(), replace(NOTHING, bias=0.05))
    ratio = after.signal[:, 1:] / 0.5
    np.testing.assert_allclose(ratio, np.repeat(ratio[:, :1], 19, axis=1), rtol=1e-6)
    assert 1e-3 < np.ptp(ratio) / 2 < 0.05
    assert ratio.mean() == pytest.approx(1, abs=1e-3)
    scaled = changed(box(), replace(NOTHING, b0_error=0.03)).signal[:, 1:] / 0.5
    assert np.ptp(scaled) < 1e-6
    assert scaled.mean() != pytest.approx(1, abs=1e-4)


def test_voxels_and_targets_are_those_of_the_boxes() -> None:
    for plain, other in zip(
        _first(patches()), _first(patches(augment=Augmentation(dropped=0.0))), strict=True
    ):
        assert torch.equal(plain.target, other.target)
        assert torch.equal(plain.graph.p, other.graph.p)
        assert not torch.equal(plain.signal, other.signal)


def test_the_stream_resumes_at_any_batch_and_is_shared_among_processes() -> None:
    stream = patches(augment=Augmentation())
    batches = _first(stream, 4)
    (resumed,) = _first(stream.starting_at(3), 1)
    assert torch.equal(resumed.signal, batches[3].signal)
    assert not torch.equal(batches[0].signal, batches[1].signal)
    parts = [_first(stream.part_of(Rank(rank, 3)), 1)[0] for rank in range(3)]
    assert sum(len(part.signal) for part in parts) == len(batches[0].signal)
    whole = batches[0].signal
    assert all((whole[:, 1] == part.signal[0, 1]).any() for part in parts)


def test_boxes_of_one_scan_still_become_one_graph() -> None:
    scan = labelled_scan(0)
    table = GradientTable.from_shells([1000.0], [12])
    signal = np.full((len(scan.lesion), 13), 0.5, np.float32)
    signal[:, 0] = 1
    scan.dwi = replace(scan.dwi, signal=signal, b_values=table.b_values, q=table.directions * 1.0)
    module = PatchDataModule(
        [scan], LesionTask(), radius=2.6, n_boxes=3, augment=Augmentation(dropped=0.5)
    )
    directions = set()
    for batch in _first(module.patches, 6):
        assert len(batch.graph.scans) == 1
        directions.add(batch.signal.shape[1])
    assert len(directions) > 1


def test_batch_norms_settle_on_scans_as_they_are() -> None:
    plain, other = patches(), patches(augment=Augmentation())
    ((one,), (two,)) = (_first(stream.anywhere(), 1) for stream in (plain, other))
    assert torch.equal(one.signal, two.signal)


def test_numbers_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match=r"augmentation: dropped=1\.0 must be from 0 to below 1"):
        Augmentation(dropped=1.0)
    with pytest.raises(ValueError, match="noise=-1"):
        Augmentation(noise=-1)


def _first(stream: PatchDataset, n: int = 2) -> list:  # type: ignore[type-arg]
    batches = iter(stream)
    return [next(batches) for _ in range(n)]


@pytest.mark.parametrize("kind", [LesionConfig, TissueConfig])
def test_the_settings_of_a_segmentation_switch_it_on(kind: type[TrainingConfig]) -> None:
    assert kind().training.augmentation is None
    switched = parse_config("[training]\naugment = true", "train.toml", kind)
    assert switched.training.augmentation == Augmentation()
