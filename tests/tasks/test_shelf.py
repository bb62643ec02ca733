"""Scans in files are the scans that were put there, and take no memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.training.test_training import labelled_scan
from tripq.networks.conv import ConvSegmenter
from tripq.tasks.lesions.datasets import LabelledSubject
from tripq.tasks.lesions.segmentation import segment
from tripq.tasks.lesions.task import LesionTask
from tripq.tasks.shelf import Shelf
from tripq.training import Budget, PatchDataModule, train


def subject(seed: int = 0) -> LabelledSubject:
    scan = labelled_scan(seed)
    return LabelledSubject(f"sub-{seed:02}", scan.dwi, scan.lesion)


def nowhere() -> LabelledSubject:
    raise AssertionError("it was read again")


def test_a_scan_comes_back_as_it_was(tmp_path: Path) -> None:
    original = subject()
    kept = Shelf(tmp_path, 0, LabelledSubject).keep("a", lambda: original)
    again = Shelf(tmp_path, 0, LabelledSubject).keep("a", nowhere)
    for found in (kept, again):
        assert found.name == original.name
        assert repr(found) == repr(original)
        for name in ("signal", "mask", "b0", "b_values", "q", "affine"):
            np.testing.assert_array_equal(getattr(found.dwi, name), getattr(original.dwi, name))
        np.testing.assert_array_equal(found.lesion, original.lesion)


def test_what_fits_stays_in_memory(tmp_path: Path) -> None:
    original = subject()
    dwi = original.dwi
    size = sum(array.nbytes for array in (dwi.signal, dwi.mask, dwi.b0, original.lesion))
    shelf = Shelf(tmp_path / "shelf", 1.5 * size, LabelledSubject)
    assert shelf.keep("a", lambda: original) is original
    assert not (tmp_path / "shelf").exists()
    second = shelf.keep("b", lambda: subject(1))
    assert not second.dwi.signal.flags.owndata
    assert second.dwi.signal.flags.writeable is False
    assert [path.name for path in (tmp_path / "shelf").iterdir()] == ["b"]


def test_half_a_scan_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", full_disk)
        with pytest.raises(OSError, match="No space left"):
            Shelf(tmp_path, 0, LabelledSubject).keep("a", subject)
    assert not list((tmp_path / "a").iterdir())
    assert Shelf(tmp_path, 0, LabelledSubject).keep("a", subject).name == "sub-00"


def test_processes_that_put_the_same_scan_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All processes of a training do, and at about the same time."""
    put, puts = Shelf._put, []

    def disturbed(shelf: Shelf[LabelledSubject], key: str, kept: LabelledSubject) -> None:
        put(shelf, key, kept)
        puts.append(key)
        if len(puts) == 1:  # another one is about to replace the files
            (shelf.folder / key / "scan.json").unlink()

    monkeypatch.setattr(Shelf, "_put", disturbed)
    assert Shelf(tmp_path, 0, LabelledSubject).keep("a", subject).name == "sub-00"
    assert puts == ["a", "a"]


def test_training_learns_the_same_from_files(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, 0, LabelledSubject)
    maps = []
    for scans in (
        [subject(0), subject(1)],
        [shelf.keep("a", lambda: subject(0)), shelf.keep("b", lambda: subject(1))],
    ):
        network = ConvSegmenter(4, widths=(4,))
        for parameter in network.parameters():
            parameter.data.fill_(0.1)
        train(
            network, PatchDataModule(scans, LesionTask(), radius=2.6, box_size=6), Budget(steps=3)
        )
        maps.append(segment(network, scans[1].dwi))
    np.testing.assert_array_equal(maps[0], maps[1])
    assert maps[0].std() > 0
