"""Scans on other voxels: what is constant or linear stays so, and everything stays where it is."""

from __future__ import annotations

import tracemalloc
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tripq.scans import DWI, DWIError
from tripq.scans.resampling import map_back, resample

EDGES = st.tuples(*3 * [st.floats(0.8, 4.0)])


def oblique(edges: tuple[float, ...], flipped: bool = False) -> NDArray[np.float64]:
    affine = np.eye(4)
    rotation = Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix()
    affine[:3, :3] = rotation * edges
    if flipped:
        affine[:3, 0] *= -1
    affine[:3, 3] = -31, 12, 7
    return affine


def make_scan(intensity: NDArray[np.floating], affine: NDArray, mask: NDArray | None = None) -> DWI:
    """Make a scan of a b0 and a weighted volume from their intensities (X, Y, Z, 2)."""
    mask = np.ones(intensity.shape[:3], dtype=bool) if mask is None else mask
    b0, weighted = intensity[mask].astype(np.float32).T
    return DWI(
        signal=np.stack([np.ones_like(b0), weighted / b0], axis=1),
        b_values=np.array([0.0, 1000.0]),
        q=np.array([[0.0, 0, 0], [1, 0, 0]]),
        mask=mask,
        affine=affine,
        b0=b0,
    )


def ball(shape: tuple[int, ...], share: float) -> NDArray[np.bool_]:
    axes = [np.linspace(-1, 1, n) for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return x**2 + y**2 + z**2 < share


def volume_mm3(dwi: DWI) -> float:
    return len(dwi.b0) * float(np.prod(dwi.voxel_size))


@given(EDGES, st.floats(0.8, 4.0), st.booleans())
def test_a_constant_scan_stays_constant(
    edges: tuple[float, ...], voxel_size: float, flipped: bool
) -> None:
    """At the edge of a mask, too, where the voxels outside are unknown."""
    shape = (14, 12, 13)
    intensity = np.broadcast_to([300.0, 120.0], (*shape, 2))
    dwi = make_scan(intensity, oblique(edges, flipped), ball(shape, 0.8))
    other = resample(dwi, voxel_size)
    np.testing.assert_allclose(other.voxel_size, voxel_size, rtol=1e-12)
    np.testing.assert_allclose(other.b0, 300, rtol=1e-5)
    np.testing.assert_allclose(other.signal, [[1, 0.4]] * len(other.b0), rtol=1e-5)
    np.testing.assert_allclose(map_back(np.full(len(other.b0), 0.3), other, dwi), 0.3, rtol=1e-5)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("voxel_size", [1.3, 2.0, 3.1])
def test_a_ramp_in_the_world_stays_that_ramp(voxel_size: float, flipped: bool) -> None:
    """So no voxel has moved, and larger voxels are means around their centres."""
    shape = (24, 20, 22)
    affine = oblique((2.0, 2.5, 1.6), flipped)
    index = np.moveaxis(np.indices(shape), 0, -1)
    slope = np.array([1.0, -2.0, 0.5])
    ramp = 400 + nib.affines.apply_affine(affine, index) @ slope
    dwi = make_scan(np.stack([ramp, ramp / 2], axis=-1), affine)
    other = resample(dwi, voxel_size)
    inner = np.zeros_like(other.mask)
    inner[4:-4, 4:-4, 4:-4] = True  # a Gaussian that meets the edge of the scan is cut off
    inner = inner[other.mask]
    assert inner.any()
    expected = 400 + other.voxel_centres() @ slope
    np.testing.assert_allclose(other.b0[inner], expected[inner], rtol=1e-5)
    np.testing.assert_allclose(other.signal[inner, 1], 0.5, rtol=1e-5)
    back = map_back((expected - 300) / 300, other, dwi).reshape(shape)[6:-6, 6:-6, 6:-6]
    np.testing.assert_allclose(back, ((ramp - 300) / 300)[6:-6, 6:-6, 6:-6], rtol=1e-5)


def test_the_same_voxels_stay_the_same() -> None:
    rng = np.random.default_rng(0)
    shape = (9, 8, 7)
    dwi = make_scan(rng.uniform(50, 500, (*shape, 2)), oblique(3 * (2.0,)), ball(shape, 0.9))
    other = resample(dwi, 2.0 * (1 + 1e-7))
    np.testing.assert_array_equal(other.mask, dwi.mask)
    np.testing.assert_allclose(other.affine, dwi.affine, atol=1e-5)
    np.testing.assert_allclose(other.signal, dwi.signal, rtol=1e-4)
    np.testing.assert_allclose(other.b0, dwi.b0, rtol=1e-4)
    values = rng.random(len(dwi.b0), dtype=np.float32)
    np.testing.assert_allclose(map_back(values, other, dwi), values, atol=1e-5)


@pytest.mark.parametrize("voxel_size", [1.1, 1.8, 2.6])
def test_a_mask_keeps_its_size_and_its_place(voxel_size: float) -> None:
    shape = (30, 30, 30)
    dwi = make_scan(np.full((*shape, 2), 100.0), oblique((1.8, 1.8, 2.2)), ball(shape, 0.8))
    other = resample(dwi, voxel_size)
    assert volume_mm3(other) == pytest.approx(volume_mm3(dwi), rel=0.02)
    np.testing.assert_allclose(
        other.voxel_centres().mean(axis=0), dwi.voxel_centres().mean(axis=0), atol=0.1
    )


def test_larger_voxels_do_not_alias() -> None:
    """A pattern finer than the new voxels becomes its mean, whatever voxels happen to be hit."""
    shape = (40, 8, 8)
    stripes = 100.0 + 50 * (-1.0) ** np.arange(40)[:, None, None] * np.ones(shape)
    dwi = make_scan(np.stack([stripes, stripes], axis=-1), np.diag([1.0, 1, 1, 1]))
    other = resample(dwi, 3.0)
    inner = other.volume(other.b0)[2:-2]
    np.testing.assert_allclose(inner, 100, atol=2.0)


def test_every_voxel_gets_a_value_of_a_voxel_nearby() -> None:
    """A mask that is thin in places vanishes there on larger voxels; its voxels are no hole."""
    mask = np.zeros((20, 10, 10), dtype=bool)
    mask[:10, 2:8, 2:8] = True
    mask[10:, 5, 5] = True
    dwi = make_scan(np.full((*mask.shape, 2), 100.0), np.diag([1.0, 1, 1, 1]), mask)
    other = resample(dwi, 3.0)
    values = np.where(other.voxel_centres()[:, 0] > 4, 0.9, 0.1)
    back = dwi.volume(map_back(values, other, dwi), fill=np.nan)
    np.testing.assert_allclose(back[12:, 5, 5], 0.9)


@pytest.mark.parametrize("edges", [(1.0,) * 3, (1.6,) * 3, (2.5,) * 3, (2.5, 2.5, 3.0)])
@pytest.mark.parametrize("kind", ["ball", "ragged"])
def test_the_order_of_the_axes_in_a_file_decides_nothing(
    kind: str, edges: tuple[float, ...]
) -> None:
    """In all 48 storages.  Many voxels are half covered, and many have several nearest ones."""
    rng = np.random.default_rng(1)
    shape = (9, 8, 7)
    mask = ball(shape, 0.9) if kind == "ball" else rng.random(shape) < 0.5
    intensity = rng.uniform(100, 1000, (*shape, 2))

    def resampled(axes: tuple[int, ...], signs: tuple[int, ...]) -> tuple[NDArray, ...]:
        """Places and signal of the new voxels, and places and values of a map brought back."""
        orientation = np.stack([axes, signs], axis=1)
        affine = np.diag([*edges, 1.0]) @ inv_ornt_aff(orientation, shape)
        dwi = make_scan(
            apply_orientation(intensity, orientation),
            affine,
            apply_orientation(mask, orientation),
        )
        other = resample(dwi, 2.0)
        at, to = other.voxel_centres(), dwi.voxel_centres()
        back = map_back(0.5 + 0.4 * np.sin(at @ (0.3, 0.5, 0.7)), other, dwi)
        one, two = (np.lexsort(places.round(3).T) for places in (at, to))
        return at[one], other.signal[one], to[two], back[two]

    expected = resampled((0, 1, 2), (1, 1, 1))
    for storage in product(permutations(range(3)), product((1, -1), repeat=3)):
        for found, value in zip(resampled(*storage), expected, strict=True):
            np.testing.assert_allclose(found, value, rtol=0, atol=2e-6)


def test_what_was_done_is_noted_and_directions_stay() -> None:
    dwi = make_scan(np.full((6, 6, 6, 2), 100.0), oblique((2.0, 2.0, 3.0)))
    other = resample(dwi, 2.0)
    assert other.notes == ("Voxels of 2 x 2 x 3 mm were resampled to 2 mm.",)
    np.testing.assert_array_equal(other.q, dwi.q)


def test_what_cannot_be_resampled_is_refused() -> None:
    dwi = make_scan(np.full((6, 6, 6, 2), 100.0), oblique((2.0, 2.0, 2.0)))
    for size in (0.0, -1.0, np.nan):
        with pytest.raises(DWIError, match="a number of mm above 0"):
            resample(dwi, size)
    with pytest.raises(DWIError, match="no voxel of its mask is left on voxels of 200 mm"):
        resample(dwi, 200.0)
    turned = make_scan(np.full((6, 6, 6, 2), 100.0), np.diag([2.0, 2, 2, 1]))
    with pytest.raises(DWIError, match="not parallel"):
        map_back(np.zeros(216), turned, dwi)


def test_a_whole_head_fits_into_3_gb() -> None:
    """The memory grows with the voxels as it does here, from the scan up: 128 x 128 x 78 x 65."""
    shape, samples = (64, 64, 39), 65
    rng = np.random.default_rng(0)
    voxels = int(np.prod(shape))
    dwi = DWI(
        signal=rng.random((voxels, samples), dtype=np.float32),
        b_values=np.r_[0.0, np.full(samples - 1, 1000.0)],
        q=np.r_[np.zeros((1, 3)), np.tile([[1.0, 0, 0]], (samples - 1, 1))],
        mask=np.ones(shape, dtype=bool),
        affine=np.diag([1.8, 1.8, 1.8, 1]),
        b0=np.ones(voxels, dtype=np.float32),
    )
    tracemalloc.start()
    resample(dwi, 1.6)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 8 * (peak + dwi.signal.nbytes) < 3e9
