from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from tripq.scans import DWIError, read_dwi, write_map


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
