"""Scores of predicted scans: what is wrong with the signal, the tensor and its direction."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tasks.signal.test_network import table
from tripq.scans import DWI, write_dwi
from tripq.scans.bids import BIDSError
from tripq.tasks.signal.scoring import Differences, SignalScoring, same_directions


def tensors(angle: float, q: np.ndarray, isotropic: float = 0.3) -> DWI:
    """Two voxels: a fibre in the xy plane at an angle to x in degrees, and a ball."""
    along = [math.cos(math.radians(angle)), math.sin(math.radians(angle)), 0]
    lengths = (q**2).sum(axis=1)
    fibre = np.exp(-isotropic * lengths - 1.2 * (q @ along) ** 2)
    return DWI(
        signal=np.stack([fibre, np.exp(-0.7 * lengths)]).astype(np.float32),
        b_values=1000 * lengths,
        q=q,
        mask=np.ones((2, 1, 1), bool),
        affine=np.diag([2.0, 2.0, 2.0, 1.0]),
        b0=np.full(2, 1000, np.float32),
    )


def test_a_turned_fibre_has_an_error_of_its_angle_alone() -> None:
    q, other = table(20), table(31)
    found, known = tensors(25.0, q), tensors(5.0, other)
    difference = Differences.of(found, known, same_directions(q, other))
    np.testing.assert_allclose(difference.angles, [20], atol=1e-3)
    np.testing.assert_allclose(difference.fa, 0, atol=1e-5)
    np.testing.assert_allclose(difference.md, 0, atol=1e-9)


def test_an_error_of_the_signal_is_one_in_decibels() -> None:
    known = tensors(0.0, table(20))
    found = replace(known, signal=known.signal + np.float32(0.01))
    pairs = same_directions(known.q, known.q)
    scores = Differences.of(found, known, pairs).scores
    assert scores["rms_error"] == pytest.approx(0.01, rel=1e-4)
    assert scores["psnr"] == pytest.approx(40, abs=1e-3)
    assert Differences.of(known, known, pairs).scores["psnr"] == math.inf


def test_the_mean_diffusivity_of_an_error_is_known() -> None:
    found, known = (tensors(0.0, table(20), isotropic=x) for x in (0.4, 0.3))
    difference = Differences.of(found, known, same_directions(found.q, known.q))
    np.testing.assert_allclose(difference.md, [1e-4, 0], atol=1e-9)


def test_scans_are_scored_together_as_one() -> None:
    known = tensors(0.0, table(20))
    parts = [
        Differences.of(tensors(angle, table(20)), known, same_directions(known.q, known.q))
        for angle in (10.0, 30.0)
    ]
    joined = Differences.joined(parts).scores
    assert joined["main_direction_error"] == pytest.approx(20, abs=1e-3)
    squares = [part.scores["rms_error"] ** 2 for part in parts]
    assert joined["rms_error"] == pytest.approx(np.mean(squares) ** 0.5)
    few = tensors(0.0, table(5))
    alone = Differences.of(few, few, same_directions(few.q, few.q))
    assert math.isnan(Differences.joined([*parts, alone]).scores["fa_error"])


def test_tensors_are_of_all_directions_of_the_shells_of_both(tmp_path: Path) -> None:
    inner = table(20)
    predicted = tensors(0.0, inner[:13])
    measured = tensors(0.0, np.concatenate([inner[:9], table(3, 9)[4:]]))  # a shell more
    for root, end, dwi in (("maps", "_desc-denoised", predicted), ("data", "", measured)):
        path = tmp_path / root / f"sub-1/dwi/sub-1{end}_dwi.nii.gz"
        path.parent.mkdir(parents=True)
        write_dwi(dwi, path)
    scoring = SignalScoring()
    (found,) = scoring.find_maps(tmp_path / "maps", ())
    read, path = scoring.read(found, tmp_path / "data", None)
    assert path.name == "sub-1_dwi.nii.gz"
    assert (len(read.found.q), len(read.known.q), len(read.pairs[0])) == (13, 9, 8)
    assert scoring.score([read]).rows[0].columns["main_direction_error"] < 0.1


def test_other_scans_are_no_predictions(tmp_path: Path) -> None:
    path = tmp_path / "sub-1/dwi/sub-1_desc-preproc_dwi.nii.gz"
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(BIDSError, match=r"no \*_desc-predicted_dwi.nii.gz or"):
        SignalScoring().find_maps(tmp_path, ())
