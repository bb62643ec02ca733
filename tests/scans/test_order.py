"""Directions in the order of the volumes explain the signal; in another order they do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.scans.test_coherence import make_rods, oblique
from tripq.scans import DWI, read_dwi
from tripq.scans.order import MAX_CHANCE, MIN_DIRECTIONS, Order, volume_order


@pytest.fixture(scope="module")
def rods() -> DWI:
    return make_rods(oblique(), n_directions=20)


def shuffled(dwi: DWI, seed: int) -> DWI:
    order = 1 + np.random.default_rng(seed).permutation(len(dwi.q) - 1)
    return replace(dwi, q=dwi.q[np.r_[0, order]])


def test_the_right_order_explains_the_signal(rods: DWI) -> None:
    order = volume_order(rods)
    assert order.explained > 0.9 > 0.4 > order.usual
    assert order.chance == 1 / 1000
    assert not order.is_wrong
    assert volume_order(rods) == order


@pytest.mark.parametrize("seed", range(5))
def test_another_order_is_seen(rods: DWI, seed: int) -> None:
    order = volume_order(shuffled(rods, seed))
    assert order.chance > MAX_CHANCE
    assert order.is_wrong


def test_turned_and_flipped_directions_explain_as_much(rods: DWI) -> None:
    """The axes are not what is judged here."""
    turn = Rotation.from_rotvec([0.3, -0.9, 2.0]).as_matrix() @ np.diag([1, -1, 1])
    turned = volume_order(replace(rods, q=rods.q @ turn))
    assert turned.explained == pytest.approx(volume_order(rods).explained, abs=1e-9)
    assert turned.chance == volume_order(rods).chance


def test_the_share_is_that_of_a_fit(rods: DWI) -> None:
    """Tr(HC) / tr(C) is one minus the residuals of least squares over the variance."""
    g = rods.q[1:] / np.linalg.norm(rods.q[1:], axis=1, keepdims=True)
    products = np.einsum("ni,nj->nij", g, g).reshape(len(g), 9)
    values = (rods.signal[:, 1:] * rods.b0[:, None]).T.astype(np.float64)
    fit = products @ np.linalg.lstsq(products, values, rcond=1e-10)[0]
    left = np.square(values - fit).sum() / np.square(values - values.mean(axis=0)).sum()
    assert volume_order(rods).explained == pytest.approx(1 - left, abs=1e-9)


def test_few_directions_are_not_judged(rods: DWI) -> None:
    for count, told in ((MIN_DIRECTIONS - 1, False), (MIN_DIRECTIONS, True)):
        few = make_rods(oblique(), n_directions=count)
        assert volume_order(shuffled(few, 3)).is_wrong == told
    # repetitions are no directions
    twice = np.r_[0, 1 + np.arange(22) % 11]
    repeated = replace(
        rods, q=rods.q[twice], b_values=np.r_[0, np.full(22, 1000.0)], signal=rods.signal[:, twice]
    )
    assert volume_order(shuffled(repeated, 3)) == Order(0.0, 0.0, 1.0, 11)


def test_a_constant_signal_tells_nothing(rods: DWI) -> None:
    assert volume_order(replace(rods, signal=np.ones_like(rods.signal))).explained == 0


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("mrtrix3_crop/derived_msmt_dwi.nii.gz", "derived_msmt_mask.nii.gz"),
        ("dcm_qa_uih/dti_tra_dir16_PA_6_134431.nii", None),
        ("philips/ph_601_WIP_dti_ax.nii.gz", None),
        ("canon_61/3000_DTI_PA-ortho_cl.nii.gz", None),
    ],
)
def test_real_scans(name: str, mask: str | None, shared_data: Path) -> None:
    path = shared_data / "real_dwi" / name
    dwi = read_dwi(path, mask=None if mask is None else path.with_name(mask))
    right = volume_order(dwi)
    assert right.chance == 1 / 1000
    assert not right.is_wrong
    if len(dwi.shells) == 1:
        assert volume_order(shuffled(dwi, 0)).is_wrong
