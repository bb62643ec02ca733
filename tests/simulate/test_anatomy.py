from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from tripq.simulate import (
    Anatomy,
    Grid,
    SimulationError,
    default_anatomy,
    estimate_fibres,
    read_anatomy,
    read_coverage,
)


def test_default_anatomy_is_a_brain(fine_anatomy: Anatomy) -> None:
    anatomy = fine_anatomy
    litre = 1e-6 * anatomy.grid.voxel_volume
    assert litre * anatomy.mask.sum() == pytest.approx(1.9, abs=0.1)
    total = anatomy.wm + anatomy.gm + anatomy.csf
    np.testing.assert_allclose(
        total[ndimage.binary_erosion(anatomy.mask, iterations=2)], 1, atol=0.02
    )
    # left and right mirror each other, as the template is symmetric about x = 0
    x = anatomy.grid.points()[:, 0].reshape(anatomy.mask.shape)
    np.testing.assert_allclose(x, -x[::-1], atol=1e-9)
    np.testing.assert_allclose(anatomy.wm, anatomy.wm[::-1], atol=1e-3)


def test_fibres_are_unit_vectors_with_weights_up_to_one(anatomy: Anatomy) -> None:
    length = np.linalg.norm(anatomy.directions, axis=-1)
    present = anatomy.weights > 0
    np.testing.assert_allclose(length[present], 1, atol=1e-5)
    assert anatomy.weights.sum(axis=-1).max() <= 1
    crossing = np.sum(anatomy.directions[..., 0, :] * anatomy.directions[..., 1, :], axis=-1)
    np.testing.assert_allclose(crossing, 0, atol=1e-5)
    assert (anatomy.weights[..., 0] >= anatomy.weights[..., 1]).all()


def test_fibres_cross_the_corpus_callosum_and_climb_the_internal_capsule(
    fine_anatomy: Anatomy,
) -> None:
    x, y, z = fine_anatomy.grid.points().T.reshape(3, *fine_anatomy.mask.shape)
    first = np.abs(fine_anatomy.directions[..., 0, :])
    white = fine_anatomy.wm > 0.7
    genu = white & (np.abs(x) < 6) & (np.abs(y - 28) < 4) & (z > 0) & (z < 14)
    capsule = white & (np.abs(np.abs(x) - 22) < 4) & (np.abs(y + 12) < 6) & (np.abs(z - 6) < 6)
    assert genu.sum() > 20
    assert capsule.sum() > 20
    assert np.median(first[genu], axis=0).argmax() == 0
    assert np.median(first[capsule], axis=0).argmax() == 2
    assert np.median(first[genu][:, 0]) > 0.9


def test_fibres_of_a_tube_run_along_it() -> None:
    """White matter in a straight tube between two caps of grey matter, oblique in the world."""
    index = np.indices((15, 15, 31)) - np.array([7, 7, 15]).reshape(3, 1, 1, 1)
    wm = (np.hypot(index[0], index[1]) < 4).astype(np.float32)
    gm = wm * (np.abs(index[2]) > 12)
    wm = wm - gm
    turn = np.array([[0.0, 0.0, 1.0], [0.6, 0.8, 0.0], [-0.8, 0.6, 0.0]])
    affine = np.eye(4)
    affine[:3, :3] = 2 * turn
    directions, _ = estimate_fibres(wm, gm, Grid(wm.shape, affine))
    inside = (np.hypot(index[0], index[1]) < 3) & (np.abs(index[2]) < 9)
    np.testing.assert_allclose(np.abs(directions[inside][:, 0] @ turn[:, 2]), 1, atol=0.02)


def test_the_mask_can_be_cut_to_a_box_and_the_head_stays(anatomy: Anatomy) -> None:
    part = anatomy.within((-30, -40, 0), (30, 20, 30))
    points = part.grid.points()[part.mask.ravel()]
    assert (points >= [-30, -40, 0]).all()
    assert (points <= [30, 20, 30]).all()
    assert 0 < part.mask.sum() < anatomy.mask.sum() / 5
    assert part.wm is anatomy.wm
    np.testing.assert_array_equal(part.centre, anatomy.centre)
    with pytest.raises(SimulationError, match="mask is empty"):
        anatomy.within((500, 0, 0), (600, 1, 1))


def test_the_cached_anatomy_cannot_be_changed() -> None:
    anatomy = default_anatomy(4.0)
    assert default_anatomy(4.0) is anatomy
    with pytest.raises(ValueError, match="read-only"):
        anatomy.wm[:] = 0


def test_voxel_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(SimulationError, match="between 1 and 5 mm"):
        default_anatomy(0.5)


def test_impossible_anatomies_are_refused(block: Anatomy) -> None:
    with pytest.raises(SimulationError, match=r"gm has shape"):
        replace(block, gm=block.gm[:-1])
    with pytest.raises(SimulationError, match="wm must be between 0 and 1"):
        replace(block, wm=2 * block.wm)
    with pytest.raises(SimulationError, match="more than 1"):
        replace(block, weights=np.full_like(block.weights, 0.8))
    with pytest.raises(SimulationError, match="without tissue"):
        replace(block, wm=np.zeros_like(block.wm))


def write(folder: Path, name: str, values: np.ndarray, affine: np.ndarray) -> Path:
    path = folder / f"{name}.nii.gz"
    nib.Nifti1Image(values, affine).to_filename(path)
    return path


def write_anatomy(folder: Path, block: Anatomy) -> dict[str, Path]:
    length = np.float32([0.2, 0.1])[:, None]  # as a QA, not as a fraction
    peaks = (length * block.directions).reshape(*block.mask.shape, 6)
    peaks[0, 0, 0, 3:] = np.nan
    volumes = {
        "wm": (255 * block.wm).astype(np.uint8),
        "gm": block.gm,
        "csf": block.csf,
        "peaks": peaks,
        "mask": block.mask.astype(np.uint8),
    }
    return {name: write(folder, name, v, block.affine) for name, v in volumes.items()}


def test_anatomy_from_files(block: Anatomy, tmp_path: Path) -> None:
    read = read_anatomy(**write_anatomy(tmp_path, block))
    np.testing.assert_allclose(read.wm, block.wm)
    np.testing.assert_allclose(read.gm, block.gm)
    np.testing.assert_allclose(read.directions[1:], block.directions[1:], atol=1e-6)
    shares = read.weights / read.weights.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(shares[1:], np.broadcast_to([2 / 3, 1 / 3], (8, 9, 9, 2)), atol=1e-6)
    np.testing.assert_allclose(shares[0, 0, 0], [1, 0])
    assert read.weights.sum(axis=-1).max() < 1
    np.testing.assert_array_equal(read.affine, block.affine)


def test_files_of_another_grid_are_named(block: Anatomy, tmp_path: Path) -> None:
    files = write_anatomy(tmp_path, block)
    shifted = block.affine.copy()
    shifted[0, 3] += 1
    files["gm"] = write(tmp_path, "moved", block.gm, shifted)
    with pytest.raises(SimulationError, match=r"moved\.nii\.gz: not on the grid"):
        read_anatomy(**files)
    files["gm"] = tmp_path / "nothing.nii.gz"
    with pytest.raises(SimulationError, match=r"nothing\.nii\.gz: there is no such file"):
        read_anatomy(**files)


def test_coverage_is_read_onto_the_grid_of_the_anatomy(block: Anatomy, tmp_path: Path) -> None:
    fine = np.zeros((36, 36, 36), np.uint8)  # half as large voxels, over the same 18 mm
    fine[8:20, 8:20, 8:20] = 255
    affine = np.diag([0.5, 0.5, 0.5, 1.0])
    affine[:3, 3] = -9 + 0.25
    coverage = read_coverage(write(tmp_path, "lesion", fine, affine), block)
    assert coverage.shape == block.mask.shape
    assert coverage.max() == 1
    assert coverage.min() == 0
    # the cube of 6 mm is cut by voxels of 2 mm without loss
    assert coverage.sum() * block.grid.voxel_volume == pytest.approx((12 * 0.5) ** 3, rel=1e-6)


def test_outlines_at_the_border_of_a_file_end_there(block: Anatomy, tmp_path: Path) -> None:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])  # its first voxel is the middle one of the block
    path = write(tmp_path, "lesion", np.ones((2, 2, 2), np.uint8), affine)
    expected = np.zeros((9, 9, 9), np.float32)
    expected[4:6, 4:6, 4:6] = 1
    np.testing.assert_array_equal(read_coverage(path, block), expected)


def test_scaled_outlines_grow_about_the_centre_of_the_brain(block: Anatomy, tmp_path: Path) -> None:
    fine = np.zeros((36, 36, 36), np.uint8)
    fine[12:24, 12:24, 12:24] = 1  # a cube of 6 mm, of which the middle is that of the brain
    affine = np.diag([0.5, 0.5, 0.5, 1.0])
    affine[:3, 3] = -9 + 0.25
    path = write(tmp_path, "lesion", fine, affine)
    plain, scaled = (read_coverage(path, block, scale) for scale in (1.0, 1.3))
    assert scaled.sum() / plain.sum() == pytest.approx(1.3**3, rel=0.05)
    for coverage in (plain, scaled):
        np.testing.assert_allclose(ndimage.center_of_mass(coverage), (4, 4, 4), atol=0.01)
    with pytest.raises(SimulationError, match="scale=0"):
        read_coverage(path, block, 0.0)


def test_a_truncated_file_is_named(block: Anatomy, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (9, 9, 9), dtype=np.uint8)
    path = write(tmp_path, "lesion", noise, block.affine)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(SimulationError, match=r"lesion\.nii\.gz: truncated or damaged"):
        read_coverage(path, block)


def test_the_shared_template_with_hcp_peaks_can_be_read(shared_data: Path) -> None:
    folder = shared_data / "ms_cohort" / "derived_2mm"
    names = {name: name for name in ("wm", "gm", "csf", "peaks")} | {"mask": "brainmask"}
    anatomy = read_anatomy(
        **{key: folder / f"anatomy_{name}.nii.gz" for key, name in names.items()}
    )
    coverage = read_coverage(folder / "patient06_lesion.nii.gz", anatomy)
    assert anatomy.wm[coverage >= 0.5].mean() == pytest.approx(0.866, abs=0.01)
    # and what is estimated from the tissue alone points there where the peaks are clear
    directions, _ = estimate_fibres(anatomy.wm, anatomy.gm, anatomy.grid)
    clear = (anatomy.wm > 0.7) & (anatomy.weights[..., 0] > 0.7)
    cosine = np.sum(directions[clear][:, 0] * anatomy.directions[clear][:, 0], axis=-1)
    angle = np.degrees(np.arccos(np.clip(np.abs(cosine), 0, 1)))
    print(f"median angle to the peaks of HCP1065 {np.median(angle):.1f} degrees")
    assert np.median(angle) < 35
