"""The brain is found by its b0 intensity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tripq.brain import find_brain
from tripq.dwi import DWI, DWIError


def head(b0_inside: float) -> tuple[DWI, np.ndarray]:
    rng = np.random.default_rng(0)
    i, j, k = np.indices((40, 40, 40)) - 19.5
    ball = i**2 + j**2 + k**2 < 14**2
    b0 = np.where(ball, b0_inside, 0.0) + rng.uniform(1, 20, ball.shape)
    mask = np.ones(ball.shape, dtype=bool)
    mask[:2] = False
    n = np.count_nonzero(mask)
    dwi = DWI(
        signal=rng.random((n, 2), dtype=np.float32),
        b_values=np.array([0.0, 1000.0]),
        q=np.array([[0.0, 0, 0], [1, 0, 0]]),
        mask=mask,
        affine=np.eye(4),
        b0=b0[mask].astype(np.float32),
    )
    return dwi, ball


def test_the_bright_ball_is_found_and_its_voxels_keep_their_signal() -> None:
    dwi, ball = head(b0_inside=1000.0)
    brain = find_brain(dwi)
    overlap = 2 * np.count_nonzero(brain.mask & ball) / (brain.mask.sum() + ball.sum())
    assert overlap > 0.9
    assert not (brain.mask & ~dwi.mask).any()
    np.testing.assert_array_equal(brain.signal, dwi.signal[brain.mask[dwi.mask]])
    np.testing.assert_array_equal(brain.b0, dwi.b0[brain.mask[dwi.mask]])
    assert "median_otsu" in brain.notes[-1]


def test_a_scan_without_a_brain_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    dwi, ball = head(b0_inside=1000.0)
    nothing = np.zeros_like(ball)
    monkeypatch.setattr("tripq.brain.median_otsu", lambda volume, **options: (volume, nothing))
    with pytest.raises(DWIError, match="no brain found in b0; give a mask"):
        find_brain(dwi)


def test_the_brain_of_a_real_scan_is_that_of_its_mask(shared_data: Path) -> None:
    from tripq.dwi import read_dwi

    folder = shared_data / "real_dwi" / "tractseg_example"
    table = (folder / "Diffusion.bvals", folder / "Diffusion.bvecs")
    scan = read_dwi(folder / "Diffusion.nii.gz", *table)
    shipped = read_dwi(
        folder / "Diffusion.nii.gz", *table, mask=folder / "nodif_brain_mask.nii.gz"
    ).mask
    found = find_brain(scan).mask
    assert 2 * np.count_nonzero(found & shipped) / (found.sum() + shipped.sum()) > 0.9
