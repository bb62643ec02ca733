"""Lesions implanted into measured signal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tripq.scans import DWI, read_dwi
from tripq.scans.noise import noise_level
from tripq.scans.tensor import tensor_maps
from tripq.simulate import Anatomy, GradientTable, SimulationError, simulate_scan
from tripq.tasks.lesions.simulate import ImplantStatistics, implant_lesions


@pytest.fixture(scope="module")
def head(anatomy: Anatomy) -> DWI:
    """White matter of a simulated head, as if it were measured."""
    table = GradientTable.from_shells([1000.0], [32])
    small = anatomy.within((-50, -60, -10), (50, 40, 40))
    return simulate_scan(small, table, seed=0).dwi


def balls(dwi: DWI, radius: float = 9.0) -> np.ndarray:
    """Coverage of separate round lesions in white matter, soft at the edge."""
    fa, _ = tensor_maps(dwi)
    points = dwi.voxel_centres()
    rng = np.random.default_rng(0)
    centres: list[np.ndarray] = []
    for point in points[rng.permutation(np.flatnonzero(fa > 0.35))]:
        if all(np.linalg.norm(point - other) > 4 * radius for other in centres):
            centres.append(point)
    distance = np.linalg.norm(points[:, None] - np.array(centres), axis=2).min(axis=1)
    return np.clip((radius - distance) / 4 + 0.5, 0, 1).astype(np.float32)


def test_effects_are_those_measured_in_patients(head: DWI) -> None:
    """Guo et al. 2002: in plaques FA is 43 % lower and MD 39 % higher."""
    coverage = balls(head)
    fa, md = tensor_maps(head)
    core = (coverage > 0.5) & (fa > 0.3)
    ratios = []
    for seed in range(6):
        after = tensor_maps(implant_lesions(head, coverage, seed).dwi)
        ratios.append(
            [new[core].mean() / old[core].mean() for new, old in zip(after, (fa, md), strict=True)]
        )
    anisotropy, diffusivity = np.mean(ratios, axis=0)
    assert anisotropy == pytest.approx(0.57, abs=0.12)
    assert diffusivity == pytest.approx(1.39, abs=0.15)


def test_each_lesion_has_effects_of_its_own(head: DWI) -> None:
    coverage = balls(head)
    subject = implant_lesions(head, coverage, 1)
    whole = coverage == 1
    rise = subject.dwi.b0[whole] / head.b0[whole] - 1
    assert len(np.unique(rise.round(4))) > 2
    low, high = ImplantStatistics().severity, ImplantStatistics().b0_rise
    assert low[0] * high[0] <= rise.min() <= rise.max() <= low[1] * high[1]
    np.testing.assert_array_equal(subject.coverage, coverage)
    np.testing.assert_array_equal(subject.lesion, coverage >= 0.5)


def test_seeds(head: DWI) -> None:
    coverage = balls(head)
    first, again, other = (implant_lesions(head, coverage, seed).dwi for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.signal, again.signal)
    assert not np.array_equal(first.b0, other.b0)


def test_coverage_of_another_scan(head: DWI) -> None:
    with pytest.raises(SimulationError, match="lesion coverage has shape"):
        implant_lesions(head, np.zeros(3, np.float32), 0)
    with pytest.raises(SimulationError, match="lesion coverage must be between 0 and 1"):
        implant_lesions(head, np.full(len(head.b0), 255, np.float32), 0)


def test_a_real_head_keeps_its_noise(shared_data: Path) -> None:
    """A part of a real head; the change of b0, the noise and all other voxels are checked."""
    folder = shared_data / "real_dwi" / "tractseg_example"
    mask = np.zeros((73, 87, 73), bool)
    mask[20:50, 25:65, 35:45] = True
    dwi = read_dwi(folder / "Diffusion.nii.gz", mask=mask)
    coverage = balls(dwi)
    subject = implant_lesions(dwi, coverage, 0)
    np.testing.assert_array_equal(subject.dwi.signal[coverage == 0], dwi.signal[coverage == 0])
    assert (subject.dwi.b0 >= dwi.b0).all()
    inside = coverage == 1
    before, after = (np.median(noise_level(scan)[inside]) for scan in (dwi, subject.dwi))
    assert after == pytest.approx(before, rel=0.1)
    healthy, changed = (
        [values[inside].mean() for values in tensor_maps(scan)] for scan in (dwi, subject.dwi)
    )
    assert changed[0] < 0.9 * healthy[0]
    assert changed[1] > 1.1 * healthy[1]
