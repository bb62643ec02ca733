"""The lesions of one scan: a map on its grid, how it came about, and no result is lost."""

from __future__ import annotations

import hashlib
import html
import itertools
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.commands.conftest import Call, ball, write_mask, write_scan, write_weights
from tests.scans.test_coherence import make_rods
from tripq.scans import read_dwi
from tripq.scans.resampling import map_back, resample
from tripq.tasks.lesions.command import LesionCommands
from tripq.tasks.lesions.listing import find_candidates
from tripq.tasks.lesions.segmentation import load_model, segment

NAMES = ("probseg.nii.gz", "mask.nii.gz", "probseg.json")


def read(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_the_map_is_what_the_library_gives_on_the_grid_of_the_scan(
    call: Call, scan: Path, mask: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = call("segment", scan, "--mask", mask, "--weights", weights, "-o", out)
    assert done.status == 0, done.stderr
    assert {f"dwi_label-lesion_{name}" for name in NAMES} <= {path.name for path in out.iterdir()}
    assert not list(out.glob(".*"))

    dwi = read_dwi(scan, mask=mask)
    expected = segment(load_model(weights).network, dwi)
    written = nib.load(out / "dwi_label-lesion_probseg.nii.gz")
    np.testing.assert_array_equal(written.affine, nib.load(scan).affine)
    np.testing.assert_allclose(np.asarray(written.dataobj)[dwi.mask], expected, atol=1e-6)
    lesion = read(out / "dwi_label-lesion_mask.nii.gz")
    np.testing.assert_array_equal(lesion[dwi.mask], expected >= 0.5)
    assert not lesion[~ball()].any()


def test_the_sidecar_tells_how_the_map_came_about(
    call: Call, scan: Path, mask: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    call("segment", scan, "--mask", mask, "--weights", weights, "-o", out, "--threshold", 0.4)
    about = json.loads((out / "dwi_label-lesion_probseg.json").read_text())
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert about["Weights"]["SHA256"] == digest
    assert about["Threshold"] == 0.4
    assert about["GradientFrame"] == "fsl"
    assert about["GeneratedBy"][0]["Name"] == "tripq"
    assert about["Inputs"]["Scan"]["SHA256"] == hashlib.sha256(scan.read_bytes()).hexdigest()
    assert set(about["Inputs"]) == {"Scan", "BVal", "BVec", "BrainMask"}
    lesion = read(out / "dwi_label-lesion_mask.nii.gz")
    assert about["LesionVolumeMillilitres"] == pytest.approx(lesion.sum() * 8 / 1000, abs=1e-4)


def test_the_threshold_is_that_of_the_checkpoint_unless_one_is_given(
    call: Call, scan: Path, mask: Path, tmp_path: Path
) -> None:
    weights = write_weights(tmp_path / "low.safetensors", threshold="0.1")
    arguments = ("segment", scan, "--mask", mask, "--weights", weights)
    call(*arguments, "-o", tmp_path / "own")
    call(*arguments, "-o", tmp_path / "given", "--threshold", 1)
    for folder, threshold in (("own", 0.1), ("given", 1.0)):
        files = tmp_path / folder
        probability = read(files / "dwi_label-lesion_probseg.nii.gz")
        lesion = read(files / "dwi_label-lesion_mask.nii.gz")
        np.testing.assert_array_equal(lesion[ball()], probability[ball()] >= threshold)


def test_the_minimum_volume_is_that_of_the_checkpoint_unless_one_is_given(
    call: Call, scan: Path, mask: Path, tmp_path: Path
) -> None:
    """Mask, list, counts and both sidecars have it; the map of probabilities has not."""
    sentence = "On 15 scans it marked a median of 0.05 ml."
    notes = {"threshold": "0.9", "min_volume_ml": "0.02", "healthy_heads": sentence}
    weights = write_weights(tmp_path / "least.safetensors", **notes)
    arguments = ("segment", scan, "--mask", mask, "--weights", weights)
    marked = {}
    for folder, volume, given in (
        ("own", 0.02, ()),
        ("all", 0.0, ("--min-volume", 0)),
        ("none", 999.0, ("--min-volume", 999)),
    ):
        done = call(*arguments, *given, "-o", tmp_path / folder)
        assert done.status == 0, done.stderr
        stem = tmp_path / folder / "dwi_label-lesion"
        about, of_mask = (
            json.loads(Path(f"{stem}_{name}.json").read_text()) for name in ("probseg", "mask")
        )
        assert about["MinVolumeMillilitres"] == of_mask["MinVolumeMillilitres"] == volume
        assert about["HealthyHeads"] == sentence
        assert done.stdout.splitlines()[-1] == sentence
        assert f"Healthy heads:</strong> {sentence}" in Path(f"{stem}_report.html").read_text()
        dwi = read_dwi(scan, mask=mask)
        probability = read(Path(f"{stem}_probseg.nii.gz"))[dwi.mask]
        candidates = find_candidates(dwi, probability, 0.9, volume)
        marked[folder] = read(Path(f"{stem}_mask.nii.gz"))
        assert marked[folder].sum() == sum(candidate.voxels for candidate in candidates)
        assert about["LesionCount"] == len(candidates)
        assert f"{len(candidates)} lesion candidate" in done.stdout
        everything = tmp_path / "own/dwi_label-lesion_probseg.nii.gz"
        np.testing.assert_array_equal(read(Path(f"{stem}_probseg.nii.gz")), read(everything))
    assert marked["all"].sum() > marked["own"].sum() > marked["none"].sum() == 0


def test_shells_that_are_not_named_are_left_out(
    call: Call, mask: Path, weights: Path, tmp_path: Path
) -> None:
    scan = write_scan(tmp_path / "two" / "dwi.nii.gz", b_values=(0, *4 * (1000, 2000)))
    arguments = ("segment", scan, "--mask", mask, "--weights", weights)
    done = call(*arguments, "--shell", 1000, "-o", tmp_path / "out")
    assert done.status == 0, done.stderr
    assert "Left out 4 volumes of other shells." in done.stderr
    about = json.loads((tmp_path / "out" / "dwi_label-lesion_probseg.json").read_text())
    assert about["Shells"] == [1000]

    dwi = read_dwi(scan, mask=mask)
    network = load_model(weights).network
    written = read(tmp_path / "out" / "dwi_label-lesion_probseg.nii.gz")[dwi.mask]
    np.testing.assert_allclose(written, segment(network, dwi.with_shells([1000])), atol=1e-6)
    assert np.abs(written - segment(network, dwi)).max() > 1e-3

    done = call(*arguments, "--shell", 3000, "-o", tmp_path / "none")
    assert done.status == 1
    assert "no shell near b=3000 s/mm2; there is 1000, 2000." in done.stderr
    assert not (tmp_path / "none").exists()


def test_a_scan_is_resampled_to_the_voxel_size_of_the_option(
    call: Call, scan: Path, mask: Path, weights: Path, tmp_path: Path
) -> None:
    arguments = ("segment", scan, "--mask", mask, "--weights", weights, "-o", tmp_path)
    assert call(*arguments, "--voxel-size", 2.5).status == 0
    about = json.loads((tmp_path / "dwi_label-lesion_probseg.json").read_text())
    assert about["ResampledTo"] == 2.5
    assert any("resampled to 2.5 mm; the map was resampled back" in n for n in about["Notes"])
    dwi = read_dwi(scan, mask=mask)
    coarse = resample(dwi, 2.5)
    expected = map_back(segment(load_model(weights).network, coarse), coarse, dwi)
    written = read(tmp_path / "dwi_label-lesion_probseg.nii.gz")[dwi.mask]
    np.testing.assert_allclose(written, expected, atol=1e-6)
    assert call(*arguments, "--voxel-size", 0.1, "--overwrite").status == 2


def test_without_a_mask_the_brain_is_found_and_that_is_said(
    call: Call, scan: Path, weights: Path, tmp_path: Path
) -> None:
    done = call("segment", scan, "--weights", weights, "-o", tmp_path)
    assert done.status == 0
    assert "no mask: extracting the brain from b0" in done.stderr
    about = json.loads((tmp_path / "dwi_label-lesion_probseg.json").read_text())
    assert about["BrainMask"] == "median_otsu of dipy, from b0"
    assert any("Brain found by median_otsu" in note for note in about["Notes"])
    inside = read(tmp_path / "dwi_label-lesion_probseg.nii.gz") > 0
    assert 2 * np.count_nonzero(inside & ball()) / (inside.sum() + ball().sum()) > 0.8


def test_other_voxels_are_resampled_and_the_map_brought_back(
    call: Call, weights: Path, tmp_path: Path
) -> None:
    scan = write_scan(tmp_path / "coarse_dwi.nii.gz", voxel_size=2.6)
    mask = write_mask(tmp_path / "brain.nii.gz", scan)
    out = tmp_path / "out"
    done = call("segment", scan, "--mask", mask, "--weights", weights, "-o", out)
    assert "Voxels of 2.6 x 2.6 x 2.6 mm were resampled to 2 mm" in done.stderr
    about = json.loads((out / "coarse_label-lesion_probseg.json").read_text())
    assert any("resampled to 2 mm" in note for note in about["Notes"])
    dwi = read_dwi(scan, mask=mask)
    fine = resample(dwi, 2.0)
    expected = map_back(segment(load_model(weights).network, fine), fine, dwi)
    written = read(out / "coarse_label-lesion_probseg.nii.gz")
    assert written.shape == dwi.mask.shape
    np.testing.assert_allclose(written[dwi.mask], expected, atol=1e-6)


def test_results_are_replaced_only_if_asked(
    call: Call, scan: Path, mask: Path, weights: Path, tmp_path: Path
) -> None:
    arguments = ("segment", scan, "--mask", mask, "--weights", weights, "-o", tmp_path)
    assert call(*arguments, "--threshold", 0.2).status == 0
    sidecar = tmp_path / "dwi_label-lesion_probseg.json"
    before = sidecar.read_bytes()
    refused = call(*arguments)
    assert refused.status == 1
    assert refused.error.endswith("probseg.nii.gz: exists already; --overwrite replaces it.")
    assert sidecar.read_bytes() == before
    assert call(*arguments, "--overwrite").status == 0
    assert json.loads(sidecar.read_text())["Threshold"] == 0.5


def test_a_table_of_mrtrix_gives_the_same_map(
    call: Call, scan: Path, mask: Path, weights: Path, tmp_path: Path
) -> None:
    """With det(affine) < 0 FSL's components are along the image axes, x from right to left here."""
    directions = np.loadtxt(tmp_path / "dwi.bvec").T * (-1, 1, 1)
    b_values = np.loadtxt(tmp_path / "dwi.bval")
    np.savetxt(tmp_path / "table.b", np.column_stack([directions, b_values]))
    common = ("segment", scan, "--mask", mask, "--weights", weights)
    table = ("--bvec", tmp_path / "table.b", "--frame", "world")
    assert call(*common, "-o", tmp_path / "fsl").status == 0
    assert call(*common, *table, "-o", tmp_path / "world").status == 0
    assert call(*common, "--frame", "world", "-o", tmp_path / "wrong").status == 0
    fsl, world, wrong = (
        read(tmp_path / folder / "dwi_label-lesion_probseg.nii.gz")
        for folder in ("fsl", "world", "wrong")
    )
    np.testing.assert_allclose(world, fsl, atol=1e-6)
    assert np.abs(wrong - fsl).max() > 1e-4


def test_little_memory_gives_the_same_map_or_an_error(
    call: Call, scan: Path, mask: Path, weights: Path, tmp_path: Path
) -> None:
    common = ("segment", scan, "--mask", mask, "--weights", weights, "-o", tmp_path)
    refused = call(*common, "--memory", "100MB")
    assert refused.status == 1
    assert "--memory: 100 MB are not enough: the program itself takes 600 MB" in refused.error
    refused = call(*common, "--memory", "600001kB")
    assert refused.status == 1
    assert "dwi.nii.gz: the signal takes 46.46 kB of memory, and 1.00 kB are left" in refused.error
    refused = call(*common, "--memory", "600.1MB")
    assert "dwi.nii.gz: 0.60 GB of memory are not enough; at least 0.6" in refused.error
    assert not list(tmp_path.glob("*probseg*"))


def test_the_shipped_weights_are_the_default(
    call: Call, scan: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LesionCommands, "weights", "none.safetensors")
    refused = call("segment", scan, "-o", tmp_path)
    assert refused.status == 1
    assert "none.safetensors: this installation of tripq has no" in refused.error
    assert "--weights FILE" in refused.error
    monkeypatch.setattr(LesionCommands, "weights", weights)
    assert call("segment", scan, "-o", tmp_path).status == 0


def test_a_caution_of_the_checkpoint_is_told_and_kept(
    call: Call, scan: Path, mask: Path, tmp_path: Path
) -> None:
    weights = write_weights(tmp_path / "w.safetensors", caution="for research only", b_values="700")
    done = call("segment", scan, "--mask", mask, "--weights", weights, "-o", tmp_path)
    assert "caution: w.safetensors: for research only" in done.stderr
    about = json.loads((tmp_path / "dwi_label-lesion_probseg.json").read_text())
    assert about["Weights"]["Caution"] == "for research only"
    assert "b = 1000 s/mm2 was absent from training, which had b = 700." in about["Notes"]


def test_a_doubtful_scan_is_doubted_on_the_screen_in_the_sidecar_and_on_the_page(
    call: Call, scan: Path, mask: Path, weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "dwi.bvec").write_text("0 1 0 0 1 0 0 -1\n0 0 1 0 0 1 0 0\n0 0 0 1 0 0 1 0\n")
    done = call("segment", scan, "--mask", mask, "--weights", weights, "-o", tmp_path)
    assert done.status == 0
    caution = "The 7 volumes of b = 1000 s/mm2 have 3 different directions only"
    assert f"caution: {scan}: {caution}" in done.stderr
    stem = tmp_path / "dwi_label-lesion"
    about = json.loads(Path(f"{stem}_probseg.json").read_text())
    assert [found.startswith(caution) for found in about["Cautions"]].count(True) == 1
    assert {*about["Cautions"]} <= {*about["Notes"]}
    page = Path(f"{stem}_report.html").read_text()
    shown = re.findall(r'<p class="caution" role="note"><strong>Caution:</strong> (.*?)</p>', page)
    assert [html.unescape(line) for line in shown] == about["Cautions"]


@pytest.mark.parametrize(("frame", "fits"), [("voxel", True), ("fsl", False)])
def test_a_table_that_the_fibres_contradict_is_told(
    frame: str, fits: bool, call: Call, tmp_path: Path
) -> None:
    rods = make_rods(np.diag([2.0, 2.0, 2.0, 1.0]))
    scan = tmp_path / "rods.nii.gz"
    nib.Nifti1Image(1000 * rods.volume(rods.signal), rods.affine).to_filename(scan)
    np.savetxt(tmp_path / "rods.bval", rods.b_values[None])
    np.savetxt(tmp_path / "rods.bvec", rods.q.T)
    weights = write_weights(tmp_path / "w.safetensors")
    whole = tmp_path / "mask.nii"
    nib.Nifti1Image(rods.mask.astype(np.uint8), rods.affine).to_filename(whole)
    arguments = ("--mask", whole, "--weights", weights, "--frame", frame, "-o", tmp_path)
    done = call("segment", scan, *arguments)
    assert done.status == 0
    about = json.loads((tmp_path / "rods_label-lesion_probseg.json").read_text())
    advice = "the table does not fit with --frame fsl: use --frame voxel."
    assert (advice in done.stderr) == (advice in " ".join(about["Notes"])) == (not fits)


def test_a_cuda_device_that_is_asked_for_must_be_there(
    call: Call, scan: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    common = ("segment", scan, "--weights", weights, "-o", tmp_path)
    refused = call(*common, "--device", "cuda")
    assert refused.status == 1
    assert refused.error.startswith("error: --device cuda: torch finds no CUDA device here.")
    assert not list(tmp_path.glob("*probseg*"))
    assert call(*common, "--device", "auto").status == 0
    about = json.loads((tmp_path / "dwi_label-lesion_probseg.json").read_text())
    assert about["Device"] == "cpu"


def test_quiet_is_quiet_and_the_log_has_all(
    call: Call, scan: Path, weights: Path, tmp_path: Path
) -> None:
    log = tmp_path / "logs" / "run.txt"
    done = call("segment", scan, "--weights", weights, "-o", tmp_path, "--quiet", "--log", log)
    assert (done.status, done.stdout, done.stderr) == (0, "", "")
    assert "extracting the brain from b0" in log.read_text()
    assert "command: " in log.read_text()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda f: f["scan"].unlink(), "dwi.nii.gz: there is no such file"),
        (lambda f: f["scan"].write_bytes(b"text"), "dwi.nii.gz: cannot be read as NIfTI"),
        (lambda f: f["scan"].write_bytes(f["scan"].read_bytes()[:-500]), "dwi.nii.gz: truncated"),
        (lambda f: f["bval"].unlink(), "dwi.nii.gz: no dwi.bval or dwi.bvals beside it"),
        (lambda f: f["mask"].rename(f["scan"]), "dwi.nii.gz: an image of 3 dimensions"),
        (lambda f: f["bvec"].write_text("1 0 0"), "dwi.bvec"),
        (lambda f: f["bval"].write_text("0 " + 7 * "9000 "), "the network takes no more than 4000"),
        (lambda f: f["mask"].unlink(), "mask.nii.gz: there is no such file"),
        (lambda f: f["weights"].unlink(), "tiny.safetensors: no such file"),
        (
            lambda f: f["weights"].write_bytes(b"text"),
            "tiny.safetensors: not a complete safetensors",
        ),
        (
            lambda f: write_weights(f["weights"], threshold="high"),
            "its threshold is 'high', not a num",
        ),
        (lambda f: f["out"].write_text("a file"), "out: File exists"),
    ],
)
def test_bad_input_is_told_in_one_line_that_names_the_file(
    spoil, reason: str, call: Call, scan: Path, mask: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    files = {"scan": scan, "mask": mask, "weights": weights, "out": out}
    spoil({**files, "bval": tmp_path / "dwi.bval", "bvec": tmp_path / "dwi.bvec"})
    done = call("segment", scan, "--mask", mask, "--weights", weights, "-o", out)
    assert done.status == 1
    assert reason in done.error
    assert not out.is_dir() or not list(out.iterdir())


@pytest.mark.parametrize(
    "wrong",
    [
        ["--frame", "head"],
        ["--threshold", "1.5"],
        ["--min-volume", "-1"],
        ["--min-volume", "small"],
        ["--min-volume", "nan"],
        ["--min-volume", "inf"],
        ["--min-volume", "1001"],
        ["--memory", "much"],
        ["--memory", "0GB"],
        ["--memory", "500"],
        ["--memory", "9" * 400 + "GB"],
        ["--device", "tpu"],
        ["--nthreads", "0"],
        ["--nothing"],
    ],
)
def test_bad_usage_exits_with_2(wrong: list[str], call: Call, scan: Path, tmp_path: Path) -> None:
    done = call("segment", scan, "-o", tmp_path / "out", *wrong)
    assert done.status == 2
    assert "Usage: " in done.stderr
    assert not (tmp_path / "out").exists()


def test_help_names_every_option_with_an_example(call: Call) -> None:
    done = call("segment", "--help")
    assert done.status == 0
    for option in ("--bval", "--bvec", "--mask", "--frame", "--weights", "--threshold", "--output"):
        assert option in done.stdout
    for option in ("--device", "--memory", "--nthreads", "--quiet", "--verbose", "--log"):
        assert option in done.stdout
    assert "tripq segment dwi.nii.gz -o results" in done.stdout
    assert "negated" in done.stdout  # what a frame is


@pytest.mark.parametrize(
    "command", ["segment", "segment-bids", "train", "predict", "evaluate", "info", "check"]
)
def test_help_is_as_wide_as_the_screen_and_its_examples_stand_out(
    command: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "78")
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", None)
    done = call(command, "--help")
    above, _, options = done.stdout.partition("╭─ Options")
    prose = above.partition("╭─")[0].rstrip().splitlines()
    assert "<bool>" not in options
    assert any(line.startswith(f"     tripq {command} ") for line in prose)
    text = [line.strip() for line in prose]
    for line, following in itertools.pairwise(text):
        if line and following and not line.startswith(("tripq ", "Usage")):
            assert len(f"{line} {following.split()[0]}") > 70  # it did not end early
