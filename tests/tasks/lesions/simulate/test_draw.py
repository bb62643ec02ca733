from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from tripq.simulate import Anatomy, SimulationError
from tripq.tasks.lesions.simulate import LesionStatistics, draw_lesions, lesion_damage

SUBJECTS = 25


@pytest.fixture(scope="module")
def drawn(fine_anatomy: Anatomy) -> list[np.ndarray]:
    return [draw_lesions(fine_anatomy, np.random.default_rng(seed)) for seed in range(SUBJECTS)]


def sizes_in_voxels(coverage: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(coverage >= 0.5, np.ones((3, 3, 3)))
    return np.bincount(labels.ravel(), minlength=count + 1)[1:]


def test_counts_and_loads_are_those_of_patients(drawn: list[np.ndarray]) -> None:
    """Lesjak et al. 2017, 22 patients: mean and deviation of the logarithms."""
    sizes = [sizes_in_voxels(coverage) for coverage in drawn]
    count = np.log([len(own) for own in sizes])
    load = np.log([8 * own.sum() for own in sizes])
    print(f"log count {count.mean():.2f} +- {count.std():.2f} (patients 3.69 +- 0.97)")
    print(f"log load {load.mean():.2f} +- {load.std():.2f} (patients 9.04 +- 1.67, in mm3)")
    assert count.mean() == pytest.approx(3.69, abs=0.5)
    assert count.std() == pytest.approx(0.97, abs=0.3)
    assert load.mean() == pytest.approx(9.04, abs=0.9)
    assert load.std() == pytest.approx(1.67, abs=0.6)


def test_sizes_have_the_heavy_tail_of_patients(drawn: list[np.ndarray]) -> None:
    sizes = np.concatenate([sizes_in_voxels(coverage) for coverage in drawn])
    quantiles = np.quantile(sizes, [0.25, 0.5, 0.75, 0.95])
    print(f"size in voxels of 2 mm, quantiles {quantiles} (patients 2, 4, 11, 83)")
    assert 1 <= quantiles[0] <= 3
    assert 2 <= quantiles[1] <= 6
    assert 6 <= quantiles[2] <= 16
    assert 50 <= quantiles[3] <= 150
    assert sizes.max() > 1000


def test_lesions_lie_in_white_matter(drawn: list[np.ndarray], fine_anatomy: Anatomy) -> None:
    shares = [fine_anatomy.wm[coverage >= 0.5].mean() for coverage in drawn]
    assert np.median(shares) == pytest.approx(0.85, abs=0.07)
    assert min(shares) > 0.6
    assert all((fine_anatomy.csf[coverage > 0] <= 0.5).all() for coverage in drawn)


def test_lesions_prefer_the_ventricles(drawn: list[np.ndarray], fine_anatomy: Anatomy) -> None:
    """Density of lesion voxels over that of white matter; patients: 2.9 near, 0.25 far."""
    distance = fine_anatomy.ventricle_distance

    def relative_density(near: float, far: float) -> float:
        shell = (distance >= near) & (distance < far)
        white = fine_anatomy.wm[shell].sum() / fine_anatomy.wm.sum()
        share = [np.mean(shell[coverage >= 0.5]) for coverage in drawn]
        return float(np.mean(share) / white)

    assert relative_density(0, 8) == pytest.approx(2.7, abs=0.9)
    assert relative_density(24, 40) == pytest.approx(0.22, abs=0.15)


def test_edges_are_soft(drawn: list[np.ndarray]) -> None:
    ratio = np.median([(own > 0).sum() / (own >= 0.5).sum() for own in drawn])
    assert 2 < ratio < 7  # voxels touched for each voxel half covered; patients: 2 to 7
    assert all(own.min() == 0 and own.max() <= 1 for own in drawn)


def test_shapes_are_no_balls(drawn: list[np.ndarray]) -> None:
    """Share of the smallest ball around the centre of a large lesion that the lesion fills."""
    filled = []
    for coverage in drawn:
        labels, _ = ndimage.label(coverage >= 0.5)
        for number, box in enumerate(ndimage.find_objects(labels), start=1):
            voxels = np.argwhere(labels[box] == number)
            if len(voxels) >= 100:
                radius = np.linalg.norm(voxels - voxels.mean(0), axis=1).max()
                filled.append(len(voxels) / (4 / 3 * np.pi * (radius + 0.5) ** 3))
    assert len(filled) > 10
    assert np.median(filled) < 0.6


def test_a_seed_gives_the_same_lesions(anatomy: Anatomy) -> None:
    first, again, other = (draw_lesions(anatomy, np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_lesions_need_white_matter(block: Anatomy) -> None:
    grey = replace(block, wm=block.gm, gm=block.wm)
    coverage = draw_lesions(grey, np.random.default_rng(0))
    assert coverage.max() > 0
    none = replace(block, wm=np.zeros_like(block.wm), gm=np.ones_like(block.gm))
    with pytest.raises(SimulationError, match="no white matter"):
        draw_lesions(none, np.random.default_rng(0))


def test_sizes_are_drawn_within_their_range() -> None:
    statistics = LesionStatistics(smallest=20.0, largest=500.0)
    rng = np.random.default_rng(0)
    sizes = np.concatenate([statistics.draw_sizes(rng) for _ in range(100)])
    assert sizes.min() >= 20
    assert sizes.max() <= 500


def test_each_lesion_has_one_severity_of_its_own(drawn: list[np.ndarray]) -> None:
    coverage = drawn[0]
    damage = lesion_damage(coverage, (0.2, 0.8), np.random.default_rng(0))
    assert not damage[coverage == 0].any()
    labels, count = ndimage.label(coverage > 0, np.ones((3, 3, 3)))
    severity = damage[coverage > 0] / coverage[coverage > 0]
    assert severity.min() >= 0.2
    assert severity.max() <= 0.8
    numbers = range(1, count + 1)
    spread = ndimage.standard_deviation(damage / np.maximum(coverage, 1e-6), labels, numbers)
    np.testing.assert_allclose(spread, 0, atol=1e-5)
    means = ndimage.mean(damage / np.maximum(coverage, 1e-6), labels, numbers)
    assert len(np.unique(np.round(means, 6))) == count


def test_coverage_of_another_scale_is_refused() -> None:
    with pytest.raises(SimulationError, match="between 0 and 255"):
        lesion_damage(np.array([0.0, 255.0], np.float32), (0.2, 0.8), np.random.default_rng(0))
