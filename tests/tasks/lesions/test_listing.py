"""Candidates are the connected parts of a thresholded map, in world coordinates."""

from __future__ import annotations

import csv
import math
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.affines import apply_affine
from numpy.typing import NDArray

from tripq.scans import DWI
from tripq.tasks.lesions.listing import (
    Candidate,
    candidates_tsv,
    drop_small,
    find_candidates,
    label_candidates,
)

OBLIQUE = np.array([[-1.9, 0.3, 0, 20], [0.3, 1.9, 0, 5], [0, 0, 3.0, 9], [0, 0, 0, 1]])


def make_scan(
    shape: tuple[int, int, int] = (6, 5, 4), affine: NDArray[np.float64] = OBLIQUE
) -> DWI:
    """A scan of a mask with holes."""
    mask = np.random.default_rng(0).random(shape) < 0.8
    n = np.count_nonzero(mask)
    return DWI(
        signal=np.ones((n, 2), dtype=np.float32),
        b_values=np.array([0.0, 1000.0]),
        q=np.array([[0.0, 0, 0], [1, 0, 0]]),
        mask=mask,
        affine=affine,
        b0=np.ones(n, dtype=np.float32),
    )


def touch(first: NDArray[np.int64], second: NDArray[np.int64]) -> bool:
    """Whether two sets of voxels share a face, an edge or a corner."""
    return bool((np.abs(first[:, None] - second[None]).max(axis=-1) <= 1).any())


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5, 0.75, 1.0]))
def test_candidates_are_the_connected_parts_of_the_voxels_at_the_threshold(
    seed: int, threshold: float
) -> None:
    dwi = make_scan()
    # few values, so that some lie at the threshold and some are equal
    probability = np.random.default_rng(seed).choice([0, 0.25, 0.5, 0.75, 1], len(dwi.b0))
    labels = label_candidates(dwi, probability, threshold)
    np.testing.assert_array_equal(labels > 0, probability >= threshold)

    voxels = np.argwhere(dwi.mask)
    parts = [voxels[labels == number] for number in range(1, labels.max() + 1)]
    for number, part in enumerate(parts):
        rest = np.array([v for other in parts[:number] + parts[number + 1 :] for v in other])
        assert not (len(rest) and touch(part, rest))
        reached = part[:1]  # grows from one voxel to the whole part
        while len(reached) < len(part):
            near = [v for v in part if touch(v[None], reached)]
            assert len(near) > len(reached)
            reached = np.array(near)

    candidates = find_candidates(dwi, probability, threshold)
    assert len(candidates) == len(parts)
    values = [candidate.mean_probability * candidate.volume_ml for candidate in candidates]
    np.testing.assert_allclose(values, sorted(values, reverse=True), atol=1e-12)
    for number, (candidate, part) in enumerate(zip(candidates, parts, strict=True), start=1):
        values = probability[labels == number]
        places = apply_affine(OBLIQUE, part)
        assert candidate.voxels == len(part)
        assert candidate.volume_ml == pytest.approx(len(part) * (1.9**2 + 0.3**2) * 3 / 1000)
        np.testing.assert_allclose(candidate.centre_mm, places.mean(axis=0), atol=1e-9)
        np.testing.assert_allclose(candidate.peak_mm, places[values.argmax()], atol=1e-9)
        assert candidate.mean_probability == pytest.approx(values.mean())
        assert candidate.highest_probability == values.max()


def test_without_a_voxel_at_the_threshold_there_is_no_candidate() -> None:
    dwi = make_scan()
    assert find_candidates(dwi, np.full(len(dwi.b0), 0.49), 0.5) == ()


def test_candidates_are_ordered_by_the_integral_of_the_probability() -> None:
    """Three voxels of .5 are less than two of .9; equal values are ordered by the highest one."""
    dwi = replace_mask(make_scan((20, 3, 3)), np.ones((20, 3, 3), dtype=bool))
    probability = np.zeros((20, 3, 3))
    probability[0:3, 0, 0] = 0.5  # 1.5
    probability[5:7, 0, 0] = 0.9  # 1.8
    probability[9, 0, 0], probability[10, 0, 0] = 0.6, 1.0  # 1.6
    probability[13:15, 0, 0] = 0.8  # 1.6, and no higher than .8
    probability[17:19, 0, 0] = 0.8  # the same, further on
    labels = dwi.volume(label_candidates(dwi, probability.ravel(), 0.5))
    assert labels[[5, 9, 13, 17, 0], 0, 0].tolist() == [1, 2, 3, 4, 5]


def test_sums_in_another_order_do_not_decide_between_equal_candidates() -> None:
    """0.1 + 0.2 + 0.3 is more than 0.3 + 0.2 + 0.1 in floating point."""
    dwi = replace_mask(make_scan((9, 3, 3)), np.ones((9, 3, 3), dtype=bool))
    probability = np.zeros((9, 3, 3))
    probability[0:3, 0, 0], probability[5:8, 0, 0] = (0.3, 0.2, 0.1), (0.1, 0.2, 0.3)
    labels = dwi.volume(label_candidates(dwi, probability.ravel(), 0.05))
    assert labels[[0, 5], 0, 0].tolist() == [1, 2]


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.012, 0.02, 0.06, 1000.0]))
def test_candidates_below_the_minimum_volume_are_not_marked(seed: int, min_volume: float) -> None:
    dwi = make_scan()
    probability = np.random.default_rng(seed).choice([0, 0.25, 0.5, 0.75, 1], len(dwi.b0))
    everything = find_candidates(dwi, probability, 0.75)
    kept = [candidate for candidate in everything if candidate.volume_ml >= min_volume]
    assert find_candidates(dwi, probability, 0.75, min_volume) == tuple(kept)
    labels = label_candidates(dwi, probability, 0.75, min_volume)
    assert np.bincount(labels, minlength=1)[1:].tolist() == [one.voxels for one in kept]


@pytest.mark.parametrize("edge", [0.8, 1.7, 2.0])
def test_a_component_of_exactly_the_minimum_volume_is_kept(edge: float) -> None:
    """Rounding of the volume of a voxel decides nothing."""
    voxel_ml = float(np.float32(edge)) ** 3 / 1000
    marked = np.zeros((9, 3, 3), dtype=bool)
    marked[0:3, 0, 0] = marked[5:7, 0, 0] = True
    expected = marked.copy()
    expected[5:7] = False
    np.testing.assert_array_equal(drop_small(marked, voxel_ml, 3 * edge**3 / 1000), expected)
    np.testing.assert_array_equal(drop_small(marked, voxel_ml, 0), marked)


HEAD = np.diag([2.0, 2.0, 2.0, 1.0])  # 61 voxels: 120 mm wide


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize(
    ("from_middle", "side"), [(-30, "left"), (-6, "left"), (4, "midline"), (6, "right")]
)
def test_the_side_is_that_of_the_world(flipped: bool, from_middle: float, side: str) -> None:
    affine = HEAD.copy()
    affine[0, 3] = -500  # the origin is nowhere near the head
    if flipped:
        affine[0] = [-2.0, 0, 0, -500 + 120]
    dwi = make_scan((61, 3, 3), affine)
    dwi = replace_mask(dwi, np.ones((61, 3, 3), dtype=bool))
    x = dwi.voxel_centres()[:, 0]
    probability = np.isclose(x - x.mean(), from_middle).astype(float)
    (candidate,) = find_candidates(dwi, probability, 0.5)
    assert candidate.side == side


def test_a_part_of_a_head_and_a_header_without_orientation_have_no_sides() -> None:
    part = replace_mask(make_scan((49, 3, 3), HEAD), np.ones((49, 3, 3), dtype=bool))
    whole = replace_mask(make_scan((61, 3, 3), HEAD), np.ones((61, 3, 3), dtype=bool))
    lost = replace(whole, header=nib.Nifti1Header())  # both codes are 0
    for dwi, expected in ((part, "unknown"), (lost, "unknown"), (whole, "left")):
        probability = (np.arange(len(dwi.b0)) == 0).astype(float)
        (candidate,) = find_candidates(dwi, probability, 0.5)
        assert candidate.side == expected


def replace_mask(dwi: DWI, mask: NDArray[np.bool_]) -> DWI:
    n = np.count_nonzero(mask)
    return replace(
        dwi,
        mask=mask,
        signal=np.ones((n, 2), dtype=np.float32),
        b0=np.ones(n, dtype=np.float32),
    )


@pytest.mark.parametrize(
    ("probability", "threshold", "reason"),
    [
        (np.zeros(3), 0.5, r"each of the \d+ voxels, not an array of shape \(3,\)"),
        (-2.0, 0.5, "values are not probabilities from 0 to 1, such as -2"),
        (np.nan, 0.5, "such as nan"),
        (0.5, -0.1, "threshold=-0.1 must be from 0 to 1"),
        (0.5, np.nan, "threshold=nan"),
    ],
)
def test_maps_and_thresholds_that_mean_nothing_are_refused(
    probability: NDArray[np.float64] | float, threshold: float, reason: str
) -> None:
    dwi = make_scan()
    values = np.full(len(dwi.b0), probability) if np.isscalar(probability) else probability
    with pytest.raises(ValueError, match=reason):
        find_candidates(dwi, values, threshold)


@pytest.mark.parametrize("min_volume", [-0.1, math.nan, math.inf, 1001.0])
def test_minimum_volumes_that_mean_nothing_are_refused(min_volume: float) -> None:
    dwi = make_scan()
    with pytest.raises(ValueError, match=f"min_volume={min_volume} must be from 0 to 1000 ml"):
        find_candidates(dwi, np.zeros(len(dwi.b0)), 0.5, min_volume)


def test_the_table_holds_what_was_found() -> None:
    candidates = [
        Candidate(10, 0.08, (1.04, -2.0, 3.0), (0.0, 0.0, 0.0), "right", 0.61234, 0.9),
        Candidate(1, 0.008, (-40.0, 0.0, 0.0), (0.0, 0.0, 0.0), "left", 0.5, 0.5),
    ]
    rows = list(csv.DictReader(candidates_tsv(candidates).splitlines(), delimiter="\t"))
    assert [row["candidate"] for row in rows] == ["1", "2"]
    assert [row["voxels"] for row in rows] == ["10", "1"]
    assert rows[0] == {
        **{"candidate": "1", "voxels": "10", "volume_ml": "0.0800", "side": "right"},
        **{"x_mm": "1.0", "y_mm": "-2.0", "z_mm": "3.0"},
        **{"mean_probability": "0.6123", "highest_probability": "0.9000"},
    }
