from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tripq.scans import DWI, DWIError, cubic_edge, voxel_ml

AFFINE = np.array([[0, -2.0, 0, 9], [1.5, 0, 0, 8], [0, 0, 3.0, 7], [0, 0, 0, 1]])
masks = arrays(bool, st.tuples(*(st.integers(1, 4),) * 3)).filter(np.any)


def make(mask, samples=3):
    voxels = np.count_nonzero(mask)
    return DWI(
        signal=np.ones((voxels, samples), dtype=np.float32),
        b_values=np.array([0.0] + [1000.0] * (samples - 1)),
        q=np.eye(samples, 3, k=-1),
        mask=mask,
        affine=AFFINE,
        b0=np.arange(1, voxels + 1, dtype=np.float32),
    )


@given(masks)
def test_voxels_follow_argwhere(mask):
    dwi = make(mask)
    for voxel, centre, b0 in zip(np.argwhere(mask), dwi.voxel_centres(), dwi.b0, strict=True):
        np.testing.assert_array_equal(centre, AFFINE[:3, :3] @ voxel + AFFINE[:3, 3])
        assert dwi.volume(dwi.b0)[tuple(voxel)] == b0


@given(masks, st.sampled_from([bool, np.uint8, np.float32, np.float64]))
def test_volume_is_undone_by_the_mask(mask, dtype):
    dwi = make(mask)
    values = np.arange(len(dwi.b0)).astype(dtype)
    volume = dwi.volume(values, fill=1)
    assert volume.dtype == dtype
    np.testing.assert_array_equal(volume[mask], values)
    np.testing.assert_array_equal(volume[~mask], 1)
    np.testing.assert_array_equal(dwi.volume(dwi.signal)[mask], dwi.signal)


@pytest.mark.parametrize("values", [1.0, [1.0, 2.0]])
def test_volume_needs_a_value_for_every_voxel(values):
    with pytest.raises(DWIError, match="the scan has 8 voxels"):
        make(np.ones((2, 2, 2), dtype=bool)).volume(values)


def two_shells():
    dwi = make(np.ones((2, 2, 1), dtype=bool), samples=6)
    b_values = np.array([0.0, 2010, 995, 1000, 1990, 1005])
    signal = np.arange(24, dtype=np.float32).reshape(4, 6)
    return replace(dwi, b_values=b_values, signal=signal, q=np.outer(b_values, [1e-3, 0, 0]))


def test_shells_are_chosen_by_b_value_and_keep_their_order():
    dwi = two_shells()
    kept = dwi.with_shells([1000])
    np.testing.assert_array_equal(kept.b_values, [0, 995, 1000, 1005])
    np.testing.assert_array_equal(kept.signal, dwi.signal[:, [0, 2, 3, 5]])
    np.testing.assert_array_equal(kept.q, dwi.q[[0, 2, 3, 5]])
    assert kept.notes[-1] == "Left out 2 volumes of other shells."
    assert dwi.with_shells([2000.0, 1000.0]) is dwi
    assert dwi.shell_near(1900.0).b_value == 2000


def test_a_shell_that_is_not_there_is_an_error():
    with pytest.raises(DWIError, match=r"no shell near b=3000 s/mm2; there is 1000, 2000\."):
        two_shells().with_shells([1000, 3000])
    with pytest.raises(DWIError, match="there is none"):
        make(np.ones((1, 1, 1), dtype=bool), samples=1).with_shells([1000])


def test_shear_and_rotation_keep_the_volume_of_a_voxel():
    shear = np.eye(4)
    shear[0, 1] = 0.5
    for moved in (np.eye(4), shear, AFFINE / np.cbrt(1.5 * 2 * 3)):
        assert voxel_ml(moved @ np.diag([2.0, 2.0, 2.5, 1.0])) == pytest.approx(0.01)
        assert cubic_edge(moved @ np.diag([2.0, 2.0, 2.0, 1.0])) == pytest.approx(2.0)


def test_voxels_are_chosen_on_the_grid():
    dwi = two_shells()
    inside = np.zeros(dwi.mask.shape, bool)
    inside[1] = True
    kept = dwi.with_voxels(inside)
    np.testing.assert_array_equal(kept.mask, dwi.mask & inside)
    np.testing.assert_array_equal(
        kept.volume(kept.signal), dwi.volume(dwi.signal) * inside[..., None]
    )
    np.testing.assert_array_equal(kept.volume(kept.b0), dwi.volume(dwi.b0) * inside)
    with pytest.raises(DWIError, match=r"inside has shape \(2, 1\)"):
        dwi.with_voxels(inside[0])


def test_repr_tells_what_there_is():
    assert repr(make(np.ones((20, 10, 10), dtype=bool), samples=4)) == (
        "DWI(2,000 voxels of 1.5 x 2 x 3 mm, 3 directions, shells b=1000 (3))"
    )


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("signal", np.ones((8, 4), np.float32), r"signal has shape \(8, 4\); .* need \(8, 3\)"),
        ("q", np.zeros((3, 2)), r"q has shape \(3, 2\)"),
        ("b0", np.ones(7, np.float32), r"b0 has shape \(7,\)"),
        ("affine", np.eye(3), r"affine has shape \(3, 3\)"),
        ("mask", np.ones((2, 2, 2), np.uint8), r"need \(X, Y, Z\) bool, not .* uint8"),
        ("b_values", np.array([5.0, 1000.0, 1000.0]), "q = 0"),
        ("q", np.eye(3), "q = 0"),
    ],
)
def test_parts_must_fit(name, value, reason):
    with pytest.raises(DWIError, match=reason):
        replace(make(np.ones((2, 2, 2), dtype=bool)), **{name: value})
