from __future__ import annotations

import gzip
import os
import re
import struct
import tracemalloc
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from tests.trust.bounds import bounded
from tripq.scans import DWIError, read_dwi
from tripq.scans.read import survey_dwi

WEIGHTED = [0, 2, 3, 5, 6]  # volumes of the made-up scan that are not b0
B0 = [1, 4]
NOT_FINITE = "Voxels removed because an intensity is NaN or infinite: 1."


def refuses(reason, *args, **kwargs):
    """Assert that the scan is refused for this reason."""
    with pytest.raises(DWIError, match=reason):
        read_dwi(*args, **kwargs)


def rewrite(path, change):
    """Change the text of a table."""
    path.write_text(change(path.read_text()))


# What is read


def test_signal_is_intensity_over_mean_b0(scan, tmp_path):
    dwi = read_dwi(scan.write(tmp_path))
    b0 = scan.data[..., B0].mean(axis=-1).astype(np.float32)
    assert dwi.signal.dtype == np.float32
    assert dwi.signal.flags.c_contiguous
    np.testing.assert_array_equal(dwi.volume(dwi.b0), b0)
    np.testing.assert_array_equal(dwi.volume(dwi.signal)[..., 0], 1)
    np.testing.assert_array_equal(
        dwi.volume(dwi.signal)[..., 1:], scan.data[..., WEIGHTED].astype(np.float32) / b0[..., None]
    )
    np.testing.assert_array_equal(dwi.affine, scan.affine)
    assert dwi.notes == ("No mask was given; usable voxels: 24.",)
    assert dwi.b0_volumes == len(B0)


def test_b_values_stay_those_of_the_volumes(scan, tmp_path):
    dwi = read_dwi(scan.write(tmp_path))
    np.testing.assert_array_equal(dwi.b_values, [0, 1000, 2000, 1005, 999, 2000])
    np.testing.assert_allclose((dwi.q**2).sum(axis=1), dwi.b_values / 1000, rtol=1e-14)
    assert [shell.b_value for shell in dwi.shells] == [1000, 2000]
    assert [list(shell.indices) for shell in dwi.shells] == [[1, 3, 4], [2, 5]]
    assert repr(dwi).startswith("DWI(dwi.nii.gz: 24 voxels of ")
    assert repr(dwi).endswith(" mm, 5 directions, shells b=1000 (3), b=2000 (2))")


def test_thresholds_are_arguments(scan, tmp_path):
    path = scan.write(tmp_path)
    assert len(read_dwi(path, b0_threshold=999).shells[0]) == 2
    assert len(read_dwi(path, shell_tolerance=4).shells) == 3
    assert [len(shell) for shell in read_dwi(path, b0_threshold=4).shells] == [1, 3, 2]


@pytest.mark.parametrize("mask_kind", ["bool", "uint8", "float", "file", "file, 4 dimensions"])
def test_mask(scan, tmp_path, mask_kind):
    chosen = np.random.default_rng(3).random((4, 3, 2)) > 0.5
    mask = {
        "bool": chosen,
        "uint8": chosen.astype(np.uint8),
        "float": np.where(chosen, 0.2, np.nan),
    }.get(mask_kind)
    if mask is None:
        mask = tmp_path / "mask.nii.gz"
        shape = (4, 3, 2, 1) if "4" in mask_kind else (4, 3, 2)
        labels = np.where(chosen, 7, -1).astype(np.int16)
        nib.Nifti1Image(labels.reshape(shape), scan.affine).to_filename(mask)
    dwi = read_dwi(scan.write(tmp_path), mask=mask)
    np.testing.assert_array_equal(dwi.mask, chosen)
    np.testing.assert_array_equal(dwi.b0, scan.data[chosen][:, B0].mean(axis=1))
    assert dwi.notes == ()


@pytest.mark.parametrize("suffixes", [(".bval", ".bvec"), (".bvals", ".bvecs")])
@pytest.mark.parametrize("name", ["dwi.nii", "sub-01.run.1.nii.gz"])
def test_tables_are_found_beside_the_image(scan, tmp_path, suffixes, name):
    path = scan.write(tmp_path, name=name)
    stem = name.removesuffix(".gz").removesuffix(".nii")
    for written, wanted in zip((".bval", ".bvec"), suffixes, strict=True):
        (tmp_path / f"{stem}{written}").rename(tmp_path / f"{stem}{wanted}")
    assert len(read_dwi(path).b_values) == 6


def test_tables_of_mrtrix_hold_everything(scan, tmp_path):
    path = scan.write(tmp_path)
    table = tmp_path / "grad.b"
    np.savetxt(table, np.column_stack([scan.directions, scan.b_values]), fmt="%.17g")
    expected = read_dwi(path)
    for unused in tmp_path.glob("dwi.bv*"):
        unused.unlink()
    dwi = read_dwi(path, bvec=table, frame="world")
    np.testing.assert_allclose(dwi.q, expected.q, atol=1e-14)
    np.testing.assert_array_equal(dwi.b_values, expected.b_values)
    refuses(r"grad\.b: .* frame='world' \(not 'fsl'\)", path, bvec=table)
    refuses(r"grad\.b: .* without bval", path, bval=table, bvec=table, frame="world")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("byteorder", "<>")
def test_types_of_intensities(scan, tmp_path, dtype, byteorder):
    data = (scan.data % 100 + 1).astype(dtype)
    path = replace(scan, data=data).write(tmp_path)
    image = nib.Nifti1Image(data, scan.affine, nib.Nifti1Header(endianness=byteorder), dtype=dtype)
    image.to_filename(path)
    np.testing.assert_array_equal(
        read_dwi(path).b0, data[..., B0].astype(float).mean(axis=-1).ravel()
    )


@pytest.mark.parametrize(("slope", "intercept"), [(0.25, 16), (2, 0), (1, 1)])
def test_slope_and_intercept(scan, tmp_path, slope, intercept):
    path = scan.write(tmp_path)
    image = nib.Nifti1Image(scan.data, scan.affine)
    image.header.set_slope_inter(slope, intercept)
    image.to_filename(path)
    np.testing.assert_array_equal(nib.load(path).dataobj, slope * scan.data + intercept)
    np.testing.assert_array_equal(
        read_dwi(path).b0, slope * scan.data[..., B0].mean(axis=-1).ravel() + intercept
    )


@pytest.mark.parametrize("rubbish", [0.0, np.nan])
def test_directions_of_b0_volumes_are_ignored(scan, tmp_path, rubbish):
    scan.directions[B0] = rubbish
    np.testing.assert_array_equal(read_dwi(scan.write(tmp_path)).q[0], 0)


def test_header_without_orientation(make_scan, tmp_path):
    """NIfTI then has voxel sizes only; x from right to left is what FSL and nibabel assume."""
    scan = make_scan(affine=np.diag([-2.0, 2.0, 3.0, 1.0]))
    image = nib.load(scan.write(tmp_path))
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    image.to_filename(tmp_path / "bare.nii")
    dwi = read_dwi(tmp_path / "bare.nii", tmp_path / "dwi.bval", tmp_path / "dwi.bvec")
    assert dwi.notes[0] == "The header gives no orientation: x is taken to run from right to left."
    np.testing.assert_array_equal(dwi.affine[:3, :3], np.diag([-2, 2, 3]))
    np.testing.assert_allclose(dwi.q, read_dwi(tmp_path / "dwi.nii.gz").q, atol=1e-14)


@pytest.mark.parametrize("shape", [(5, 4, 1), (1, 1, 1)], ids=["slice", "voxel"])
def test_small_images(make_scan, tmp_path, shape):
    assert len(read_dwi(make_scan(shape=shape).write(tmp_path)).b0) == np.prod(shape)


def test_memory_is_taken_by_the_voxels_of_the_mask(make_scan, tmp_path):
    """The result, and what a voxel of the grid takes whatever the number of volumes."""
    path = repeated(make_scan(shape=(30, 30, 30)), 20).write(tmp_path)
    for thickness in (30, 3):
        mask = np.zeros((30, 30, 30), dtype=bool)
        mask[:thickness] = True
        dwi, peak = traced(lambda mask=mask: read_dwi(path, mask=mask))
        assert peak < dwi.signal.nbytes + beside(mask.size)


@pytest.mark.parametrize("name", ["dwi.nii", "dwi.nii.gz"])
def test_a_survey_takes_the_same_memory_however_many_volumes(make_scan, tmp_path, name):
    scan = make_scan(shape=(30, 30, 30))
    for times in (2, 20):
        path = repeated(scan, times).write(tmp_path, name=name)
        survey, peak = traced(lambda path=path: survey_dwi(path))
        assert peak < beside(survey.mask.size)
        dwi, peak = traced(lambda survey=survey: survey.read(thin(survey.mask.shape)))
        assert peak < dwi.signal.nbytes + beside(survey.mask.size)


def beside(voxels):
    """Bytes that reading takes beside its result, however many volumes there are.

    For each voxel of the grid two volumes as they are stored (16), one in float32 (4) and what was
    seen so far (18), with some room; and the buffer of the file, of 4 MB.
    """
    return 48 * voxels + 2**22 + 4e5


def repeated(scan, times):
    """The same volumes again and again."""
    return replace(
        scan,
        data=np.tile(scan.data, times),
        b_values=np.tile(scan.b_values, times),
        directions=np.tile(scan.directions, (times, 1)),
    )


def thin(shape):
    mask = np.zeros(shape, dtype=bool)
    mask[:3] = True
    return mask


def traced(function):
    """What a function returns, and the most memory that it held at a time."""
    tracemalloc.start()
    try:
        result = function()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_voxels_read_after_a_survey_are_bit_for_bit_those_read_at_once(make_scan, tmp_path):
    """Whatever is wrong with some of them, and wherever the mask lies."""
    scan = make_scan(shape=(9, 8, 7))
    data = scan.data.astype(np.float32) + 0.1
    rng = np.random.default_rng(1)
    data[rng.random(data.shape[:3]) < 0.1] = 0
    data[rng.random(data.shape) < 0.01] = np.nan
    data[rng.random(data.shape) < 0.05] *= -1
    path = replace(scan, data=data).write(tmp_path)
    whole, survey = read_dwi(path), survey_dwi(path)
    assert 0 < len(whole.b0) < survey.mask.size
    np.testing.assert_array_equal(survey.mask, whole.mask)
    np.testing.assert_array_equal(survey.b0, whole.b0)
    np.testing.assert_array_equal(survey.b0_on_grid(), whole.volume(whole.b0))
    within = rng.random(survey.mask.shape) < 0.5
    dwi = survey.read(within, "One note more.")
    kept = within[whole.mask]
    np.testing.assert_array_equal(dwi.mask, whole.mask & within)
    for name in ("signal", "b0"):
        np.testing.assert_array_equal(getattr(dwi, name), getattr(whole, name)[kept])
    assert dwi.signal.dtype == np.float32
    for name in ("q", "b_values", "affine"):
        np.testing.assert_array_equal(getattr(dwi, name), getattr(whole, name))
    assert dwi.notes == (*whole.notes, "One note more.")
    assert (dwi.path, dwi.b0_volumes) == (whole.path, whole.b0_volumes)
    assert dwi.header == whole.header


def test_a_signal_that_may_not_take_so_much_is_refused_before_it_is_read(scan, tmp_path):
    path = scan.write(tmp_path)
    takes = 24 * 6 * 4
    assert read_dwi(path, max_bytes=takes).signal.nbytes == takes
    reason = r"dwi\.nii\.gz: the signal takes 576 bytes of memory, and 575 bytes are left for it"
    refuses(reason, path, max_bytes=takes - 1)
    refuses("and 0 bytes are left for it: allow at least 1.08 kB more", path, max_bytes=-500)
    survey = survey_dwi(path)
    half = np.arange(4)[:, None, None] < [[[2]]]
    assert survey.read(half & survey.mask, max_bytes=takes / 2).signal.nbytes == takes / 2
    with pytest.raises(DWIError, match=reason):
        survey.read(survey.mask, max_bytes=takes - 1)


# What is put right, and told


def corrupted(scan, tmp_path, corrupt):
    """Read a float32 version of a scan after something was done to its intensities."""
    data = scan.data.astype(np.float32)
    corrupt(data)
    return read_dwi(replace(scan, data=data).write(tmp_path), mask=np.ones(data.shape[:3]))


def set_to(where, value):
    def corrupt(data):
        data[where] = value

    return corrupt


@pytest.mark.parametrize(
    ("corrupt", "note"),
    [
        (set_to((2, 1, 0, B0), 0), "Voxels removed because b0 is not above 0: 1."),
        (set_to((2, 1, 0, B0), -3), "Voxels removed because b0 is not above 0: 1."),
        (set_to((2, 1, 0, B0), 1e-38), "Voxels removed because b0 is not above 0: 1."),
        (set_to((2, 1, 0), 0), "Voxels removed because b0 is not above 0: 1."),
        (set_to((2, 1, 0, B0[0]), np.nan), NOT_FINITE),
        (set_to((2, 1, 0, 3), np.nan), NOT_FINITE),
        (set_to((2, 1, 0, 3), -np.inf), NOT_FINITE),
        (set_to((2, 1, 0), np.nan), NOT_FINITE),
        (
            set_to((2, 1, 0, WEIGHTED), 0),
            "Voxels removed because all diffusion-weighted intensities are 0: 1.",
        ),
    ],
)
def test_voxels_that_cannot_be_used_leave_the_mask(scan, tmp_path, corrupt, note):
    dwi = corrupted(scan, tmp_path, corrupt)
    assert dwi.notes == (note,)
    assert not dwi.mask[2, 1, 0]
    assert len(dwi.b0) == 23
    clean = read_dwi(scan.write(tmp_path))
    np.testing.assert_array_equal(dwi.signal, clean.volume(clean.signal)[dwi.mask])


def test_negative_intensities_become_zero_before_b0_is_averaged(scan, tmp_path):
    def corrupt(data):
        data[2, 1, 0, 3] = -5
        data[2, 1, 0, B0] = (-100, 300)
        data[0, 0, 0] = np.nan
        data[0, 0, 0, 3] = -1  # of a voxel that is removed: not counted

    dwi = corrupted(scan, tmp_path, corrupt)
    assert dwi.notes == (
        NOT_FINITE,
        "Negative intensities set to 0: 2.",
    )
    assert dwi.volume(dwi.b0)[2, 1, 0] == 150
    assert dwi.volume(dwi.signal)[2, 1, 0, 1 + WEIGHTED.index(3)] == 0
    assert dwi.signal.min() == 0


def test_values_too_large_for_float32_count_as_infinite(scan, tmp_path):
    data = scan.data.astype(np.float64)
    data[2, 1, 0, 3] = 1e300
    dwi = read_dwi(replace(scan, data=data).write(tmp_path))
    assert dwi.notes[1:] == (NOT_FINITE,)


def test_every_reason_is_told_when_nothing_is_left(scan, tmp_path):
    def corrupt(data):
        data[..., 3] = np.nan
        data[0, ..., 3] = 1
        data[0, ..., B0] = 0

    with pytest.raises(DWIError) as error:
        corrupted(scan, tmp_path, corrupt)
    assert str(error.value) == (
        f"{tmp_path / 'dwi.nii.gz'}: no voxel can be used. Voxels removed because an "
        "intensity is NaN or infinite: 18. Voxels removed because b0 is not above 0: 6."
    )


def test_background_without_b0_is_left_out(scan, tmp_path):
    scan.data[0] = 0
    dwi = read_dwi(scan.write(tmp_path))
    assert dwi.notes == (
        "No mask was given; usable voxels: 18.",
        "Voxels removed because b0 is not above 0: 6.",
    )


# What is refused


def test_counts_must_agree(scan, tmp_path):
    path = scan.write(tmp_path)
    bval, bvec = tmp_path / "dwi.bval", tmp_path / "dwi.bvec"
    volumes = f"{re.escape(str(path))} has 7 volumes"
    rewrite(bval, lambda text: text + " ".join(["1000"]))
    refuses(r"dwi\.bval: 2 rows of|its rows differ", path)
    np.savetxt(bval, np.append(scan.b_values, 1000)[None])
    refuses(rf"dwi\.bval: 8 entries, but {volumes}", path)
    np.savetxt(bval, scan.b_values[None])
    np.savetxt(bvec, scan.directions[1:].T)
    refuses(rf"dwi\.bvec: 6 entries, but {volumes}", path)


@pytest.mark.parametrize(
    ("name", "b_values", "direction", "reason"),
    [
        ("bval", {0: -1000}, {}, "volume 0 .*not -1000"),
        ("bval", {0: np.nan}, {}, "volume 0 .*not nan"),
        ("bval", {1: 300, 4: 300}, {}, "no b0 volume"),
        ("bval", dict.fromkeys(range(7), 0), {}, "no diffusion-weighted volume"),
        ("bvec", {}, {2: np.nan}, "volume 2 .*no direction"),
        ("bvec", {}, {2: 0.0}, "volume 2 .*no direction"),
        ("bvec", {}, {6: 0.9}, "volume 6 .*length"),
    ],
)
def test_tables_that_are_wrong_are_named(scan, tmp_path, name, b_values, direction, reason):
    for volume, value in b_values.items():
        scan.b_values[volume] = value
    for volume, value in direction.items():
        scan.directions[volume] *= value
    refuses(rf"dwi\.{name}: .*{reason}", scan.write(tmp_path))


def test_files_that_are_missing(scan, tmp_path):
    path = scan.write(tmp_path)
    refuses(r"other\.nii: there is no such file", tmp_path / "other.nii")
    refuses(r"m\.nii: there is no such file", path, mask=tmp_path / "m.nii")
    refuses(r"o\.bval: cannot be read: No such file", path, bval=tmp_path / "o.bval")
    (tmp_path / "dwi.bvec").unlink()
    refuses(r"dwi\.nii\.gz: no dwi\.bvec or dwi\.bvecs beside it.*bvec=\.\.\.", path)


def test_frames_are_checked_before_anything_is_read(tmp_path):
    refuses("frame='ras' is unknown", tmp_path / "missing.nii", frame="ras")


@pytest.mark.parametrize("shape", [(4, 3, 2), (4, 3, 2, 1, 7)])
def test_images_of_other_dimensions(scan, tmp_path, shape):
    path = scan.write(tmp_path)
    nib.Nifti1Image(np.ones(shape, np.uint8), scan.affine).to_filename(path)
    refuses(rf"an image of {len(shape)} dimensions", path)


@pytest.mark.parametrize(
    "dtype", [np.complex64, [("R", "u1"), ("G", "u1"), ("B", "u1")]], ids=["complex", "colour"]
)
def test_numbers_that_are_no_magnitudes(scan, tmp_path, dtype):
    path = scan.write(tmp_path)
    nib.Nifti1Image(np.zeros((4, 3, 2, 7), dtype), scan.affine).to_filename(path)
    refuses("magnitudes are real numbers", path)


def test_other_kinds_of_files(scan, tmp_path):
    for name, content in {
        "text.nii": b"nothing of the kind",
        "empty.nii": b"",
        "text.nii.gz": b"nothing of the kind",
        "packed.nii.gz": gzip.compress(b"nothing of the kind"),
    }.items():
        (tmp_path / name).write_bytes(content)
        refuses(rf"{name}: cannot be read as NIfTI", tmp_path / name)
    whole = scan.write(tmp_path, name="whole.nii.gz").read_bytes()
    (tmp_path / "packed.nii").write_bytes(whole)
    (tmp_path / "plain.nii.gz").write_bytes(gzip.decompress(whole))
    refuses(r"packed\.nii: .* compressed by gzip\. Rename it to \.nii\.gz", tmp_path / "packed.nii")
    refuses(r"plain\.nii\.gz: .* not compressed by gzip\..* to \.nii", tmp_path / "plain.nii.gz")
    for name in ("dwi", "dwi.mif", "dwi.img", "dwi.NII"):
        refuses(rf"{name}: not the name of a NIfTI file", tmp_path / name)
    (tmp_path / "folder.nii").mkdir()
    refuses(r"folder\.nii: cannot be read: a folder, not a file\.", tmp_path / "folder.nii")
    os.mkfifo(tmp_path / "pipe.nii")
    refuses(r"pipe\.nii: cannot be read: a pipe or a device, not a file", tmp_path / "pipe.nii")
    nib.AnalyzeImage(scan.data[..., 0].astype(np.int16), None).to_filename(tmp_path / "a.img")
    (tmp_path / "a.hdr").rename(tmp_path / "a.nii")
    refuses(r"a\.nii: (not a NIfTI file|cannot be read)", tmp_path / "a.nii")


@pytest.mark.parametrize("name", ["dwi.nii", "dwi.nii.gz"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_truncated_files(make_scan, tmp_path, name, kept):
    path = make_scan(shape=(10, 9, 8)).write(tmp_path, name=name)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    refuses(rf"{re.escape(name)}: .*truncated|{re.escape(name)}: cannot be read", path)


@pytest.mark.parametrize("missing", range(1, 9))
def test_compressed_files_are_read_to_their_checksum(make_scan, tmp_path, missing):
    """All intensities are there; only the last 8 bytes, checksum and length, are cut."""
    path = make_scan(shape=(10, 9, 8)).write(tmp_path)
    path.write_bytes(path.read_bytes()[:-missing])
    refuses("truncated or damaged", path)


def test_damage_that_only_the_checksum_shows(make_scan, tmp_path):
    path = make_scan(shape=(10, 9, 8)).write(tmp_path)
    raw = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=0))
    raw[-20] ^= 1  # stored, not packed: one bit of an intensity
    path.write_bytes(raw)
    refuses("truncated or damaged: CRC check failed", path)


@pytest.mark.parametrize("name", ["dwi.nii", "dwi.nii.gz"])
def test_headers_of_huge_images_allocate_nothing(scan, tmp_path, name):
    path = scan.write(tmp_path, name=name, image_class=nib.Nifti1Image)
    packed = name.endswith(".gz")
    content = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    content[42:48] = np.full(3, 32767, "<i2").tobytes()  # dim[1:4]
    path.write_bytes(gzip.compress(content) if packed else content)
    refuses(r"truncated, or its header is wrong: .*\(32767, 32767, 32767, 7\)", path)


@pytest.mark.parametrize(("unit", "word"), [("meter", "metres"), ("micron", "micrometres")])
def test_lengths_that_are_not_in_millimetres(scan, tmp_path, unit, word):
    path = scan.write(tmp_path)
    image = nib.load(path)
    image.header.set_xyzt_units(unit)
    image.to_filename(tmp_path / "other.nii")
    refuses(rf"other\.nii: .*lengths in {word}", tmp_path / "other.nii")


@pytest.mark.parametrize(
    ("matrix", "reason"),
    [
        ([[2, 0, 0], [0, 0, 0], [0, 0, 2]], "singular"),
        ([[2, 1, 0], [0, 2, 0], [0, 0, 2]], "sheared"),
        ([[2, np.nan, 0], [0, 2, 0], [0, 0, 2]], "not numbers"),
    ],
)
def test_affines_that_cannot_be_used(scan, tmp_path, matrix, reason):
    path = scan.write(tmp_path)
    image = nib.load(path)
    image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = np.pad(
        np.array(matrix, dtype=float), [(0, 0), (0, 1)]
    )
    image = nib.Nifti2Image(scan.data, None, image.header)
    image.to_filename(path)
    refuses(rf"dwi\.nii\.gz: the affine .*{reason}", path)


def test_masks_of_another_grid(scan, tmp_path):
    path, mask = scan.write(tmp_path), tmp_path / "mask.nii.gz"

    def write(shape, affine, value=1):
        nib.Nifti1Image(np.full(shape, value, np.uint8), affine).to_filename(mask)

    smallest = nib.affines.voxel_sizes(scan.affine).min()
    for shift, accepted in ((0.09, True), (0.11, False)):
        shifted = scan.affine.copy()
        shifted[1, 3] += shift * smallest
        write((4, 3, 2), shifted)
        if accepted:
            assert len(read_dwi(path, mask=mask).b0) == 24
        else:
            refuses(r"mask\.nii\.gz: the mask is on another grid: .* mm", path, mask=mask)
    write((4, 3, 2), scan.affine @ np.diag([-1, 1, 1, 1]))
    refuses("another grid", path, mask=mask)
    for shape in ((3, 4, 2), (4, 3, 2, 2)):
        write(shape, scan.affine)
        refuses(rf"mask\.nii\.gz: a mask of shape {re.escape(str(shape))}", path, mask=mask)
        refuses(r"mask: a mask of shape", path, mask=np.ones(shape))
    write((4, 3, 2), scan.affine, value=0)
    refuses(r"mask\.nii\.gz: the mask is empty", path, mask=mask)
    refuses(r"mask: the mask is empty", path, mask=np.zeros((4, 3, 2)))


@pytest.mark.parametrize("seed", range(6))
def test_the_distance_of_a_mask_is_that_of_its_farthest_voxel(scan, tmp_path, seed):
    path, mask = scan.write(tmp_path), tmp_path / "mask.nii.gz"
    moved = scan.affine.copy()
    moved[:3] += np.random.default_rng(seed).normal(size=(3, 4))
    nib.Nifti2Image(np.ones((4, 3, 2), np.uint8), moved).to_filename(mask)
    voxels = np.pad(np.argwhere(np.ones((4, 3, 2))), ((0, 0), (0, 1)), constant_values=1)
    farthest = np.linalg.norm(voxels @ (moved - scan.affine).T, axis=1).max()
    refuses(rf"its voxels are up to {farthest:.3g} mm from those of the scan", path, mask=mask)


def patched(path, field, value):
    """Write another value into a field of the header of a NIfTI-1 file, packed or not."""
    packed = path.suffix == ".gz"
    content = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    header = np.ndarray((), nib.Nifti1Header.template_dtype, content[:348])
    header[field] = value
    content[:348] = header.tobytes()
    path.write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("name", ["dwi.nii", "dwi.nii.gz"])
@pytest.mark.parametrize("offset", [0, -16, 347, 2**27, np.nan, np.inf])
def test_intensities_begin_behind_the_header_and_not_far(scan, tmp_path, name, offset):
    """An offset of 0 would make intensities of the header; extensions are read as a whole."""
    path = scan.write(tmp_path, name=name, image_class=nib.Nifti1Image)
    patched(path, "vox_offset", offset)
    refuses(rf"{re.escape(name)}: the header is wrong: intensities cannot begin at byte", path)


def test_packed_extensions_are_not_unpacked_without_limit(scan, tmp_path):
    path = scan.write(tmp_path, image_class=nib.Nifti1Image)
    patched(path, "vox_offset", 2**29)
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[348:360] = struct.pack("<4sii", b"\1\0\0\0", 2**29 - 352, 6)
    with gzip.open(path, "wb") as file:
        file.write(content)
        for _ in range(100):
            file.write(bytes(2**20))
    with bounded(10, 30):
        refuses("intensities cannot begin at byte", path)


def test_what_is_packed_behind_the_image_is_not_unpacked_without_limit(scan, tmp_path):
    path = scan.write(tmp_path)
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content + bytes(2**20)))
    assert len(read_dwi(path).b0) == 24
    with gzip.open(path, "wb") as file:
        file.write(content)
        for _ in range(200):
            file.write(bytes(2**20))
    with bounded(10, 30):
        refuses(r"dwi\.nii\.gz: contains much more data than the \(4, 3, 2, 7\) values", path)


@pytest.mark.parametrize(
    ("gigabytes", "reason"), [(1e-9, "takes 52.49 MB of memory to read"), (0.1, "takes 140 MB")]
)
def test_what_does_not_fit_into_memory_is_refused(
    make_scan, tmp_path, monkeypatch, gigabytes, reason
):
    """A file of zeros is a thousandth of them: this one has 40 kB, and would take 140 MB."""
    path = make_scan().write(tmp_path, image_class=nib.Nifti1Image)
    image = nib.Nifti1Image(np.zeros((180, 180, 180, 7), np.uint8), np.diag([2.0, 2, 2, 1]))
    image.to_filename(path)
    monkeypatch.setattr("tripq.scans.nifti._physical_memory", lambda: 1e9 * gigabytes)
    with bounded(20, 30):
        refuses(rf"dwi\.nii\.gz: {reason}.* and this computer has", path)


def test_a_computer_has_the_memory_of_its_pages_if_it_tells_them(scan, tmp_path, monkeypatch):
    path = scan.write(tmp_path)
    need = 4 * 24 * (1 + len(WEIGHTED))
    for pages, fits in ((need // 4, True), (need // 4 - 1, False)):
        monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4, "SC_PHYS_PAGES": pages}.__getitem__)
        if fits:
            assert len(read_dwi(path).b0) == 24
        else:
            refuses("takes 576 bytes of memory to read, and this computer has 572 bytes", path)
    monkeypatch.delattr("os.sysconf")  # Windows has none
    assert len(read_dwi(path).b0) == 24


@pytest.mark.parametrize("edges", [(1e30, 2, 2), (2, 2, 1e-30), (0.002, 0.002, 0.002)])
def test_voxels_that_no_scan_has(make_scan, tmp_path, edges):
    path = make_scan(affine=np.diag([*edges, 1.0])).write(tmp_path)
    refuses(r"dwi\.nii\.gz: the header gives voxels of .* mm wide. Are they in another unit", path)


def test_scans_are_not_at_the_end_of_the_world(make_scan, tmp_path):
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[1, 3] = 1e7
    path = make_scan(affine=affine).write(tmp_path)
    refuses(r"dwi\.nii\.gz: the header puts the first voxel at \[0.0, 10000000.0, 0.0\] mm", path)


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.AnalyzeImage, nib.MGHImage])
def test_images_of_other_kinds_are_not_even_opened(scan, tmp_path, kind):
    path = scan.write(tmp_path, name="dwi.nii")
    image = kind(scan.data[..., 0].astype(np.int16), np.diag([2.0, 2, 2, 1]))
    names = image.filespec_to_file_map(
        tmp_path / "other.mgz" if kind is nib.MGHImage else tmp_path / "other.img"
    )
    image.to_filename(names["image"].filename)
    (tmp_path / names.get("header", names["image"]).filename).rename(path)
    refuses(r"dwi\.nii: (cannot be read as NIfTI|the header is wrong)", path)
