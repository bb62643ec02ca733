from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from tripq.scans import DWIError, from_world, read_dwi, to_world, write_dwi, write_map


@pytest.fixture
def dwi(scan, tmp_path):
    """One voxel lies outside the mask."""
    mask = np.ones(scan.data.shape[:3])
    mask[0, 1, 0] = 0
    return read_dwi(scan.write(tmp_path), mask=mask)


@pytest.fixture
def values(dwi):
    return np.random.default_rng(1).normal(size=len(dwi.b0))


@pytest.mark.parametrize("name", ["map.nii", "map.nii.gz"])
def test_values_return_to_their_voxels(dwi, values, tmp_path, name):
    write_map(values, dwi, tmp_path / name)
    image = nib.load(tmp_path / name)
    assert image.get_data_dtype() == np.float32
    assert image.shape == dwi.mask.shape
    np.testing.assert_array_equal(image.get_fdata()[dwi.mask], values.astype(np.float32))
    np.testing.assert_array_equal(image.get_fdata()[~dwi.mask], 0)


def test_booleans_are_written_as_bytes(dwi, values, tmp_path):
    write_map(values > 0, dwi, tmp_path / "map.nii.gz")
    image = nib.load(tmp_path / "map.nii.gz")
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(image.dataobj)[dwi.mask], values > 0)


@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (0, 1), (4, 3), (0, 0)])
@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
def test_map_lies_on_the_grid_of_the_scan(scan, tmp_path, codes, image_class):
    path = scan.write(tmp_path, image_class=image_class)
    image = nib.load(path)
    sform, qform = codes
    image.set_sform(scan.affine, sform)
    image.set_qform(scan.affine, qform)
    image.header["cal_max"] = 4000
    image.header["pixdim"][4:] = np.nan
    image.header["descrip"] = b"series 7"
    image.header.set_intent("vector")
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"of the scan"))
    image.to_filename(tmp_path / "odd.nii")
    scan_header = nib.load(tmp_path / "odd.nii").header
    dwi = read_dwi(tmp_path / "odd.nii", tmp_path / "dwi.bval", tmp_path / "dwi.bvec")

    write_map(dwi.b0, dwi, tmp_path / "map.nii.gz")
    written = nib.load(tmp_path / "map.nii.gz")
    header = written.header
    assert type(header).sizeof_hdr == type(scan_header).sizeof_hdr
    np.testing.assert_array_equal(written.affine, dwi.affine)
    for name in (
        "sform_code",
        "qform_code",
        *("srow_x", "srow_y", "srow_z"),
        *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
        "xyzt_units",
    ):
        np.testing.assert_array_equal(header[name], scan_header[name], err_msg=name)
    np.testing.assert_array_equal(header["pixdim"][:4], scan_header["pixdim"][:4])
    assert np.isfinite(header["pixdim"]).all()
    assert header["cal_max"] == 0
    assert header["descrip"] == b""
    assert header.get_intent()[0] == "none"
    assert len(header.extensions) == 0
    np.testing.assert_array_equal(written.get_fdata()[dwi.mask], dwi.b0)


def test_scan_without_a_header(dwi, values, tmp_path):
    """As simulated scans are."""
    write_map(values, replace(dwi, header=None, path=None), tmp_path / "map.nii")
    image = nib.load(tmp_path / "map.nii")
    np.testing.assert_allclose(image.affine, dwi.affine, rtol=1e-6)
    assert image.header.get_xyzt_units()[0] == "mm"


def test_equal_maps_are_equal_files(dwi, values, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_map(values, dwi, tmp_path / name / "map.nii.gz")
    first, second = (tmp_path / name / "map.nii.gz" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError("no space left on device")])
def test_interruption_leaves_the_former_file(dwi, values, tmp_path, monkeypatch, interruption):
    write_map(values, dwi, tmp_path / "map.nii.gz")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def write_half(image, path):
        path.write_bytes(b"half a file")
        raise interruption

    monkeypatch.setattr(nib.Nifti1Pair, "to_filename", write_half)
    with pytest.raises((KeyboardInterrupt, DWIError)):
        write_map(-values, dwi, tmp_path / "map.nii.gz")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "wrong", "reason"),
    [
        ("map.nii", lambda values: values[1:], r"shape \(22,\); a map of this scan needs \(23,\)"),
        ("map.nii", lambda values: values[:, None], r"shape \(23, 1\)"),
        ("map.nii", lambda values: values * 1j, "real numbers or booleans, not complex128"),
        ("map.mgz", lambda values: values, r"not the name of a NIfTI file \(.nii.gz or .nii\)"),
        ("missing/map.nii", lambda values: values, "cannot be written: No such file"),
        ("dwi.bval/map.nii", lambda values: values, "cannot be written: Not a directory"),
        ("dwi.nii.gz", lambda values: values, "this is the scan itself"),
    ],
)
def test_what_cannot_be_written(dwi, values, tmp_path, name, wrong, reason):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DWIError, match=reason) as error:
        write_map(wrong(values), dwi, tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: ")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("frame", ["fsl", "voxel", "world"])
@pytest.mark.parametrize("name", ["copy.nii", "copy.nii.gz"])
def test_a_scan_comes_back_as_it_was_written(dwi, tmp_path, frame, name):
    write_dwi(dwi, tmp_path / name, frame)
    table = tmp_path / "copy.b" if frame == "world" else None
    copy = read_dwi(tmp_path / name, bvec=table, mask=dwi.mask, frame=frame)
    np.testing.assert_array_equal(copy.mask, dwi.mask)
    np.testing.assert_allclose(copy.affine, dwi.affine, atol=1e-6)
    np.testing.assert_allclose(copy.b0, dwi.b0, rtol=1e-6)
    np.testing.assert_allclose(copy.signal, dwi.signal, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(copy.b_values, dwi.b_values, rtol=1e-9)
    np.testing.assert_allclose(copy.q, dwi.q, atol=1e-6)


def test_the_scan_itself_is_never_written_over(dwi):
    before = dwi.path.read_bytes()
    with pytest.raises(DWIError, match="this is the scan itself"):
        write_dwi(dwi, dwi.path)
    assert dwi.path.read_bytes() == before


def test_a_scan_that_cannot_be_written_leaves_nothing(dwi, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DWIError, match="cannot be written"):
        write_dwi(dwi, tmp_path / "file" / "copy.nii.gz")
    with pytest.raises(DWIError, match="frame='lps' is unknown"):
        write_dwi(dwi, tmp_path / "copies" / "copy.nii.gz", "lps")
    assert not (tmp_path / "copies").exists()


@pytest.mark.parametrize("frame", ["fsl", "voxel", "world"])
def test_directions_return_from_the_world(dwi, frame):
    there = to_world(dwi.q, dwi.affine, frame)
    np.testing.assert_allclose(from_world(there, dwi.affine, frame), dwi.q, atol=1e-14)


def test_several_values_in_a_voxel_are_as_many_volumes(dwi, tmp_path):
    values = np.random.default_rng(2).normal(size=(len(dwi.b0), 3))
    write_map(values, dwi, tmp_path / "map.nii.gz")
    image = nib.load(tmp_path / "map.nii.gz")
    assert image.shape == (*dwi.mask.shape, 3)
    np.testing.assert_array_equal(image.get_fdata()[dwi.mask], values.astype(np.float32))
