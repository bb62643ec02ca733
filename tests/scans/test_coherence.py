"""Fibres continue with the right gradient table, and with none of the 23 others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tripq.scans import DWI, DWIError, orthogonal_part, read_dwi
from tripq.scans.brain import find_brain
from tripq.scans.coherence import CHANGES, Change, fibre_coherence, frame_after

RODS = np.array([[0.9, 0.3, 0.2], [-0.2, 0.8, 0.5], [0.3, -0.5, 0.85], [0.6, 0.6, -0.5]])


def make_rods(affine: np.ndarray, n_directions: int = 12, b_value: float = 1000.0) -> DWI:
    """Make a scan of thin straight bundles that pass each other in tissue without fibres."""
    shape = (24, 23, 22)
    mask = np.ones(shape, dtype=bool)
    rng = np.random.default_rng(0)
    g = rng.normal(size=(n_directions, 3))
    g /= np.linalg.norm(g, axis=1, keepdims=True)
    points = np.argwhere(mask) @ affine[:3, :3].T
    points -= points.mean(axis=0)
    decay = np.full((len(points), n_directions), np.exp(-b_value * 0.7e-3))
    for direction in RODS / np.linalg.norm(RODS, axis=1, keepdims=True):
        across = points - np.outer(points @ direction, direction)
        for place in rng.uniform(-16, 16, size=(3, 3)):
            away = across - (place - (place @ direction) * direction)
            rod = np.linalg.norm(away, axis=1) < 2.5
            decay[rod] = np.exp(-b_value * (0.3e-3 + 1.4e-3 * (g @ direction) ** 2))
    signal = np.concatenate([np.ones((len(decay), 1)), decay], axis=1).astype(np.float32)
    return DWI(
        signal=signal,
        b_values=np.r_[0.0, np.full(n_directions, b_value)],
        q=np.sqrt(b_value / 1000) * np.concatenate([np.zeros((1, 3)), g]),
        mask=mask,
        affine=affine,
        b0=np.ones(len(signal), dtype=np.float32),
    )


def oblique(edges: tuple[float, float, float] = (2.0, 2.0, 2.0), flip: int = 1) -> np.ndarray:
    affine = np.eye(4)
    rotation = Rotation.from_euler("xyz", [10, -8, 5], degrees=True).as_matrix()
    affine[:3, :3] = rotation * edges * (flip, 1, 1)
    return affine


def misread(dwi: DWI, change: Change) -> DWI:
    """The scan with a table that needs a change of its components along the image axes."""
    axes = orthogonal_part(dwi.affine)
    return replace(dwi, q=dwi.q @ axes @ change.matrix @ axes.T)


def test_there_are_24_tables() -> None:
    matrices = {tuple((sign * c.matrix).ravel()) for c in CHANGES for sign in (1, -1)}
    assert len(CHANGES) == 24
    assert len(matrices) == 48  # all signed permutations, each with its opposite
    assert CHANGES[0].is_none


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_the_change_that_a_table_needs_is_found(change: Change) -> None:
    rods = make_rods(oblique())
    found = fibre_coherence(misread(rods, change))
    right = fibre_coherence(rods)
    np.testing.assert_allclose(  # the same 24 in another order: as clear as with the right table
        [index for _, index in found.indices], [index for _, index in right.indices], atol=2e-3
    )
    assert found.best == change
    assert found.is_clear
    assert found.of(change) == max(index for _, index in found.indices)


@pytest.mark.parametrize("edges", [(2.0, 2.0, 2.0), (1.5, 1.5, 3.0)])
@pytest.mark.parametrize("flip", [1, -1])
def test_the_right_table_is_confirmed_on_any_grid(
    edges: tuple[float, float, float], flip: int
) -> None:
    assert fibre_coherence(make_rods(oblique(edges, flip))).best.is_none


def test_a_straight_bundle_along_an_axis_has_the_index_1() -> None:
    dwi = make_rods(np.diag([2.0, 2.0, 2.0, 1.0]))
    g = dwi.q[1:]
    decay = np.exp(-1.0 * (0.3 + 1.4 * g[:, 0] ** 2)).astype(np.float32)
    signal = np.tile(np.concatenate([[np.float32(1)], decay]), (len(dwi.b0), 1))
    straight = fibre_coherence(replace(dwi, signal=signal))
    ends = 1 / dwi.mask.shape[0]  # the first and the last voxel are continued on one side
    assert straight.of(CHANGES[0]) == pytest.approx(1 - ends, rel=1e-6)
    assert not straight.is_clear  # y and z may be exchanged


def test_without_fibres_nothing_is_clear() -> None:
    dwi = make_rods(oblique())
    flat = np.where(dwi.b_values > 0, 0.4, 1.0).astype(np.float32)
    found = fibre_coherence(replace(dwi, signal=np.tile(flat, (len(dwi.b0), 1))))
    assert (found.n_voxels, found.margin, found.is_clear) == (0, 0.0, False)


def test_a_tensor_needs_six_different_directions() -> None:
    with pytest.raises(DWIError, match=r"5 different directions; the tensor fit needs 6"):
        fibre_coherence(make_rods(oblique(), n_directions=5))
    rods = make_rods(oblique())
    repeated = np.r_[0, 1 + np.arange(12) % 5]
    with pytest.raises(DWIError, match="5 different directions"):
        fibre_coherence(replace(rods, q=rods.q[repeated], signal=rods.signal[:, repeated]))


@pytest.mark.parametrize("b_value", [2000.0, 3000.0])
def test_high_b_values_alone_tell_the_table(b_value: float) -> None:
    found = fibre_coherence(make_rods(oblique(), b_value=b_value))
    assert found.best.is_none
    assert found.is_clear


def test_higher_shells_are_left_out_where_low_ones_are_enough() -> None:
    low, high = make_rods(oblique()), make_rods(oblique(), b_value=3000.0)
    both = replace(
        low,
        signal=np.c_[low.signal, high.signal[::-1, 1:]],
        b_values=np.r_[low.b_values, high.b_values[1:]],
        q=np.r_[low.q, high.q[1:]],
    )
    assert fibre_coherence(both) == fibre_coherence(low)


def test_a_change_is_named_by_the_frame_that_makes_it() -> None:
    flip_x, exchange = Change((0, 1, 2), 0), Change((1, 0, 2))
    right_handed, left_handed = oblique(), oblique(flip=-1)
    assert frame_after(flip_x, right_handed, "fsl") == "voxel"
    assert frame_after(flip_x, right_handed, "voxel") == "fsl"
    assert frame_after(flip_x, left_handed, "fsl") == "world"
    assert frame_after(exchange, right_handed, "fsl") is None
    stored_y_first = right_handed[:, [1, 0, 2, 3]]
    assert frame_after(exchange, stored_y_first, "voxel") == "world"


@pytest.mark.parametrize(
    ("scan", "right", "wrong"),
    [
        pytest.param(
            "nlsam_invivo_1p8mm/dwi_1_8.nii.gz", "voxel", "fsl", marks=pytest.mark.exhaustive
        ),
        ("tractseg_example/Diffusion.nii.gz", "fsl", "world"),
        ("dcm_qa_uih/dti_tra_dir16_PA_6_134431.nii", "fsl", "world"),
    ],
)
def test_real_fibres_tell_the_frame(shared_data: Path, scan: str, right: str, wrong: str) -> None:
    path = shared_data / "real_dwi" / scan
    confirmed = fibre_coherence(find_brain(read_dwi(path, frame=right)))
    assert confirmed.is_clear
    assert confirmed.best.is_none
    dwi = find_brain(read_dwi(path, frame=wrong))
    refuted = fibre_coherence(dwi)
    assert refuted.is_clear
    assert frame_after(refuted.best, dwi.affine, wrong) == right


def test_two_slices_far_apart_do_not_tell(shared_data: Path) -> None:
    folder = shared_data / "real_dwi" / "mdt_b1k_b2k"
    dwi = read_dwi(
        folder / "b1k_b2k_example_slices_24_38.nii.gz",
        folder / "b1k_b2k.bval",
        folder / "b1k_b2k.bvec",
        folder / "b1k_b2k_example_slices_24_38_mask.nii.gz",
    )
    assert not fibre_coherence(dwi).is_clear
