"""Scans of a BIDS dataset are found with what belongs to them, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tripq.scans.bids import (
    BIDSError,
    BIDSMissingError,
    BIDSName,
    BIDSScan,
    find_images,
    find_maps,
    find_scans,
)


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def only(root: Path) -> BIDSScan:
    (scan,) = find_scans(root)
    return scan


def test_scans_of_participants_and_sessions_are_found(tmp_path: Path) -> None:
    names = [
        "sub-01/dwi/sub-01_run-1_dwi.nii.gz",
        "sub-01/dwi/sub-01_run-2_dwi.nii",
        "sub-02/ses-a/dwi/sub-02_ses-a_dwi.nii.gz",
        "sub-02/ses-b/dwi/sub-02_ses-b_dwi.nii.gz",
    ]
    others = [
        "sub-01/dwi/sub-01_sbref.nii.gz",
        "sub-01/dwi/sub-01_part-phase_dwi.nii.gz",
        "sub-01/anat/sub-01_T1w.nii.gz",
        "derivatives/x/sub-01/dwi/sub-01_dwi.nii.gz",
    ]
    make(tmp_path, *names, *others)

    def found(**chosen: list[str]) -> list[str]:
        return [scan.relative.as_posix() for scan in find_scans(tmp_path, **chosen)]

    assert found() == names
    assert found(participants=["sub-02"]) == names[2:]
    assert found(participants=["02"], sessions=["b"]) == names[3:]
    assert found(sessions=["ses-a"]) == names[2:3]


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(BIDSError, match="nowhere: no such folder"):
        find_scans(tmp_path / "nowhere")
    with pytest.raises(BIDSError, match="no diffusion scans"):
        find_scans(make(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz"))
    make(tmp_path, "sub-01/dwi/sub-01_dwi.nii.gz")
    with pytest.raises(BIDSError, match=r"no diffusion scan of participant 07; there are 01\."):
        find_scans(tmp_path, ["01", "07"])
    with pytest.raises(BIDSError, match="no diffusion scan of session b; there are no sessions"):
        find_scans(tmp_path, sessions=["b"])


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        (["dwi.bval"], "dwi.bval"),
        (["dwi.bval", "sub-01/sub-01_dwi.bval"], "sub-01/sub-01_dwi.bval"),
        (["dwi.bval", "acq-x_dwi.bval"], "acq-x_dwi.bval"),
        (["dwi.bval", "acq-y_dwi.bval"], "dwi.bval"),
        (
            ["dwi.bval", "sub-01/ses-1/dwi/sub-01_ses-1_acq-x_dwi.bval"],
            "sub-01/ses-1/dwi/sub-01_ses-1_acq-x_dwi.bval",
        ),
        (
            ["acq-x_dwi.bval", "sub-01/ses-1/dwi/sub-01_ses-1_acq-x_run-2_dwi.bval"],
            "acq-x_dwi.bval",
        ),
    ],
)
def test_tables_are_inherited_from_the_nearest_folder(
    tables: list[str], expected: str, tmp_path: Path
) -> None:
    make(tmp_path, "sub-01/ses-1/dwi/sub-01_ses-1_acq-x_dwi.nii.gz", *tables)
    assert only(tmp_path).table(".bval") == tmp_path / expected


def test_a_folder_above_many_scans_is_listed_once_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is as long as they are many."""
    names = [f"sub-{n:02}/dwi/sub-{n:02}_dwi.nii.gz" for n in range(9)]
    make(tmp_path, *names, "dwi.bval", "dwi.bvec")
    scans = find_scans(tmp_path)
    listed: list[Path] = []
    glob = Path.glob

    def noted(folder: Path, pattern: str) -> Iterator[Path]:
        listed.append(folder)
        return glob(folder, pattern)

    monkeypatch.setattr(Path, "glob", noted)
    for _ in range(2):
        assert {scan.table(".bval") for scan in scans} == {tmp_path / "dwi.bval"}
        assert {scan.table(".bvec") for scan in scans} == {tmp_path / "dwi.bvec"}
    assert listed.count(tmp_path) == 2


def test_a_table_that_is_missing_or_double_is_told(tmp_path: Path) -> None:
    make(tmp_path, "sub-01/dwi/sub-01_acq-x_run-1_dwi.nii.gz", "sub-02_dwi.bvec")
    with pytest.raises(BIDSError, match=r"sub-01_acq-x_run-1_dwi.nii.gz: no .bvec file applies"):
        only(tmp_path).table(".bvec")
    make(tmp_path, "acq-x_dwi.bvec", "run-1_dwi.bvec")
    with pytest.raises(BIDSError, match=r"both .*(acq-x|run-1)_dwi.bvec and .* apply to it"):
        only(tmp_path).table(".bvec")


def test_a_table_of_mrtrix_is_taken_in_world_axes_alone(tmp_path: Path) -> None:
    make(tmp_path, "sub-01/dwi/sub-01_dwi.nii.gz", "dwi.b")
    assert only(tmp_path).gradient_table("world") == (None, tmp_path / "dwi.b")
    with pytest.raises(BIDSMissingError, match=r"no .bval .*dwi.b, which is in world axes: use it"):
        only(tmp_path).gradient_table("fsl")
    both = (tmp_path / "dwi.bval", tmp_path / "dwi.bvec")
    make(tmp_path, "dwi.bval", "dwi.bvec")
    assert only(tmp_path).gradient_table("fsl") == only(tmp_path).gradient_table("voxel") == both
    assert only(tmp_path).gradient_table("world") == (None, tmp_path / "dwi.b")
    (tmp_path / "dwi.b").unlink()
    assert only(tmp_path).gradient_table("world") == both


def test_maps_of_preprocessed_scans_are_found(tmp_path: Path) -> None:
    names = ["sub-01_label-lesion_desc-preproc_probseg.nii.gz", "sub-01_label-lesion_probseg.nii"]
    make(tmp_path, *(f"sub-01/dwi/{name}" for name in names), "sub-01/dwi/sub-01_probseg.nii.gz")
    assert [found.path.name for found in find_maps(tmp_path, "lesion")] == names


def test_results_of_qsiprep_are_read_as_they_come(tmp_path: Path) -> None:
    """Its layout, with the files of one session; the MRtrix table is for the frame "world"."""
    stem = "sub-01/ses-a/dwi/sub-01_ses-a_space-ACPC"
    preprocessed = f"{stem}_desc-preproc_dwi"
    make(
        tmp_path,
        "dataset_description.json",
        *(f"{preprocessed}{ending}" for ending in (".nii.gz", ".bval", ".bvec", ".b", ".json")),
        f"{stem}_desc-brain_mask.nii.gz",
        f"{stem}_dwiref.nii.gz",
        f"{stem}_desc-slice_qc.json",
        "sub-01/ses-a/dwi/sub-01_ses-a_desc-confounds_timeseries.tsv",
        "sub-01/anat/sub-01_space-ACPC_desc-preproc_T1w.nii.gz",
        "sub-01/anat/sub-01_space-ACPC_desc-brain_mask.nii.gz",
        "sub-01/figures/sub-01_ses-a_t1_2_mni.svg",
    )
    scan = only(tmp_path)
    assert scan.relative.as_posix() == f"{preprocessed}.nii.gz"
    tables = {frame: scan.gradient_table(frame) for frame in ("fsl", "world")}
    assert tables["fsl"] == tuple(tmp_path / f"{preprocessed}.{end}" for end in ("bval", "bvec"))
    assert scan.brain_mask(tmp_path) == tmp_path / f"{stem}_desc-brain_mask.nii.gz"


def test_results_of_qsirecon_are_maps_and_no_scans(tmp_path: Path) -> None:
    """Its derivatives have maps in the names of BEP016, and no scan to segment."""
    stem = "sub-01/ses-a/dwi/sub-01_ses-a_space-ACPC_model-tensor_param"
    make(tmp_path, f"{stem}-fa_dwimap.nii.gz", f"{stem}-md_dwimap.nii.gz", f"{stem}-fa_dwimap.json")
    with pytest.raises(BIDSError, match="no diffusion scans"):
        find_scans(tmp_path)
    found = [scan.relative.as_posix() for scan in find_images(tmp_path, "param-fa_dwimap")]
    assert found == [f"{stem}-fa_dwimap.nii.gz"]


def test_a_brain_mask_is_the_one_of_the_scan(tmp_path: Path) -> None:
    make(tmp_path / "raw", "sub-01/ses-1/dwi/sub-01_ses-1_run-1_dwi.nii.gz")
    masks = tmp_path / "masks"
    folder = masks / "sub-01/ses-1/dwi"
    make(folder, "sub-01_ses-1_run-2_desc-brain_mask.nii.gz")
    make(folder, "sub-01_ses-1_run-1_space-MNI_desc-brain_mask.nii.gz")
    scan = only(tmp_path / "raw")
    with pytest.raises(BIDSError, match=r"no \*_desc-brain_mask.nii.gz in .* belongs to this scan"):
        scan.brain_mask(masks)
    make(folder, "sub-01_ses-1_desc-brain_mask.nii.gz")
    assert scan.brain_mask(masks).name == "sub-01_ses-1_desc-brain_mask.nii.gz"
    make(folder, "sub-01_ses-1_run-1_desc-brain_mask.nii.gz")
    assert scan.brain_mask(masks).name == "sub-01_ses-1_run-1_desc-brain_mask.nii.gz"


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("sub-01_dwi", "sub-01_space-orig_label-lesion_mask"),
        ("sub-01_acq-x_dir-AP_run-1_dwi", "sub-01_acq-x_dir-AP_run-1_space-orig_label-lesion_mask"),
        ("sub-01_space-ACPC_desc-preproc_dwi", "sub-01_space-ACPC_label-lesion_desc-preproc_mask"),
        ("sub-01_chunk-2_dwi", "sub-01_space-orig_chunk-2_label-lesion_mask"),
    ],
)
def test_results_are_named_by_the_rules_of_derivatives(name: str, result: str) -> None:
    scan = BIDSScan(Path("data"), Path(f"data/sub-01/dwi/{name}.nii.gz"))
    expected = Path(f"sub-01/dwi/{result}.nii.gz")
    assert scan.result("lesion", "mask", ".nii.gz") == expected
    parsed = BIDSName.parse(expected.name)
    assert parsed.entities["label"] == "lesion"
    assert str(parsed) == expected.name


def test_hidden_folders_and_other_names_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = "sub-01_label-lesion_probseg.nii.gz"
    make(tmp_path, f"sub-01/dwi/{name}", f"sub-01/dwi/.tripq-x/{name}")
    assert [found.relative.as_posix() for found in find_maps(tmp_path, "lesion")] == [
        f"sub-01/dwi/{name}"
    ]
    make(tmp_path, "sub-01/dwi/sub-01_dwi.nii.gz", "sub-01/dwi/sub-01.old_dwi.nii.gz")
    assert only(tmp_path).path.name == "sub-01_dwi.nii.gz"
    assert "sub-01.old_dwi.nii.gz: ignored: not a BIDS name." in caplog.text


def test_folders_that_hold_themselves_are_searched_once(tmp_path: Path) -> None:
    make(tmp_path, "sub-01/dwi/sub-01_label-lesion_probseg.nii.gz")
    (tmp_path / "sub-01/dwi/again").symlink_to(tmp_path / "sub-01", target_is_directory=True)
    assert len(find_maps(tmp_path, "lesion")) == 1
