"""The brain is found by its b0 intensity."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from tests.commands.conftest import write_scan
from tests.scans.test_read import beside, traced
from tripq.scans import DWI, DWIError, read_dwi
from tripq.scans.brain import _ball, _large_regions, _otsu, find_brain, read_brain
from tripq.simulate import random_rotation


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


def bright(shape: tuple[int, int, int], *boxes: tuple[slice, slice, slice]) -> np.ndarray:
    """A mask of some boxes."""
    mask = np.zeros(shape, dtype=bool)
    for box in boxes:
        mask[box] = True
    return mask


BRAIN = (slice(5, 30), slice(5, 30), slice(5, 30))


def test_an_eye_on_its_nerve_is_no_brain() -> None:
    eye = (slice(40, 54), slice(10, 24), slice(10, 24))
    nerve = (slice(30, 40), slice(14, 18), slice(14, 18))
    found = _large_regions(bright((60, 40, 40), BRAIN, eye, nerve), np.eye(4))
    inner = tuple(slice(s.start + 3, s.stop - 3) for s in BRAIN)
    assert found[inner].all()
    assert not found[eye].any()


@pytest.mark.parametrize("bridge", [0, 8])
def test_both_halves_of_a_brain_are_kept(bridge: int) -> None:
    halves = [(slice(3, 37), slice(first, first + 30), slice(None)) for first in (3, 37)]
    between = (slice(10, 10 + bridge), slice(33, 37), slice(None))
    mask = bright((40, 70, 3), *halves, between)
    found = _large_regions(mask, np.eye(4))
    for half in halves:
        assert np.count_nonzero(found[half]) > 0.9 * np.count_nonzero(mask[half])  # round corners


def test_dark_nuclei_are_brain() -> None:
    whole = bright((60, 60, 60), (slice(3, 57),) * 3)
    with_hole = whole & ~bright(whole.shape, (slice(27, 31),) * 3)
    np.testing.assert_array_equal(
        _large_regions(with_hole, np.eye(4)), _large_regions(whole, np.eye(4))
    )


@pytest.mark.parametrize("slices", [2, 3])
def test_a_few_slices_of_a_brain_are_kept(slices: int) -> None:
    disc = bright((40, 40, slices), (slice(5, 30), slice(5, 30), slice(None)))
    found = _large_regions(disc, np.diag([1, 1, 4, 1.0]))
    assert np.count_nonzero(found) > 0.9 * np.count_nonzero(disc)
    np.testing.assert_array_equal(found, found[:, :, :1].repeat(slices, axis=2))


def test_what_is_nowhere_thick_is_kept() -> None:
    thin = bright((30, 30, 30), (slice(10, 14), slice(2, 28), slice(2, 28)))
    np.testing.assert_array_equal(_large_regions(thin, np.eye(4)), thin)


@pytest.mark.parametrize(
    "edges", [(1, 1, 1), (2.5, 2.5, 2.5), (1.75, 1.75, 3), (3.5, 3.5, 4.2), (8, 8, 8)]
)
def test_the_ball_has_a_radius_of_6_mm_on_every_grid(edges: tuple[float, float, float]) -> None:
    rotation = random_rotation(np.random.default_rng(0))
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(edges)
    ball = _ball(affine)
    middle = (np.array(ball.shape) - 1) / 2
    reach = np.linalg.norm((np.argwhere(ball) - middle) * edges, axis=1)
    assert reach.max() <= 6.001
    np.testing.assert_array_equal(middle, np.floor(6.001 / np.array(edges)))
    np.testing.assert_array_equal(ball, _ball(np.diag([*edges, 1.0])))


def test_the_ball_of_a_sheared_grid_holds_every_voxel_within_6_mm() -> None:
    affine = np.array([[1, 0.8, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]])
    wide = np.indices((31, 31, 31)) - 15
    inside = np.linalg.norm(np.einsum("ij,jxyz->ixyz", affine[:3, :3], wide), axis=0) <= 6.001
    ball = _ball(affine)
    offsets = np.argwhere(ball) - (np.array(ball.shape) - 1) // 2
    np.testing.assert_array_equal(offsets, np.argwhere(inside) - 15)


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95), st.floats(1.5, 50))
def test_the_threshold_is_that_of_scikit_image(seed: int, part: float, contrast: float) -> None:
    """It is the same where scikit-image is not installed; dipy's is not."""
    threshold_otsu = pytest.importorskip("skimage.filters").threshold_otsu
    rng = np.random.default_rng(seed)
    image = rng.gamma(5, size=(12, 13, 14)).astype(np.float32)
    image[rng.random(image.shape) < part] *= contrast
    assert _otsu(image) == pytest.approx(threshold_otsu(image), rel=1e-6)


def test_a_scan_without_a_brain_is_refused() -> None:
    dwi, _ = head(b0_inside=1000.0)
    everywhere = np.ones_like(dwi.mask)
    uniform = np.ones(everywhere.size, np.float32)
    dwi = replace(dwi, mask=everywhere, b0=uniform, signal=np.stack([uniform, uniform], axis=1))
    with pytest.raises(DWIError, match="no brain found in b0; give a mask"):
        find_brain(dwi)


def check_that_both_are_the_same(read: DWI, found: DWI) -> None:
    for name in ("signal", "b0", "mask", "q", "b_values", "affine"):
        np.testing.assert_array_equal(getattr(read, name), getattr(found, name))
    assert read.notes == found.notes
    assert read.header == found.header
    assert (read.path, read.b0_volumes) == (found.path, found.b0_volumes)


@pytest.mark.parametrize("name", ["dwi.nii", "dwi.nii.gz"])
def test_read_in_two_passes_the_brain_is_bit_for_bit_the_same(tmp_path: Path, name: str) -> None:
    path = write_scan(tmp_path / name)
    check_that_both_are_the_same(read_brain(path), find_brain(read_dwi(path)))


def test_only_the_signal_of_the_brain_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What else there is does not grow with the number of volumes."""
    monkeypatch.setattr("dipy.segment.mask.multi_median", lambda b0, radius, passes: b0)
    monkeypatch.setattr("tripq.scans.brain._otsu", lambda image: 200)
    for volumes in (20, 1000):
        path = write_scan(tmp_path / "dwi.nii", b_values=(0, *volumes * (1000,)))
        dwi, peak = traced(lambda path=path: read_brain(path))
        assert dwi.signal.nbytes < 0.25 * 4 * dwi.mask.size * volumes
        assert peak < dwi.signal.nbytes + beside(dwi.mask.size)


def test_too_large_a_brain_is_refused(tmp_path: Path) -> None:
    path = write_scan(tmp_path / "dwi.nii.gz")
    takes = read_brain(path).signal.nbytes
    assert read_brain(path, max_bytes=takes).signal.nbytes == takes
    with pytest.raises(DWIError, match="are left for it: allow at least 1 bytes more"):
        read_brain(path, max_bytes=takes - 1)


def test_a_real_head_read_in_two_passes_is_bit_for_bit_the_same(shared_data: Path) -> None:
    path = shared_data / "real_dwi" / "dcm_qa_uih" / "dti_tra_dir16_PA_6_134431.nii"
    check_that_both_are_the_same(read_brain(path), find_brain(read_dwi(path)))


def test_the_brain_of_a_real_scan_is_that_of_its_mask(shared_data: Path) -> None:
    folder = shared_data / "real_dwi" / "tractseg_example"
    table = (folder / "Diffusion.bvals", folder / "Diffusion.bvecs")
    scan = read_dwi(folder / "Diffusion.nii.gz", *table)
    shipped = read_dwi(
        folder / "Diffusion.nii.gz", *table, mask=folder / "nodif_brain_mask.nii.gz"
    ).mask
    found = find_brain(scan).mask
    assert 2 * np.count_nonzero(found & shipped) / (found.sum() + shipped.sum()) > 0.9


def test_the_brain_of_a_real_head_is_one_region_without_the_neck(shared_data: Path) -> None:
    """Its threshold alone takes muscles below the skull base, nasal mucosa and eyes, too."""
    path = shared_data / "real_dwi" / "philips" / "ph_1201_DT_HIGH_32DIR_SENSE.nii.gz"
    mask = read_brain(path).mask
    assert ndimage.label(mask)[1] == 1
    assert not mask[:, 70:, :13].any()  # in front of the brainstem, below the temporal lobes
    assert mask[64, 64, 40]
