"""Label images of a dataset: which are found, and which are refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.tasks.tissue.conftest import CLASSES, head
from tripq.scans import DWIError
from tripq.scans.bids import BIDSError
from tripq.tasks.tissue.classes import Classes
from tripq.tasks.tissue.scans import (
    LabelledFiles,
    LabelledScan,
    common_classes,
    read_labelled,
    write_labelled,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for seed in (1, 2):
        write_labelled(tmp_path, head(seed))
    return tmp_path


def truth(data: Path, seed: int = 1, ending: str = "dseg.nii.gz") -> Path:
    name = f"sub-{seed:02}"
    return data / "derivatives" / "truth" / name / "dwi" / f"{name}_{ending}"


def read(data: Path) -> list[LabelledScan]:
    files = LabelledFiles.find(data, data / "derivatives" / "truth").files
    classes = common_classes(files)
    return [read_labelled(item, classes, "fsl") for item in files]


def test_what_is_written_is_read_again(data: Path) -> None:
    for scan, seed in zip(read(data), (1, 2), strict=True):
        original = head(seed)
        assert (scan.name, scan.classes) == (original.name, CLASSES)
        assert (original.labels == -1).any()
        np.testing.assert_array_equal(scan.labels, original.labels)
        np.testing.assert_array_equal(scan.dwi.mask, original.dwi.mask)
        np.testing.assert_allclose(scan.dwi.signal, original.dwi.signal, atol=1e-6)


def test_numbers_may_differ_between_scans_but_not_names(data: Path) -> None:
    image = nib.load(truth(data, 2))
    values = np.asarray(image.dataobj)
    order = {0: 0, -1: -1, 1: 40, 2: 30, 3: 20, 4: 10}
    other = np.vectorize(order.get)(values).astype(np.int16)
    nib.Nifti1Image(other, image.affine).to_filename(truth(data, 2))
    rows = "\n".join(f"{10 * (4 - i)}\t{name}" for i, name in enumerate(CLASSES.names))
    truth(data, 2, "dseg.tsv").write_text(f"index\tname\n{rows}\n")
    np.testing.assert_array_equal(read(data)[1].labels, head(2).labels)
    truth(data, 2, "dseg.tsv").write_text(f"index\tname\n{rows}\n5\tbone\n")
    with pytest.raises(BIDSError, match=r"sub-02_dseg\.tsv: other classes .*\(bone\)"):
        read(data)


def test_a_table_further_up_holds_for_all_scans(data: Path) -> None:
    for seed in (1, 2):
        truth(data, seed, "dseg.tsv").unlink()
    (data / "derivatives" / "truth" / "dseg.tsv").write_text(CLASSES.table)
    np.testing.assert_array_equal(read(data)[1].labels, head(2).labels)


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ("dseg.nii.gz", r"no \*_dseg\.nii\.gz"),
        ("dseg.tsv", r"no \.tsv file"),
        ("desc-brain_mask.nii.gz", r"no \*_desc-brain_mask\.nii\.gz"),
    ],
)
def test_a_scan_without_a_file_is_left_out(data: Path, ending: str, reason: str) -> None:
    truth(data, 1, ending).unlink()
    found = LabelledFiles.find(data, data / "derivatives" / "truth")
    assert [item.name for item in found.files] == ["sub-02"]
    (why,) = found.left_out.values()
    assert reason.replace("\\", "") in why


def test_a_dataset_without_labels_is_refused(data: Path) -> None:
    with pytest.raises(BIDSError, match=r"none of its 2 scans is suitable .*dseg"):
        LabelledFiles.find(data, data / "nowhere")


def test_one_class_is_refused(tmp_path: Path) -> None:
    scan = head(1)
    one = replace(scan, labels=np.minimum(scan.labels, 0), classes=Classes(("lesion",), ("l",)))
    write_labelled(tmp_path, one)
    with pytest.raises(BIDSError, match=r"dseg\.tsv: 'lesion' is the only class"):
        read(tmp_path)


def test_a_class_that_a_scan_lacks_changes_no_number(tmp_path: Path) -> None:
    scan = head(1)
    without = replace(scan, labels=np.where(scan.labels == 1, -1, scan.labels).astype(np.int8))
    write_labelled(tmp_path, without)
    (found,) = read(tmp_path)
    np.testing.assert_array_equal(found.labels, without.labels)
    assert found.classes == CLASSES


def change(path: Path, values: np.ndarray | None = None, move: float = 0.0) -> None:
    image = nib.load(path)
    affine = image.affine.copy()
    affine[0, 3] += move
    data = np.asarray(image.dataobj) if values is None else values
    nib.Nifti1Image(data, affine).to_filename(path)


def test_a_value_without_a_name_is_an_error_in_the_brain_only(data: Path) -> None:
    values = np.asarray(nib.load(truth(data)).dataobj).copy()
    values[0, 0, 0] = 9  # outside the brain
    change(truth(data), values)
    assert len(read(data)) == 2
    values[4, 4, 4] = 9
    change(truth(data), values)
    with pytest.raises(BIDSError, match=r"sub-01_dseg\.nii\.gz: the value 9 .*\(1 voxels\)"):
        read(data)


def test_voxels_in_the_brain_need_a_label_somewhere(data: Path) -> None:
    values = np.full(head(1).dwi.mask.shape, -1, np.int8)
    change(truth(data), values)
    with pytest.raises(BIDSError, match=r"sub-01_dseg\.nii\.gz: no voxel in the brain has a label"):
        read(data)


def test_the_grid_is_that_of_the_scan(data: Path) -> None:
    change(truth(data), move=1.0)
    with pytest.raises(DWIError, match=r"sub-01_dseg\.nii\.gz: the label image is on another grid"):
        read(data)
    change(truth(data), np.ones((9, 8, 8, 2), np.int8), move=-1.0)
    with pytest.raises(DWIError, match=r"sub-01_dseg\.nii\.gz: a label image of shape"):
        read(data)
