from __future__ import annotations

import tempfile
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from tripq.scans import DWIError, orthogonal_part, read_dwi, to_world
from tripq.scans.frames import MAX_SHEAR

FRAMES = ("fsl", "voxel", "world")
STORAGES = list(product(permutations(range(3)), product((1, -1), repeat=3)))  # all 48
WORLD_AXIS = {
    "R": (1, 0, 0),
    "L": (-1, 0, 0),
    "A": (0, 1, 0),
    "P": (0, -1, 0),
    "S": (0, 0, 1),
    "I": (0, 0, -1),
}

seeds = st.integers(0, 2**32 - 1)


def affine_of(matrix):
    affine = np.eye(4)
    affine[:3, :3] = matrix
    return affine


def affine_of_codes(codes):
    axes = np.stack([WORLD_AXIS[code] for code in codes], axis=1)
    return affine_of(axes * np.array([2.0, 2.5, 3.0]))


def assert_same_scan(first, second):
    """Equal q-vectors and, at equal places in the world, equal signals bit for bit."""
    distances, partner = cKDTree(second.voxel_centres()).query(first.voxel_centres())
    assert sorted(partner) == list(range(len(first.b0)))
    np.testing.assert_allclose(distances, 0, atol=1e-11)
    np.testing.assert_allclose(first.q, second.q, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(first.b_values, second.b_values)
    np.testing.assert_array_equal(first.signal, second.signal[partner])
    np.testing.assert_array_equal(first.b0, second.b0[partner])


@pytest.mark.parametrize(
    ("axes", "signs", "frame"),
    [  # every storage with a frame or, in `make test-all`, with each
        pytest.param(*storage, frame, marks=() if n % 3 == i else pytest.mark.exhaustive)
        for n, storage in enumerate(STORAGES)
        for i, frame in enumerate(FRAMES)
    ],
)
@settings(max_examples=4)
@given(seed=seeds)
def test_storage_of_a_scan_does_not_matter(make_scan, axes, signs, frame, seed):
    scan = make_scan(seed)
    with tempfile.TemporaryDirectory() as folder:
        first = read_dwi(scan.write(folder, "world", "first.nii"), frame="world")
        second_file = scan.reoriented(axes, signs).write(folder, frame, "second.nii")
        second = read_dwi(second_file, frame=frame)
    assert_same_scan(first, second)
    expected = np.sqrt(scan.b_values / 1000)[:, None] * scan.directions
    np.testing.assert_allclose(second.q[1:], expected[scan.b_values > 50], rtol=0, atol=1e-14)


@given(seed=seeds)
def test_fsl_tables_stay_valid_when_x_is_flipped(make_scan, seed):
    """What the rule for x is for: bvecs do not depend on the direction of the first image axis."""
    scan = make_scan(seed)
    flipped = scan.reoriented((0, 1, 2), (-1, 1, 1))
    table = np.random.default_rng(seed).normal(size=(5, 3))
    np.testing.assert_allclose(
        to_world(table, scan.affine, "fsl"), to_world(table, flipped.affine, "fsl"), atol=1e-13
    )


@pytest.mark.parametrize(
    ("codes", "fsl", "voxel"),
    [
        ("LAS", (-1, 2, 3), (-1, 2, 3)),
        ("RAS", (-1, 2, 3), (1, 2, 3)),
        ("LPS", (1, -2, 3), (-1, -2, 3)),
        ("RPI", (-1, -2, -3), (1, -2, -3)),
        ("PSR", (3, -1, 2), (3, -1, 2)),
        ("ASR", (3, -1, 2), (3, 1, 2)),
    ],
)
def test_frames_worked_out_by_hand(codes, fsl, voxel):
    affine = affine_of_codes(codes)
    table = [(1.0, 2.0, 3.0)]
    np.testing.assert_array_equal(to_world(table, affine, "fsl"), [fsl])
    np.testing.assert_array_equal(to_world(table, affine, "voxel"), [voxel])
    np.testing.assert_array_equal(to_world(table, affine, "world"), table)


@pytest.mark.parametrize("codes", ["LAS", "LPS", "RAS"])
@pytest.mark.parametrize("tilt", [0, 25], ids=["straight", "oblique"])
def test_files_of_common_orientations(tmp_path, make_scan, codes, tilt):
    """NIfTI-1 this time, with its float32 orientations."""
    turn = affine_of(Rotation.from_euler("xyz", [tilt, -tilt, tilt / 2], degrees=True).as_matrix())
    scan = make_scan(affine=turn @ affine_of_codes(codes))
    for frame in FRAMES:
        dwi = read_dwi(scan.write(tmp_path, frame, image_class=nib.Nifti1Image), frame=frame)
        expected = np.sqrt(dwi.b_values / 1000)[1:, None] * scan.directions[scan.b_values > 50]
        np.testing.assert_allclose(dwi.q[1:], expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(dwi.affine, scan.affine, rtol=1e-6)


@given(seed=seeds, flip=st.booleans())
def test_orthogonal_part_forgets_voxel_sizes(seed, flip):
    rng = np.random.default_rng(seed)
    rotation = Rotation.from_quat(rng.normal(size=4)).as_matrix() * (-1 if flip else 1)
    affine = affine_of(rotation * rng.uniform(0.2, 10, size=3))
    np.testing.assert_allclose(orthogonal_part(affine), rotation, rtol=0, atol=1e-13)


@given(seed=seeds, frame=st.sampled_from(FRAMES))
def test_lengths_and_angles_are_kept(seed, frame):
    rng = np.random.default_rng(seed)
    affine = affine_of(Rotation.from_quat(rng.normal(size=4)).as_matrix() * rng.uniform(1, 5, 3))
    directions = rng.normal(size=(6, 3))
    turned = to_world(directions, affine, frame)
    np.testing.assert_allclose(turned @ turned.T, directions @ directions.T, rtol=0, atol=1e-13)


def test_directions_given_are_left_alone():
    table = np.ones((1, 3))
    to_world(table, np.eye(4), "fsl")
    np.testing.assert_array_equal(table, 1)


def sheared(cosine):
    """Affine whose first two axes have this cosine."""
    return affine_of([[2, 2.5 * cosine, 0], [0, 2.5 * np.sqrt(1 - cosine**2), 0], [0, 0, 3]])


def test_a_little_shear_is_shared_between_the_axes():
    cosine = 0.9 * MAX_SHEAR
    rotation = orthogonal_part(sheared(cosine))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-14)
    x, y = (sheared(cosine)[:3, axis] / (2, 2.5)[axis] for axis in (0, 1))
    np.testing.assert_allclose(rotation[:, 0] @ x, rotation[:, 1] @ y, atol=1e-14)


def test_shear_is_refused_where_it_matters():
    affine = sheared(1.1 * MAX_SHEAR)
    for frame in ("fsl", "voxel"):
        with pytest.raises(DWIError, match=r"sheared: .* 89\.4 degrees"):
            to_world([[1, 0, 0]], affine, frame)
    np.testing.assert_array_equal(to_world([[1, 0, 0]], affine, "world"), [[1, 0, 0]])


@given(seed=seeds)
def test_shear_is_that_between_voxel_axes_however_the_scan_lies(seed):
    turn = affine_of(Rotation.from_quat(np.random.default_rng(seed).normal(size=4)).as_matrix())
    orthogonal_part(turn @ sheared(0.99 * MAX_SHEAR))
    with pytest.raises(DWIError, match=r"sheared: .* 89\.4 degrees"):
        orthogonal_part(turn @ sheared(1.01 * MAX_SHEAR))


def test_axes_whose_length_overflows_are_refused_without_a_warning():
    with np.errstate(over="raise"), pytest.raises(DWIError, match="singular"):
        to_world([[1, 0, 0]], np.diag([1e200, 2.0, 2.0, 1.0]), "voxel")


@pytest.mark.parametrize(
    ("affine", "reason"),
    [
        (np.diag([2.0, 0.0, 2.0, 1.0]), "singular"),
        (affine_of([[1, 1, 0], [1, 1, 0], [0, 0, 1]]), "singular"),
        (np.diag([2.0, np.nan, 2.0, 1.0]), "not numbers"),
        (np.eye(3), "4 x 4"),
        (np.diag([2.0, 2.0, 2.0, 2.0]), "last row"),
    ],
)
@pytest.mark.parametrize("frame", FRAMES)
def test_affines_that_are_none(affine, reason, frame):
    with pytest.raises(DWIError, match=reason):
        to_world([[1, 0, 0]], affine, frame)


def test_frames_that_are_none():
    with pytest.raises(DWIError, match="frame='FSL' is unknown: use 'fsl', 'voxel' or 'world'"):
        to_world([[1, 0, 0]], np.eye(4), "FSL")
