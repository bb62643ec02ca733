"""Scores of label images: Dice and volumes of every class, and what does not count."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.tasks.tissue.conftest import CLASSES
from tripq.scans import DWIError
from tripq.scans.bids import BIDSError
from tripq.tasks.scoring import scores_tsv
from tripq.tasks.tissue.classes import Classes
from tripq.tasks.tissue.scoring import (
    LabelledMap,
    TissueScoring,
    class_dice,
    evaluate_maps,
    score_classes,
)

N = len(CLASSES.names)


def random_map(seed: int, number: int = 200, voxel_ml: float = 0.008) -> LabelledMap:
    rng = np.random.default_rng(seed)
    known = rng.integers(-1, N, number).astype(np.int8)
    found = np.where(rng.uniform(size=number) < 0.6, known, rng.integers(-1, N, number))
    return LabelledMap(f"sub-{seed:02}", found.astype(np.int8), known, voxel_ml, CLASSES)


def overlap(found: np.ndarray, known: np.ndarray, number: int) -> float:
    a, b = found == number, known == number
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_scores_are_those_of_the_labelled_voxels() -> None:
    one = random_map(0)
    labelled = one.known >= 0
    found, known = one.found[labelled], one.known[labelled]
    for number, scores in enumerate(score_classes(one)):
        assert scores.dice == pytest.approx(overlap(found, known, number), rel=1e-5)
        assert scores.true_ml == pytest.approx(0.008 * np.count_nonzero(known == number))
        assert scores.found_ml == pytest.approx(0.008 * np.count_nonzero(found == number))
        assert scores.error_ml == pytest.approx(scores.found_ml - scores.true_ml)


def test_dice_of_all_is_that_of_all_voxels() -> None:
    maps = [random_map(0, 200), random_map(1, 50), random_map(2, 500)]
    pooled = evaluate_maps(maps).rows[-1]
    found, known = (np.concatenate([getattr(m, k) for m in maps]) for k in ("found", "known"))
    found, known = found[known >= 0], known[known >= 0]
    assert pooled.name == "all"
    dice = [overlap(found, known, number) for number in range(N)]
    for label, expected in zip(CLASSES.labels, dice, strict=True):
        assert pooled.columns[f"{label}_dice"] == pytest.approx(expected, rel=1e-5)
    assert pooled.columns["mean_dice"] == pytest.approx(np.mean(dice), rel=1e-5)
    errors = [abs(score_classes(one)[0].error_ml) for one in maps]
    assert pooled.columns["WM_error_ml"] == pytest.approx(np.mean(errors))
    assert pooled.columns["voxels"] == len(known)


def test_a_class_that_is_nowhere_has_no_dice_and_one_that_is_missed_has_none_left() -> None:
    nowhere, some = np.zeros(5, bool), np.arange(5) < 2
    assert math.isnan(class_dice(nowhere, nowhere))
    assert class_dice(some, nowhere) == class_dice(nowhere, some) == 0
    one = random_map(0)
    without = replace(one, found=np.minimum(one.found, 2), known=np.minimum(one.known, 2))
    evaluation = evaluate_maps([without])
    row = evaluation.rows[0]
    assert math.isnan(row.columns["lesion_dice"])
    of_others = [row.columns[f"{label}_dice"] for label in CLASSES.labels[:3]]
    assert row.columns["mean_dice"] == pytest.approx(np.mean(of_others))
    assert "n/a" in scores_tsv(evaluation.rows)


def test_one_class_is_scored() -> None:
    one = random_map(0)
    classes = Classes(("lesion",), ("lesion",))
    single = LabelledMap("sub-01", np.minimum(one.found, 0), np.minimum(one.known, 0), 1.0, classes)
    (row, _) = evaluate_maps([single]).rows
    assert 0 < row.columns["mean_dice"] == row.columns["lesion_dice"] < 1


def test_classes_are_matched_by_name() -> None:
    one, other = random_map(0), random_map(1)
    order = [2, 0, 3, 1]
    place = np.array([*np.argsort(order), -1])
    classes = Classes(*(tuple(x[i] for i in order) for x in (CLASSES.names, CLASSES.labels)))
    turned = LabelledMap(
        other.name,
        place[other.found].astype(np.int8),
        place[other.known].astype(np.int8),
        other.voxel_ml,
        classes,
    )
    found, expected = (evaluate_maps([one, two]).rows for two in (turned, other))
    assert scores_tsv(found) == scores_tsv(expected)
    strange = replace(other, classes=Classes(("a", "b", "c", "d"), ("a", "b", "c", "d")))
    with pytest.raises(BIDSError, match="sub-01 has other classes than sub-00: a, b, c, d; white"):
        evaluate_maps([one, strange])


def test_the_page_and_the_screen_list_every_class(tmp_path: Path) -> None:
    evaluation = evaluate_maps([random_map(0), random_map(1)])
    names = [row.name for row in evaluation.listed]
    assert names[:2] == ["sub-00, white matter", "sub-00, grey matter"]
    assert names[-2:] == ["all, lesion", "all, mean"]
    assert len(names) == 3 * N + 1
    evaluation.write_page(tmp_path / "page.html", {}, "a network")
    page = (tmp_path / "page.html").read_text()
    assert all(name in page for name in names)
    assert "Dice of every class in every scan" in page


# -- files ---------------------------------------------------------------------------------------

KNOWN = np.array([1, 1, 2, 2, 3, -1, 0, 0]).reshape(2, 2, 2)
TABLE = "index\tname\n1\twhite\n2\tgrey\n3\tfluid\n"


def write(path: Path, values: np.ndarray, table: str = TABLE, edge: float = 2.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(values.astype(np.int16), np.diag([edge] * 3 + [1])).to_filename(path)
    path.with_name(f"{path.name.partition('.')[0]}.tsv").write_text(table)
    return path


def scored(
    folder: Path, found: np.ndarray, known: np.ndarray = KNOWN, **how: object
) -> LabelledMap:
    write(folder / "truth/sub-01/dwi/sub-01_dseg.nii.gz", known)
    write(folder / "maps/sub-01/dwi/sub-01_space-orig_dseg.nii.gz", found, **how)  # type: ignore[arg-type]
    scoring = TissueScoring()
    (image,) = scoring.find_maps(folder / "maps", ())
    (truth,) = scoring.find_known(folder / "truth", ())
    assert scoring.name(image) == "sub-01"
    one, path = scoring.read(image, folder / "truth", None)
    assert path == truth
    return one


def test_without_a_mask_zeros_of_the_truth_are_not_scored(tmp_path: Path) -> None:
    one = scored(tmp_path, np.where(KNOWN == 0, 2, KNOWN))
    assert one.known.tolist() == [0, 0, 1, 1, 2, -1]
    assert one.found.tolist() == [0, 0, 1, 1, 2, -1]
    assert one.voxel_ml == pytest.approx(0.008)


def test_zero_in_a_map_is_no_class(tmp_path: Path) -> None:
    one = scored(tmp_path, np.where(KNOWN == 1, 0, KNOWN))
    assert one.found.tolist() == [-1, -1, 1, 1, 2, -1]
    assert score_classes(one)[0].dice == 0


def test_in_a_mask_every_value_of_the_truth_needs_a_name(tmp_path: Path) -> None:
    write(tmp_path / "truth/sub-01/dwi/sub-01_desc-brain_mask.nii.gz", np.ones((2, 2, 2)))
    with pytest.raises(BIDSError, match=r"truth/.*_dseg\.nii\.gz: the value 0 is in the brain"):
        scored(tmp_path, KNOWN)


def test_a_map_may_have_other_numbers_but_no_other_names(tmp_path: Path) -> None:
    table = "index\tname\n10\tfluid\n20\tgrey\n30\twhite\n"
    other = np.vectorize({1: 30, 2: 20, 3: 10, -1: -1, 0: 0}.get)(KNOWN)
    one = scored(tmp_path, other, table=table)
    np.testing.assert_array_equal(one.found, one.known)
    with pytest.raises(BIDSError, match=r"space-orig_dseg\.tsv: other classes .*\(bone, fluid\)"):
        scored(tmp_path, other, table=table.replace("fluid", "bone"))


def test_the_grid_is_that_of_the_truth(tmp_path: Path) -> None:
    with pytest.raises(DWIError, match=r"space-orig_dseg\.nii\.gz: the label image is on another"):
        scored(tmp_path, KNOWN, edge=2.5)
    with pytest.raises(DWIError, match=r"sub-01_dseg\.nii\.gz: no voxel to score"):
        scored(tmp_path, KNOWN, known=np.zeros_like(KNOWN))
