"""The signal along other directions is that of the same diffusion."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tripq.scans import DWI, DWIError
from tripq.scans.angular import resample_directions
from tripq.simulate import GradientTable, random_rotation


def scan(table: GradientTable, tensors: NDArray[np.float64]) -> DWI:
    """A row of voxels with exp(-b g.D.g), D in 1e-3 mm2/s."""
    q = table.directions * np.sqrt(table.b_values / 1000)[:, None]
    signal = np.exp(-np.einsum("qi,vij,qj->vq", q, tensors, q))
    mask = np.ones((len(tensors), 1, 1), bool)
    return DWI(
        signal=signal.astype(np.float32),
        b_values=table.b_values,
        q=q,
        mask=mask,
        affine=np.diag([2.0, 2, 2, 1]),
        b0=np.ones(len(tensors), np.float32),
    )


@pytest.fixture
def tensors() -> NDArray[np.float64]:
    """White matter, grey matter and water, turned at random."""
    rng = np.random.default_rng(0)
    eigenvalues = np.array([[1.5, 0.3, 0.3], [0.9, 0.7, 0.7], [3.0, 3.0, 3.0]]).repeat(4, axis=0)
    turns = np.stack([random_rotation(rng) for _ in eigenvalues])
    return np.einsum("vij,vj,vkj->vik", turns, eigenvalues, turns)


def test_other_directions_see_the_same_diffusion(tensors: NDArray[np.float64]) -> None:
    measured = GradientTable.from_shells([1000.0, 2000.0], [32, 40])
    wanted = GradientTable.from_shells([1000.0], [24])
    turned = wanted.rotated(random_rotation(np.random.default_rng(1)))
    expected = scan(turned, tensors)
    found = resample_directions(scan(measured, tensors), expected.q)
    # what orders above 4 take away from tensors with FA up to 0.77
    np.testing.assert_allclose(found.signal, expected.signal, atol=0.01)
    assert "other directions" in found.notes[-1]


def test_a_signal_of_low_order_is_kept() -> None:
    rng = np.random.default_rng(2)
    quartic = rng.normal(size=(3, 3, 3, 3))  # a homogeneous polynomial: orders 0, 2 and 4
    measured, wanted = (GradientTable.from_shells([1000.0], [n]) for n in (15, 40))
    before, after = scan(measured, np.zeros((1, 3, 3))), scan(wanted, np.zeros((1, 3, 3)))
    for dwi in (before, after):
        q = dwi.q[1:]
        dwi.signal[0, 1:] = np.einsum("ijkl,qi,qj,qk,ql->q", quartic, q, q, q, q)
    found = resample_directions(before, after.q)
    np.testing.assert_allclose(found.signal, after.signal, atol=1e-5)


def test_few_directions_still_give_the_mean(tensors: NDArray[np.float64]) -> None:
    expected = scan(GradientTable.from_shells([1000.0], [32]), tensors)
    found = resample_directions(scan(GradientTable.from_shells([1000.0], [6]), tensors), expected.q)
    np.testing.assert_allclose(
        found.signal[:, 1:].mean(axis=1), expected.signal[:, 1:].mean(axis=1), atol=0.03
    )
    with pytest.raises(DWIError, match=r"5 directions at b=1000 s/mm2 are too few"):
        resample_directions(scan(GradientTable.from_shells([1000.0], [5]), tensors), expected.q)


def test_a_shell_does_not_stand_for_another(tensors: NDArray[np.float64]) -> None:
    wanted = scan(GradientTable.from_shells([1000.0], [32]), tensors).q
    with pytest.raises(DWIError, match=r"no shell near b=1000 s/mm2; there is 2000\."):
        resample_directions(scan(GradientTable.from_shells([2000.0], [32]), tensors), wanted)
