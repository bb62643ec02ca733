from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tripq.scans import read_dwi
from tripq.simulate import (
    Anatomy,
    GradientTable,
    Grid,
    SimulationError,
    random_rotation,
    simulate_scan,
)
from tripq.tasks.lesions.simulate import simulate_cohort, simulate_subject, write_subject

QUANTILES = [0.05, 0.25, 0.5, 0.75, 0.95]


def tensor_maps(signal: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """FA, MD in 1e-3 mm2/s and the residual over b0 of a weighted fit at b = 1000 s/mm2."""
    x, y, z = q[1:].T
    design = np.stack([x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z], axis=1)
    measured = np.clip(signal[:, 1:], 1e-3, None).astype(float)
    start = -np.log(measured) @ np.linalg.pinv(design).T
    weight = np.exp(-2 * start @ design.T)  # variance of log(signal) goes as signal^-2
    normal = np.einsum("vq,qi,qj->vij", weight, design, design)
    right = np.einsum("vq,qi->vi", -weight * np.log(measured), design)
    fit = np.linalg.solve(normal, right[..., None])[..., 0]
    a, b, c, d, e, f = fit.T
    values = np.linalg.eigvalsh(np.stack([[a, d, e], [d, b, f], [e, f, c]]).transpose(2, 0, 1))
    mean = values.mean(axis=1)
    deviation = ((values - mean[:, None]) ** 2).sum(axis=1)
    anisotropy = np.sqrt(1.5 * deviation / (values**2).sum(axis=1))
    residual = (signal[:, 1:] - np.exp(-fit @ design.T)).std(axis=1)
    return anisotropy, mean, residual


def average_precision(score: np.ndarray, truth: np.ndarray) -> float:
    hits = truth[np.argsort(-score)]
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())


def test_a_subject_is_a_scan_and_its_lesions(anatomy: Anatomy, table: GradientTable) -> None:
    subject = simulate_subject(anatomy, table, seed=3)
    dwi = subject.dwi
    assert dwi.signal.shape == (dwi.mask.sum(), 33)
    assert dwi.signal.dtype == np.float32
    assert (dwi.signal[:, 0] == 1).all()
    np.testing.assert_allclose(dwi.q[1:], table.directions[1:], atol=1e-12)
    assert subject.coverage.shape == subject.lesion.shape == dwi.b0.shape
    assert subject.coverage.min() >= 0
    assert subject.coverage.max() <= 1
    np.testing.assert_array_equal(subject.lesion, subject.coverage >= 0.5)
    assert dwi.notes == ("simulated",)
    assert not any(face.any() for face in (dwi.mask[0], dwi.mask[:, 0], dwi.mask[:, :, -1]))


def test_a_seed_gives_the_same_subject(anatomy: Anatomy, table: GradientTable) -> None:
    first, again, other = (simulate_subject(anatomy, table, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.dwi.signal, again.dwi.signal)
    np.testing.assert_array_equal(first.coverage, again.coverage)
    assert first.dwi.mask.shape != other.dwi.mask.shape or (first.dwi.mask != other.dwi.mask).any()


@pytest.mark.parametrize(
    ("seed", "lesions", "coverage", "b0", "signal"),
    [
        (0, 736, 679.9839, 1293.695, [0.402476, 0.330529, 0.335394, 0.328091, 0.324374, 0.292734]),
        (1, 340, 349.8100, 1117.584, [0.509300, 0.355067, 0.425781, 0.402142, 0.356921, 0.364144]),
    ],
)
def test_a_seed_gives_what_it_has_always_given(
    block: Anatomy, seed: int, lesions: int, coverage: float, b0: float, signal: list[float]
) -> None:
    """Means of two scans, as stored: cohorts can be made again with later versions."""
    subject = simulate_subject(block, GradientTable.from_shells([1000.0], [6]), seed)
    assert subject.lesion.sum() == pytest.approx(lesions, abs=1)
    assert subject.coverage.sum() == pytest.approx(coverage, rel=1e-4)
    assert subject.dwi.b0.mean() == pytest.approx(b0, rel=1e-4)
    np.testing.assert_allclose(subject.dwi.signal.mean(axis=0)[1:], signal, rtol=1e-4)


def test_a_cohort_has_the_seeds_it_has_always_had(block: Anatomy) -> None:
    table = GradientTable.from_shells([1000.0], [6])
    first, second = simulate_cohort(2, seed=3, anatomy=block, table=table)
    assert (first.seed, second.seed) == (2209522116, 1242075042)
    signal = [0.419626, 0.459379, 0.478477, 0.429182, 0.370634, 0.345162]
    np.testing.assert_allclose(first.dwi.signal.mean(axis=0)[1:], signal, rtol=1e-4)
    assert second.coverage.sum() == pytest.approx(493.3103, rel=1e-4)


def test_noise_and_table_leave_the_head_alone(anatomy: Anatomy, table: GradientTable) -> None:
    one = simulate_subject(anatomy, table, seed=5, snr=50.0)
    two = simulate_subject(anatomy, GradientTable.from_shells([2000.0], [6]), seed=5, snr=10.0)
    np.testing.assert_array_equal(one.dwi.mask, two.dwi.mask)
    np.testing.assert_array_equal(one.coverage, two.coverage)


def test_without_coverage_the_signal_is_that_of_a_healthy_head(
    anatomy: Anatomy, table: GradientTable
) -> None:
    ill = simulate_subject(anatomy, table, seed=5, snr=np.inf)
    well = simulate_scan(anatomy, table, seed=5, snr=np.inf)
    none = np.zeros(anatomy.mask.shape, np.float32)
    same = simulate_subject(anatomy, table, seed=5, snr=np.inf, lesion_coverage=none)
    assert not same.coverage.any()
    np.testing.assert_array_equal(same.dwi.signal, well.dwi.signal)
    free = ill.coverage == 0
    assert 0.5 < free.mean() < 1
    np.testing.assert_array_equal(ill.dwi.signal[free], well.dwi.signal[free])
    changed = np.abs(ill.dwi.signal - well.dwi.signal).max(axis=1)
    assert (changed[ill.lesion] > 1e-4).all()


def test_given_lesions_are_seen_where_they_were_given(block: Anatomy) -> None:
    coverage = np.zeros(block.mask.shape, np.float32)
    coverage[2, 3, 4] = 1.0
    table = GradientTable.from_shells([1000.0], [6])
    subject = simulate_subject(
        block, table, seed=0, deformation=0.0, lesion_coverage=coverage, grid=block.grid
    )
    assert np.argwhere(subject.dwi.volume(subject.lesion)).tolist() == [[2, 3, 4]]
    with pytest.raises(SimulationError, match="on the anatomy's grid"):
        simulate_subject(block, table, seed=0, lesion_coverage=coverage[1:])


def test_written_subjects_are_read_back(anatomy: Anatomy, tmp_path: Path) -> None:
    table = GradientTable.from_shells([1000.0, 2000.0], [6, 7], n_b0=2)
    rotation = random_rotation(np.random.default_rng(0))
    oblique = np.eye(4)
    oblique[:3, :3] = rotation @ np.diag([5.0, 5.0, 6.0])
    points = anatomy.grid.points()[anatomy.mask.ravel()]
    straight = Grid((9, 9, 9), np.diag([5.0, 5.0, 5.0, 1.0]))  # det > 0: x is negated in files
    mirrored = Grid((9, 9, 9), np.diag([-5.0, 5.0, 5.0, 1.0]))
    for number, lattice in enumerate((straight, mirrored, Grid((9, 9, 9), oblique))):
        subject = simulate_subject(anatomy, table, 2, grid=lattice.covering(points, 5.0))
        folder = tmp_path / str(number)
        write_subject(subject, folder)
        read = read_dwi(folder / "dwi.nii.gz", mask=folder / "mask.nii.gz")
        np.testing.assert_allclose(read.signal, subject.dwi.signal, rtol=1e-6)
        np.testing.assert_allclose(read.q, subject.dwi.q, atol=1e-6)
        np.testing.assert_allclose(read.b_values, subject.dwi.b_values)
        np.testing.assert_allclose(read.b0, subject.dwi.b0, rtol=1e-6)
        np.testing.assert_allclose(read.affine, subject.dwi.affine, atol=1e-5)
        np.testing.assert_array_equal(read.mask, subject.dwi.mask)


@pytest.mark.parametrize(
    ("edge", "first_row"), [(5.0, ("-0.0", "-1.0", "-0.0")), (-5.0, ("0.0", "-1.0", "0.0"))]
)
def test_tables_of_written_subjects_keep_their_bytes(
    anatomy: Anatomy, tmp_path: Path, edge: float, first_row: tuple[str, ...]
) -> None:
    """The files of a cohort are known by their fingerprints, and zeros have signs in a file."""
    directions = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.6, 0.8]])
    points = anatomy.grid.points()[anatomy.mask.ravel()]
    grid = Grid((9, 9, 9), np.diag([edge, 5.0, 5.0, 1.0])).covering(points, 5.0)
    table = GradientTable(np.array([0.0, 1000.0, 2000.0]), directions)
    write_subject(simulate_subject(anatomy, table, 2, grid=grid), tmp_path)
    rows = (first_row, ("0.0", "0.0", "0.6"), ("0.0", "0.0", "0.8"))
    expected = "".join(" ".join(word + 9 * "0" for word in row) + "\n" for row in rows)
    assert (tmp_path / "dwi.bvec").read_text() == expected
    assert (tmp_path / "dwi.bval").read_text() == "0 1000 2000\n"


def test_cohorts_vary_and_can_be_made_again(anatomy: Anatomy) -> None:
    small = anatomy.within((-80, -110, 0), (80, 80, 30))
    cohort = list(simulate_cohort(3, seed=7, anatomy=small))
    longer = list(simulate_cohort(4, seed=7, anatomy=small))
    for one, same in zip(cohort, longer[:3], strict=True):
        np.testing.assert_array_equal(one.dwi.signal, same.dwi.signal)
        np.testing.assert_array_equal(one.dwi.q, same.dwi.q)
    assert len({subject.seed for subject in longer}) == 4
    assert len({subject.dwi.q.tobytes() for subject in longer}) == 4
    fixed = simulate_cohort(2, seed=7, anatomy=small, vary_table=False)
    assert len({subject.dwi.q.tobytes() for subject in fixed}) == 1


def test_cohorts_take_real_lesions(anatomy: Anatomy) -> None:
    maps = [np.zeros(anatomy.mask.shape, np.float32) for _ in range(2)]
    maps[1][anatomy.wm > 0.9] = 1.0
    loads = [
        subject.lesion.mean()
        for subject in simulate_cohort(4, 0, anatomy=anatomy, lesion_coverages=maps)
    ]
    assert loads[0] == loads[2] == 0
    assert min(loads[1], loads[3]) > 0.05


def test_tissue_contrasts_are_those_of_real_scans(
    fine_anatomy: Anatomy, table: GradientTable
) -> None:
    """Quantiles of FA and MD of two real whole-brain scans at b = 1000 s/mm2.

    The scans are the examples of TractSeg (2.5 mm) and of NLSAM (1.8 mm); the means of their
    quantiles are to be met within 25 % at 25, 50 and 75 %. A threshold on either map finds hardly
    any lesion, as fluid and cortex look alike.
    """
    subjects = [simulate_subject(fine_anatomy, table, seed) for seed in (0, 3)]
    rng = np.random.default_rng(0)
    rows, precisions, prevalences = [], [], []
    for subject in subjects:
        some = rng.choice(len(subject.lesion), 20_000, replace=False)
        anisotropy, mean, residual = tensor_maps(subject.dwi.signal[some], subject.dwi.q)
        lesion = subject.lesion[some]
        precisions.append([average_precision(s, lesion) for s in (mean, -anisotropy)])
        prevalences.append(lesion.mean())
        rows.append([np.quantile(v, QUANTILES) for v in (anisotropy, mean, 1 / residual)])
    fa, md, snr = np.mean(rows, axis=0)
    for name, values in (("FA", fa), ("MD", md), ("S0 / residual", snr)):
        print(name, values.round(2))
    print("average precision of MD, FA", np.mean(precisions, axis=0), "load", np.mean(prevalences))
    np.testing.assert_allclose(fa[1:4], [0.125, 0.22, 0.39], rtol=0.25)
    np.testing.assert_allclose(md[1:4], [0.70, 0.795, 1.01], rtol=0.25)
    assert 20 < snr[2] < 40  # 31 and 17 in the real scans
    assert np.max(precisions) < 0.05
