"""Real scans, each with a trap. Where they come from: the SOURCE file in each folder of theirs."""

from __future__ import annotations

import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from tripq.scans import read_dwi, write_map

dti = pytest.importorskip("dipy.reconst.dti", reason="the tensor fit is DIPY's")
gradient_table = pytest.importorskip("dipy.core.gradients").gradient_table

NLSAM = "nlsam_invivo_1p8mm/dwi_1_8.nii.gz"
TRACTSEG = "tractseg_example/Diffusion.nii.gz"
MRTRIX = "mrtrix3_crop/derived_msmt_dwi.nii.gz"
UIH = "dcm_qa_uih/dti_tra_dir16_PA_6_134431.nii"
MDT = "mdt_b1k_b2k/b1k_b2k_example_slices_24_38.nii.gz"
MASKS = {
    TRACTSEG: "tractseg_example/nodif_brain_mask.nii.gz",
    MRTRIX: "mrtrix3_crop/derived_msmt_mask.nii.gz",
    MDT: "mdt_b1k_b2k/b1k_b2k_example_slices_24_38_mask.nii.gz",
}
BACKGROUND = {NLSAM: 200, UIH: 300}  # intensity that most of the air stays below, without a mask


@pytest.fixture(scope="module")
def read(shared_data):
    """Read a scan by its name, in its own mask if it has one and none is given."""
    folder = shared_data / "real_dwi"

    def read_one(name, frame="fsl", mask=None):
        if not (folder / name).is_file():
            pytest.skip(f"no scan {name}")
        if mask is None and name in MASKS:
            mask = folder / MASKS[name]
        table = {}
        if name == MDT:  # its table has another stem
            table = {key: folder / f"mdt_b1k_b2k/b1k_b2k.{key}" for key in ("bval", "bvec")}
        return read_dwi(folder / name, mask=mask, frame=frame, **table)

    return read_one


@pytest.fixture(scope="module")
def whole_head(read):
    """Read the largest scan without a mask; also returns the peak of memory in bytes."""
    tracemalloc.start()
    dwi = read(NLSAM, frame="voxel")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return dwi, peak


def slab(shape, first, last):
    mask = np.zeros(shape, dtype=bool)
    mask[:, :, first:last] = True
    return mask


def fit_tensor(dwi, voxels):
    """FA (n,) and main direction (n, 3) in world axes."""
    lengths = np.linalg.norm(dwi.q, axis=1, keepdims=True)
    directions = np.divide(dwi.q, lengths, out=np.zeros_like(dwi.q), where=lengths > 0)
    table = gradient_table(dwi.b_values, bvecs=directions)
    fit = dti.TensorModel(table).fit(dwi.signal[voxels])
    return fit.fa, fit.evecs[..., 0]


def coherence(dwi, voxels, min_fa=0.3):
    """How well main directions continue into the voxels they point at, between 0 and 1.

    From each voxel with a fibre, a step along it forwards and one backwards: the mean |cosine|
    between the two directions, 0 where the step leads out of the fibres. After Schilling et al.,
    Magn. Reson. Imaging 58 (2019) 82-89.
    """
    fa, direction = fit_tensor(dwi, voxels)
    fibre = fa > min_fa
    field = np.zeros((len(dwi.b0), 3))
    field[voxels[fibre]] = direction[fibre]
    field = dwi.volume(field)
    step = 1.5 * dwi.voxel_size.max() * direction[fibre]
    centres = dwi.voxel_centres()[voxels[fibre]]
    cosines = []
    for target in (centres + step, centres - step):
        index = np.rint(nib.affines.apply_affine(np.linalg.inv(dwi.affine), target)).astype(int)
        inside = np.all((index >= 0) & (index < dwi.mask.shape), axis=1)
        reached = field[tuple(index[inside].T)]
        cosines.append(np.abs(np.sum(reached * direction[fibre][inside], axis=1)))
    return np.concatenate(cosines).sum() / (2 * np.count_nonzero(fibre))


# Tables: b0 volumes and shells


def test_b0_may_come_last_and_999_is_1000(whole_head, shared_data):
    dwi, _ = whole_head
    assert repr(dwi) == (
        "DWI(dwi_1_8.nii.gz: 549,880 voxels of 1.8 x 1.8 x 1.8 mm, 64 directions, "
        "shells b=1000 (64))"
    )
    assert set(dwi.b_values) == {0, 999, 1000}
    last = nib.load(shared_data / "real_dwi" / NLSAM).slicer[..., 64:].dataobj
    np.testing.assert_allclose(dwi.b0, np.asarray(last)[..., 0][dwi.mask], rtol=1e-7)
    assert np.isnan(dwi.header["pixdim"][4])


def test_999_998_is_1000(read):
    dwi = read(TRACTSEG)
    assert [(round(shell.b_value), len(shell)) for shell in dwi.shells] == [(1000, 32)]
    assert dwi.notes == ("Voxels removed because b0 is not above 0: 73.",)


def test_b_half_is_b0(read):
    dwi = read(MRTRIX)
    assert [(shell.b_value, len(shell)) for shell in dwi.shells] == [
        (700, 16),
        (1200, 30),
        (2800, 50),
    ]
    assert dwi.signal.shape == (2218, 97)
    np.testing.assert_allclose(np.linalg.norm(dwi.q, axis=1) ** 2 * 1000, dwi.b_values, rtol=1e-14)


def test_b_1_25_is_b0_of_anisotropic_voxels(read):
    dwi = read(UIH)
    assert [(shell.b_value, len(shell)) for shell in dwi.shells] == [(929.75, 16)]
    np.testing.assert_allclose(dwi.voxel_size, [3.5, 3.5, 4.2], rtol=1e-4)
    x, y, z = np.argwhere(dwi.mask).T
    above = np.flatnonzero((np.diff(z) == 1) & (np.diff(x) == 0) & (np.diff(y) == 0))
    centres = dwi.voxel_centres()
    np.testing.assert_allclose(
        np.linalg.norm(centres[above + 1] - centres[above], axis=1), 4.2, rtol=1e-4
    )


def test_negative_intensities_are_told(read, shared_data):
    dwi = read(MDT)
    assert [(shell.b_value, len(shell)) for shell in dwi.shells] == [(1000, 30), (2000, 60)]
    assert dwi.notes == ("Negative intensities set to 0: 1680.",)
    raw = np.asarray(nib.load(shared_data / "real_dwi" / MDT).dataobj)[dwi.mask]
    assert np.count_nonzero(raw < 0) == 1680
    assert dwi.signal.min() == 0
    b0 = np.loadtxt(shared_data / "real_dwi/mdt_b1k_b2k/b1k_b2k.bval") == 0
    assert np.count_nonzero(b0) == 13
    np.testing.assert_allclose(dwi.b0, np.maximum(raw[:, b0], 0).mean(axis=1), rtol=1e-6)


# Frames: only one of them makes fibres continue


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        (NLSAM, "voxel", "fsl"),  # det(affine) > 0, and x was not negated
        (MRTRIX, "fsl", "voxel"),  # det(affine) > 0, and x was negated
        (MRTRIX, "fsl", "world"),
        (UIH, "fsl", "world"),
        (TRACTSEG, "fsl", "world"),
    ],
)
def test_fibres_continue_in_the_right_frame(read, name, right, wrong):
    mask = {
        NLSAM: slab((128, 128, 78), 38, 43),
        UIH: slab((64, 64, 20), 8, 14),
        TRACTSEG: slab((73, 87, 73), 34, 39),
    }.get(name)
    values = {}
    for frame in (right, wrong):
        dwi = read(name, frame, mask)
        voxels = np.flatnonzero(dwi.b0 > BACKGROUND.get(name, 0))
        values[frame] = coherence(dwi, voxels)
    print(f"{name}: coherence {values}")
    assert values[right] > values[wrong] + 0.05


@pytest.mark.parametrize("frame", ["fsl", "world"])
def test_tensor_fit_agrees_with_the_published_one(read, shared_data, frame):
    """FA does not depend on the frame; the main direction does, and peaks are in the world."""
    dwi = read(TRACTSEG, frame)
    voxels = np.random.default_rng(0).choice(len(dwi.b0), 4000, replace=False)
    fa, direction = fit_tensor(dwi, voxels)
    folder = shared_data / "real_dwi" / "tractseg_example"
    published = nib.load(folder / "FA.nii.gz").get_fdata()[dwi.mask][voxels]
    np.testing.assert_allclose(fa, published, rtol=0, atol=1e-5)

    peaks = np.asarray(nib.load(folder / "peaks.nii.gz").dataobj)[dwi.mask][voxels]
    first, second = (np.linalg.norm(peaks[:, i : i + 3], axis=1) for i in (0, 3))
    single = (second < first / 2) & (fa > 0.3)  # one fibre, which a tensor can describe
    cosine = np.abs(np.sum(peaks[single, :3] * direction[single], axis=1)) / first[single]
    angle = np.degrees(np.median(np.arccos(np.minimum(cosine, 1))))
    print(f"{frame}: median angle to the peaks {angle:.1f} degrees, {single.sum()} voxels")
    assert angle < 6 if frame == "fsl" else angle > 30


# Maps, memory


@pytest.mark.parametrize("name", [TRACTSEG, MRTRIX, UIH, MDT])
def test_map_has_the_grid_of_the_scan(read, shared_data, tmp_path, name):
    dwi = read(name)
    write_map(dwi.b0, dwi, tmp_path / "b0.nii.gz")
    scan, written = nib.load(shared_data / "real_dwi" / name), nib.load(tmp_path / "b0.nii.gz")
    np.testing.assert_array_equal(written.affine, scan.affine)
    for field in ("sform_code", "qform_code", "xyzt_units"):
        assert written.header[field] == scan.header[field]
    np.testing.assert_array_equal(written.get_fdata()[dwi.mask], dwi.b0)


def test_map_of_a_scan_with_an_odd_header(whole_head, tmp_path):
    dwi, _ = whole_head
    write_map(dwi.b0 > 200, dwi, tmp_path / "brain.nii.gz")
    written = nib.load(tmp_path / "brain.nii.gz")
    np.testing.assert_array_equal(written.affine, dwi.affine)
    np.testing.assert_array_equal(np.asarray(written.dataobj)[dwi.mask], dwi.b0 > 200)
    assert np.isfinite(written.header["pixdim"]).all()


def test_whole_head_is_read_in_little_memory(whole_head):
    _, peak = whole_head
    print(f"peak {peak / 1e9:.2f} GB")
    assert peak < 0.7e9
