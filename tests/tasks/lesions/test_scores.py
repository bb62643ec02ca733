"""Scores equal those computed by hand, and files hold what was scored."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import panoptica
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from tripq.tasks.lesions.scores import (
    MATCHING_IOU,
    Evaluation,
    LesionCounts,
    best_min_volume,
    best_threshold,
    calibration_error,
    count_lesions,
    dice,
    evaluate,
    reliability,
    score,
    write_metrics,
)

# Ranked by probability: lesion, healthy, lesion, healthy, healthy.
PROBABILITY = np.array([0.1, 0.9, 0.4, 0.6, 0.2])
LESION = np.array([False, True, True, False, False])


def test_scores_equal_those_by_hand() -> None:
    scores = score(PROBABILITY, LESION, threshold=0.5)
    # 2 x 3 pairs of a lesion and a healthy voxel; one is in the wrong order.
    assert scores.roc_auc == pytest.approx(5 / 6, abs=1e-12)
    # Precision at the two lesions is 1/1 and 2/3; each adds half of the recall.
    assert scores.average_precision == pytest.approx((1 + 2 / 3) / 2, abs=1e-12)
    # Found: 0.9 and 0.6, of which one is lesion.
    assert scores.dice == pytest.approx(2 * 1 / (2 + 2), abs=1e-12)
    assert (scores.voxels, scores.lesion_voxels) == (5, 2)


@pytest.mark.parametrize(
    ("threshold", "expected"), [(0.95, 0.0), (0.9, 2 / 3), (0.4, 4 / 5), (0.0, 4 / 7)]
)
def test_dice_counts_voxels_at_the_threshold(threshold: float, expected: float) -> None:
    assert dice(PROBABILITY, LESION, threshold) == pytest.approx(expected, abs=1e-12)


voxels = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7, 1.0]), st.booleans()), min_size=1
)


@given(voxels)
def test_no_threshold_is_better_than_the_best(values: list[tuple[float, bool]]) -> None:
    probability, lesion = (np.array(column) for column in zip(*values, strict=True))
    if not lesion.any():
        with pytest.raises(ValueError, match="without a lesion voxel"):
            best_threshold(probability, lesion)
        return
    best = dice(probability, lesion, best_threshold(probability, lesion))
    assert best >= max(dice(probability, lesion, t) for t in probability) - 1e-12


def test_where_a_score_does_not_exist_it_is_nan() -> None:
    healthy = score(PROBABILITY, np.zeros(5, bool), threshold=0.95)
    assert all(map(math.isnan, (healthy.roc_auc, healthy.average_precision, healthy.dice)))
    lesion = score(PROBABILITY, np.ones(5, bool), threshold=0.0)
    assert math.isnan(lesion.roc_auc)
    assert lesion.average_precision == lesion.dice == 1.0


def test_pooled_scores_are_of_all_voxels_in_a_row() -> None:
    evaluation = evaluate([PROBABILITY, [0.3, 0.8]], [LESION, [True, False]], threshold=0.5)
    joined = score([*PROBABILITY, 0.3, 0.8], [*LESION, True, False], 0.5)
    assert evaluation.pooled == joined
    assert evaluation.subjects[0] == score(PROBABILITY, LESION, 0.5)


@pytest.mark.parametrize(
    ("probability", "reason"),
    [([0.1, 0.2], r"shape \(2,\) and \(5,\)"), ([np.nan, np.inf, 0, 0, 0], "2 .* not finite")],
)
def test_maps_that_cannot_be_scored_are_refused(probability: list[float], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        score(probability, LESION, 0.5)


def test_metrics_are_strict_json(tmp_path: Path) -> None:
    healthy = score(PROBABILITY, np.zeros(5, bool), threshold=0.5)
    evaluations = {"network": Evaluation(0.5, score(PROBABILITY, LESION, 0.5), (healthy,))}
    write_metrics(evaluations, tmp_path / "metrics.json", {"data": "simulated"})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refuse)
    assert content["data"] == "simulated"
    assert content["networks"]["network"]["pooled"]["dice"] == 0.5
    assert content["networks"]["network"]["subjects"][0]["roc_auc"] is None


def boxes(*corners: tuple[int, int, int], size: int) -> NDArray[np.bool_]:
    """Cubes of a size at some corners of a grid."""
    volume = np.zeros((20, 12, 12), dtype=bool)
    for i, j, k in corners:
        volume[i : i + size, j : j + size, k : k + size] = True
    return volume


def test_lesions_match_where_a_tenth_is_common() -> None:
    truth = boxes((1, 1, 1), size=4)
    # Cubes of 4 x 4 x 4 shifted by s: (4 - s) 16 in both, (4 + s) 16 in either.
    for shift, matched in ((0, 1), (3, 1), (4, 0)):
        counts = count_lesions(boxes((1 + shift, 1, 1), size=4), truth)
        assert counts == LesionCounts(true=1, found=1, matched=matched)
    assert count_lesions(boxes((4, 3, 1), size=4), truth).matched == 0  # 8 of 120


def test_every_lesion_matches_once() -> None:
    truth = boxes((1, 1, 1), (7, 1, 1), (13, 1, 1), size=4)
    bridged = truth.copy()
    bridged[1:11, 1:5, 1:5] = True  # one found lesion over the first two
    counts = count_lesions(bridged, truth)
    assert counts == LesionCounts(true=3, found=2, matched=2)
    assert (counts.sensitivity, counts.precision) == (2 / 3, 1.0)
    assert counts.f1 == pytest.approx(0.8, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_lesions_match_as_in_panoptica(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = ndimage.gaussian_filter(rng.normal(size=(24, 24, 24)), 1.2)
    found = truth + ndimage.gaussian_filter(rng.normal(size=truth.shape), 1.2)
    ours, theirs = found > 0.2, truth > 0.15
    evaluator = panoptica.Panoptica_Evaluator(
        expected_input=panoptica.InputType.SEMANTIC,
        instance_approximator=panoptica.ConnectedComponentsInstanceApproximator(),
        instance_matcher=panoptica.NaiveThresholdMatching(panoptica.Metric.IOU, MATCHING_IOU),
        instance_metrics=[panoptica.Metric.IOU],
        global_metrics=[],
    )
    result = evaluator.evaluate(ours.astype(np.uint8), theirs.astype(np.uint8), verbose=False)
    known = result["ungrouped"]
    counts = count_lesions(ours, theirs)
    assert counts == LesionCounts(known.n_ref_instances, known.n_pred_instances, known.tp)
    assert 0 < counts.matched < counts.found


def test_voxels_that_touch_at_a_corner_are_one_lesion() -> None:
    corner = boxes((2, 2, 2), (3, 3, 3), size=1)
    assert count_lesions(corner, corner) == LesionCounts(1, 1, 1)
    nothing = np.zeros_like(corner)
    assert count_lesions(corner, nothing) == LesionCounts(0, 1, 0)
    assert count_lesions(nothing, corner) == LesionCounts(1, 0, 0)


def test_counts_of_subjects_add_up() -> None:
    total = LesionCounts(3, 2, 2) + LesionCounts(0, 1, 0)
    assert total == LesionCounts(3, 3, 2)
    assert math.isnan(LesionCounts(0, 1, 0).sensitivity)
    assert math.isnan(LesionCounts(1, 0, 0).precision)
    assert math.isnan(LesionCounts(0, 0, 0).f1)
    with pytest.raises(ValueError, match="the same shape"):
        count_lesions(np.zeros((2, 2)), np.zeros((2, 2)))


def test_no_minimum_volume_is_better_than_the_best() -> None:
    """Cubes of 8 voxels are lesions; of single voxels one in five is, and of pairs none."""
    big, pairs = boxes((1, 1, 1), (7, 7, 7), size=2), boxes((16, 1, 1), (17, 1, 1), size=1)
    singles = boxes(*((1 + 3 * i, 5, 10) for i in range(5)), size=1)
    truth = big | boxes((1, 5, 10), size=1)
    found = big | pairs | singles
    f1 = {0.0: 6 / 11, 0.01: 4 / 6, 0.03: 4 / 5, 0.1: 0.0}
    for volumes, best in (((0.0, 0.01), 0.01), ((0.1, 0.03, 0.0), 0.03), ((0.1, 0.0), 0.0)):
        assert best_min_volume([found], [truth], [0.008], volumes) == best
        assert f1[best] == max(f1[volume] for volume in volumes)
    # 0.02 to 0.06 ml give the same candidates
    assert best_min_volume([found], [truth], [0.008], (0.06, 0.02, 0.05)) == 0.02


def test_the_minimum_volume_is_of_all_subjects_and_their_voxels() -> None:
    """One voxel of 1 ml is larger than two of 0.01 ml."""
    one, two = boxes((1, 1, 1), size=1), boxes((1, 1, 1), (2, 1, 1), size=1)
    nothing = np.zeros_like(one)
    assert best_min_volume([one, two], [one, nothing], [1.0, 0.01], (0.0, 0.05)) == 0.05
    assert best_min_volume([one, two], [one, two], [1.0, 0.01], (0.0, 0.05)) == 0.0
    with pytest.raises(ValueError, match="undefined without a lesion"):
        best_min_volume([one], [nothing], [1.0])


def test_dice_is_of_the_marked_voxels_where_they_are_given() -> None:
    assert score(PROBABILITY, LESION, 0.5, found=LESION).dice == 1.0
    evaluation = evaluate([PROBABILITY] * 2, [LESION] * 2, 0.5, found=[LESION, ~LESION])
    assert [one.dice for one in evaluation.subjects] == [1.0, 0.0]
    assert evaluation.pooled.dice == pytest.approx(2 * 2 / (5 + 4), abs=1e-12)


def test_the_calibration_error_is_the_weighted_distance_from_the_curve() -> None:
    rng = np.random.default_rng(0)
    probability = rng.uniform(0, 1, 5000) ** 3
    lesion = rng.uniform(0, 1, 5000) < probability**2
    curve = reliability(probability, lesion, n_bins=10)
    sizes, _ = np.histogram(probability, bins=10, range=(0, 1))
    expected = float(np.abs(curve.predicted - curve.true) @ sizes / 5000)
    assert calibration_error(probability, lesion, n_bins=10) == pytest.approx(expected, abs=1e-12)
    assert expected > 0.05


def test_healthy_voxels_that_are_easy_hide_an_error_of_calibration() -> None:
    probability = np.concatenate([np.zeros(900), np.full(100, 0.7)])
    lesion = np.arange(1000) >= 960  # 40 of 100 where 70 are predicted
    assert calibration_error(probability, lesion) == pytest.approx(0.03, abs=1e-12)
    assert calibration_error(probability, lesion, above=0.05) == pytest.approx(0.3, abs=1e-12)
    assert math.isnan(calibration_error(probability, lesion, above=0.9))
    curve = reliability(probability, lesion)
    np.testing.assert_allclose([curve.predicted, curve.true], [[0, 0.7], [0, 0.4]], atol=1e-12)


def test_logits_have_no_calibration() -> None:
    for of in (calibration_error, reliability):
        with pytest.raises(ValueError, match="1 values are not probabilities from 0 to 1, such as"):
            of(PROBABILITY - 0.2, LESION)
