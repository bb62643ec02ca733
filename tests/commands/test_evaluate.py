"""Scores of lesion maps: those of the library, of all maps that can be used, and of no others."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from tests.commands.conftest import Call
from tripq.commands.evaluate import show_scores
from tripq.tasks.lesions.listing import drop_small
from tripq.tasks.lesions.scores import (
    LesionCounts,
    best_min_volume,
    best_threshold,
    calibration_error,
    count_lesions,
    evaluate,
)
from tripq.tasks.lesions.scoring import _SHOWN
from tripq.tasks.scoring import Evaluation

AFFINE = np.diag([-2.0, 2.0, 2.5, 1.0])
SUBJECTS = ("sub-01", "sub-02")
THRESHOLD = 0.6


def save(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values.astype(np.float32), affine)
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
    return path


class Cohort:
    """Two maps with random blobs, and the truth about them."""

    def __init__(self, folder: Path) -> None:
        self.maps, self.truth, self.out = folder / "maps", folder / "truth", folder / "out"
        self.probability, self.lesion, self.brain = {}, {}, {}
        for seed, name in enumerate(SUBJECTS):
            rng = np.random.default_rng(seed)
            lesion = np.zeros((9, 8, 7), bool)
            lesion[1:4, 1:3, 1:3] = lesion[6:8, 5:7, 4:6] = True
            brain = np.ones_like(lesion)
            brain[0] = False
            probability = np.clip(0.5 * lesion + rng.uniform(0, 0.55, lesion.shape), 0, 1)
            self.probability[name] = probability.astype(np.float32)
            self.lesion[name], self.brain[name] = lesion, brain
            save(self.map(name), probability)
            self.map(name).with_name(f"{name}_space-orig_label-lesion_probseg.json").write_text(
                json.dumps({"Threshold": THRESHOLD})
            )
            save(self.known(name), lesion)
            save(self.truth / name / "dwi" / f"{name}_desc-brain_mask.nii.gz", brain)

    def map(self, name: str) -> Path:
        return self.maps / name / "dwi" / f"{name}_space-orig_label-lesion_probseg.nii.gz"

    def known(self, name: str) -> Path:
        return self.truth / name / "dwi" / f"{name}_label-lesion_mask.nii.gz"

    def rows(self) -> dict[str, dict[str, str]]:
        with (self.out / "scores.tsv").open(newline="") as file:
            return {row["scan"]: row for row in csv.DictReader(file, delimiter="\t")}

    def scores(self) -> dict:
        return json.loads((self.out / "scores.json").read_text())


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return Cohort(tmp_path)


@pytest.fixture
def score(call: Call, cohort: Cohort):
    return lambda *more: call("evaluate", cohort.maps, cohort.truth, "-o", cohort.out, *more)


def test_scores_are_those_of_the_library_on_the_same_voxels(score, cohort: Cohort) -> None:
    done = score()
    assert done.status == 0, done.stderr
    expected = evaluate(
        [cohort.probability[name][cohort.brain[name]] for name in SUBJECTS],
        [cohort.lesion[name][cohort.brain[name]] for name in SUBJECTS],
        THRESHOLD,
    )
    counts = [
        count_lesions(
            (cohort.probability[name] >= THRESHOLD) & cohort.brain[name], cohort.lesion[name]
        )
        for name in SUBJECTS
    ]
    scores = cohort.scores()
    assert scores["threshold"] == THRESHOLD
    rows = [*scores["scans"], scores["pooled"]]
    everything = [*counts, sum(counts, start=LesionCounts(0, 0, 0))]
    for row, wanted, count in zip(
        rows, [*expected.subjects, expected.pooled], everything, strict=True
    ):
        assert row["roc_auc"] == wanted.roc_auc
        assert row["average_precision"] == wanted.average_precision
        assert row["dice"] == wanted.dice
        assert row["lesion_voxels"] == wanted.lesion_voxels
        assert row["lesion_sensitivity"] == count.sensitivity
        assert row["lesion_precision"] == count.precision
        assert row["lesion_f1"] == count.f1
        assert row["true_ml"] == pytest.approx(wanted.lesion_voxels * 0.01)
    assert [row["scan"] for row in rows] == [*SUBJECTS, "all"]
    everywhere = (
        np.concatenate([values[name][cohort.brain[name]] for name in SUBJECTS])
        for values in (cohort.probability, cohort.lesion)
    )
    assert rows[-1]["calibration_error"] == pytest.approx(calibration_error(*everywhere))


def test_table_page_and_screen_tell_the_same(score, cohort: Cohort) -> None:
    done = score()
    rows, scores = cohort.rows(), cohort.scores()
    assert tuple(rows) == (*SUBJECTS, "all")
    for row in (*scores["scans"], scores["pooled"]):
        for key, value in row.items():
            if key != "scan":
                assert float(rows[row["scan"]][key]) == pytest.approx(value, abs=1e-6)
    assert f"{scores['pooled']['dice']:.3f}" in done.stdout
    page = (cohort.out / "report.html").read_text()
    assert all(name in page for name in SUBJECTS)


def test_a_threshold_that_is_given_goes_before_that_of_the_maps(score, cohort: Cohort) -> None:
    assert score("--threshold", 0.9).status == 0
    found = sum((cohort.probability[n] >= 0.9)[cohort.brain[n]].sum() for n in SUBJECTS)
    assert cohort.scores()["pooled"]["found_ml"] == pytest.approx(found * 0.01)
    assert cohort.scores()["threshold"] == 0.9


def test_the_minimum_volume_is_that_of_the_maps_unless_one_is_given(score, cohort: Cohort) -> None:
    """Whole lesions, Dice and the volume are of the candidates that were marked."""
    for name in SUBJECTS:
        sidecar = cohort.map(name).with_name(f"{name}_space-orig_label-lesion_probseg.json")
        sidecar.write_text(json.dumps({"Threshold": 0.4, "MinVolumeMillilitres": 0.05}))
    for given, volume in (((), 0.05), (("--min-volume", 0, "--overwrite"), 0.0)):
        assert score(*given).status == 0
        assert cohort.scores()["min_volume_ml"] == volume
        for name, row in zip(SUBJECTS, cohort.scores()["scans"], strict=True):
            inside = cohort.brain[name]
            marked = drop_small((cohort.probability[name] >= 0.4) & inside, 0.01, volume)
            truth = cohort.lesion[name] & inside
            assert row["found_ml"] == pytest.approx(marked.sum() * 0.01)
            assert row["found_lesions"] == count_lesions(marked, truth).found
            both = 2 * (marked & truth).sum()
            assert row["dice"] == pytest.approx(both / (marked.sum() + truth.sum()))
    assert score("--min-volume", "inf", "--overwrite").status == 2
    sidecar.write_text(json.dumps({"Threshold": 0.4, "MinVolumeMillilitres": 0.1}))
    refused = score("--overwrite")
    assert "the maps have several minimum volumes, 0.05 (sub-01" in refused.error
    sidecar.write_text(json.dumps({"Threshold": 0.4, "MinVolumeMillilitres": "much"}))
    refused = score("--overwrite")
    assert "the MinVolumeMillilitres is 'much', not a number from 0 to 1000" in refused.error


def test_limits_are_chosen_on_the_maps_if_asked(score, cohort: Cohort) -> None:
    """Those of the training: the highest Dice of all voxels, then the highest F1 of lesions."""
    sidecar = cohort.map(SUBJECTS[0]).with_name(
        f"{SUBJECTS[0]}_space-orig_label-lesion_probseg.json"
    )
    sidecar.unlink()  # limits of the maps are not needed
    done = score("--choose-limits")
    assert done.status == 0
    inside = [cohort.brain[name] for name in SUBJECTS]
    truths = [cohort.lesion[name] & brain for name, brain in zip(SUBJECTS, inside, strict=True)]
    maps = [cohort.probability[name] for name in SUBJECTS]
    threshold = best_threshold(
        np.concatenate([values[brain] for values, brain in zip(maps, inside, strict=True)]),
        np.concatenate([truth[brain] for truth, brain in zip(truths, inside, strict=True)]),
    )
    marked = [(values >= threshold) & brain for values, brain in zip(maps, inside, strict=True)]
    scores = cohort.scores()
    assert threshold - 1e-6 < scores["threshold"] <= threshold
    assert scores["min_volume_ml"] == best_min_volume(marked, truths, [0.01] * 2)
    assert scores["limits_chosen_on_these_maps"]
    told = " ".join(done.stdout.split())
    printed = re.search(r"--threshold (\S+) --min-volume ([^)\s]+)\)", told)
    assert printed is not None
    assert [float(value) for value in printed.groups()] == [
        scores["threshold"],
        scores["min_volume_ml"],
    ]
    page = (cohort.out / "report.html").read_text()
    assert "too optimistic" in page
    assert "must be chosen on other subjects" not in page
    assert score("--choose-limits", "--threshold", 0.5, "--overwrite").error.startswith(
        "error: --choose-limits: not with --threshold or --min-volume."
    )
    for name in SUBJECTS:
        save(cohort.known(name), np.zeros_like(cohort.lesion[name]))
    refused = score("--choose-limits", "--overwrite")
    assert "maps: --choose-limits needs a known lesion; the scored maps (2) have none" in (
        refused.error
    )


def test_without_any_brain_mask_all_voxels_are_scored(score, cohort: Cohort) -> None:
    for mask in cohort.truth.rglob("*desc-brain*"):
        mask.unlink()
    done = score()
    assert done.status == 0
    assert "sub-01: no brain mask: all voxels are scored" in done.stderr
    assert cohort.scores()["scans"][0]["voxels"] == 9 * 8 * 7


def test_brain_masks_of_another_folder_are_taken_and_what_they_cut_off_is_told(
    score, cohort: Cohort, tmp_path: Path
) -> None:
    brain = np.ones((9, 8, 7), bool)
    brain[5:] = False
    for name in SUBJECTS:
        save(tmp_path / "masks" / name / "dwi" / f"{name}_desc-brain_mask.nii.gz", brain)
    done = score("--masks", tmp_path / "masks")
    assert done.status == 0
    assert cohort.scores()["scans"][0]["voxels"] == brain.sum()
    assert "8 lesion voxels are outside the brain mask" in done.stderr
    missing = score("--masks", tmp_path / "nowhere", "--overwrite")
    assert (missing.status, "no such folder" in missing.error) == (1, True)


def test_another_grid_is_an_error_that_names_both_files_and_the_rest_is_scored(
    score, cohort: Cohort
) -> None:
    save(cohort.known("sub-01"), cohort.lesion["sub-01"], np.diag([2.0, 2.0, 2.5, 1.0]))
    done = score()
    assert done.status == 1
    assert cohort.known("sub-01").name in done.error
    assert cohort.map("sub-01").name in done.error
    assert "another grid" in done.error
    assert list(cohort.rows()) == ["sub-02", "all"]
    assert list(cohort.scores()["failed"]) == ["sub-01/dwi/" + cohort.map("sub-01").name]
    assert "Not scored" in (cohort.out / "report.html").read_text()


def test_a_map_without_truth_and_values_that_are_no_probabilities_are_reported(
    score, cohort: Cohort
) -> None:
    cohort.known("sub-01").unlink()
    assert "no *_label-lesion_mask.nii.gz in" in score().error
    save(cohort.map("sub-02"), cohort.probability["sub-02"] - 2)
    done = score("--overwrite")
    assert done.status == 1
    assert "not probabilities from 0 to 1" in done.stderr
    assert "none of 2 maps can be scored" in done.stderr
    assert list(cohort.rows()) == ["sub-02", "all"]  # of the first call


def test_truth_without_a_map_is_told(score, cohort: Cohort) -> None:
    cohort.map("sub-01").unlink()
    done = score()
    assert done.status == 0
    assert "1 of 2 lesion masks have no scored map" in done.stderr


@pytest.mark.parametrize("label", ["02", "sub-02"])
def test_participants_are_chosen(score, cohort: Cohort, label: str) -> None:
    """Their scores are what they are among others, and nothing is said of the others."""
    assert score().status == 0
    among_others = cohort.rows()["sub-02"]
    done = score("--overwrite", "--participant-label", label)
    assert done.status == 0
    assert tuple(cohort.rows()) == ("sub-02", "all")
    assert cohort.rows()["sub-02"] == among_others
    assert "sub-01" not in done.stdout + done.stderr
    assert "have no scored map" not in done.stderr


def test_several_participants_stand_in_a_row(score, cohort: Cohort) -> None:
    assert score("--participant_label", "02", "sub-01", "--threshold", "0.5").status == 0
    assert tuple(cohort.rows()) == (*SUBJECTS, "all")
    assert cohort.scores()["threshold"] == 0.5


def test_a_participant_without_a_map_is_an_error_that_names_those_with_one(
    score, cohort: Cohort
) -> None:
    done = score("--participant-label", "01", "7")
    assert done.status == 1
    assert f"{cohort.maps}: no lesion map of participant 7; there are 01, 02." in done.error
    assert not cohort.out.exists()


def test_thresholds_must_be_known_and_agree(score, cohort: Cohort) -> None:
    first, second = sorted(cohort.maps.rglob("*.json"))
    first.write_text(json.dumps({"Threshold": 0.3}))
    done = score()
    assert done.status == 1
    assert "several thresholds, 0.3" in done.error
    first.unlink()
    second.write_text(json.dumps({"Threshold": "high"}))
    done = score()
    assert done.status == 1
    assert "with its threshold: give --threshold" in done.stderr
    assert "'high', not a number from 0 to 1" in done.stderr
    assert not cohort.out.exists()


def test_results_are_not_replaced_unawares(score, call: Call, cohort: Cohort) -> None:
    assert score().status == 0
    again = score()
    assert (again.status, "--overwrite replaces it" in again.error) == (1, True)
    assert score("--overwrite").status == 0
    itself = call("evaluate", cohort.truth, cohort.truth, "-o", cohort.out, "--overwrite")
    assert "must not be the same folder" in itself.error


def test_what_is_not_installed_is_told_in_one_line(score, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    done = score()
    assert done.status == 1
    assert done.stderr == "error: torchmetrics not installed: pip install 'tripq[ms]'.\n"


def test_two_maps_of_one_scan_are_refused(score, cohort: Cohort) -> None:
    first, second = SUBJECTS
    twin = save(cohort.map(first).with_suffix(""), cohort.probability[second])
    other_space = cohort.map(second).with_name(
        cohort.map(second).name.replace("space-orig", "space-ACPC")
    )
    save(other_space, cohort.probability[second])
    done = score("--threshold", THRESHOLD)
    assert done.status == 1
    assert f"{twin}: a map of the same scan as {first}/dwi/{twin.name}.gz: keep one" in done.stderr
    assert f"{twin}.gz: a map of the same scan as {first}/dwi/{twin.name}: keep one" in done.stderr
    assert [*cohort.rows()] == [f"{second}_space-ACPC", second, "all"]


def test_maps_of_a_task_of_another_package_are_scored(
    call: Call, own_task: str, tmp_path: Path
) -> None:
    maps, truth, out = tmp_path / "maps", tmp_path / "truth", tmp_path / "out"
    rng = np.random.default_rng(0)
    differences = []
    for seed, name in enumerate(SUBJECTS):
        known = rng.uniform(0.5, 3, (9, 8, 7)).astype(np.float32)
        found = known + rng.normal(0.1 * (seed + 1), 0.05, known.shape).astype(np.float32)
        brain = np.ones(known.shape, bool)
        brain[:4] = False
        save(maps / name / "dwi" / f"{name}_space-orig_md.nii.gz", found)
        save(truth / name / "dwi" / f"{name}_md.nii.gz", known)
        save(truth / name / "dwi" / f"{name}_desc-brain_mask.nii.gz", brain)
        differences.append((found - known)[brain].astype(float))
    save(maps / "sub-03" / "dwi" / "sub-03_md.nii.gz", np.ones((9, 8, 7)))
    done = call("evaluate", maps, truth, "-o", out, "--task", own_task)
    assert done.status == 1
    assert "no *_md.nii.gz in" in done.error
    assert "sub-03" in done.error
    scores = json.loads((out / "scores.json").read_text())
    assert [row["scan"] for row in scores["scans"]] == [*SUBJECTS]
    everything = np.concatenate(differences)
    for row, expected in zip(
        (*scores["scans"], scores["pooled"]), (*differences, everything), strict=True
    ):
        assert row["mean_absolute_error"] == pytest.approx(np.abs(expected).mean(), rel=1e-4)
        assert row["bias"] == pytest.approx(expected.mean(), rel=1e-4)
        assert row["rms_error"] == pytest.approx(np.sqrt((expected**2).mean()), rel=1e-4)
        assert row["voxels"] == len(expected)
    assert "threshold" not in scores
    page = (out / "report.html").read_text()
    assert "mean absolute error, µm²/ms" in page
    assert "Not scored: sub-03/dwi/sub-03_md.nii.gz" in page
    with (out / "scores.tsv").open(newline="") as file:
        assert [row["scan"] for row in csv.DictReader(file, delimiter="\t")] == [*SUBJECTS, "all"]
    options = ("--task", own_task, "--threshold", 0.5, "--overwrite")
    again = call("evaluate", maps, truth, "-o", out, *options)
    assert again.error.startswith("error: --threshold: the maps of the task mean-diffusivity have")


def test_another_grid_of_a_known_map_is_an_error_that_names_both(
    call: Call, own_task: str, tmp_path: Path
) -> None:
    found = save(tmp_path / "maps/sub-01/sub-01_md.nii.gz", np.ones((5, 4, 3)))
    known = save(tmp_path / "truth/sub-01/sub-01_md.nii.gz", np.ones((5, 4, 3)), np.eye(4))
    given = (tmp_path / "maps", tmp_path / "truth", "-o", tmp_path / "out", "--task", own_task)
    done = call("evaluate", *given)
    first, _ = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert first.startswith(f"error: {known}: the known map is on another grid")
    assert str(found) in first


def test_the_task_of_an_evaluation_must_exist(call: Call, tmp_path: Path) -> None:
    done = call("evaluate", tmp_path, tmp_path, "-o", tmp_path / "out", "--task", "colours")
    assert done.status == 2
    assert "lesions" in done.stderr


def test_no_column_head_is_cut_on_a_screen_of_80_columns() -> None:
    columns = dict.fromkeys(_SHOWN, 0.123)
    names = ("sub-01_ses-02_acq-b1000_run-1", "all")
    rows = [SimpleNamespace(name=name, columns=columns) for name in names]
    evaluation = Evaluation(rows, _SHOWN, "", {}, lambda *_: None)
    console = Console(width=80)
    with console.capture() as shown:
        console.print(show_scores(evaluation))
    words = shown.get().split()
    assert {word for title in _SHOWN.values() for word in title.split()} < set(words)
    assert words.count("0.123") == 2 * len(_SHOWN)
