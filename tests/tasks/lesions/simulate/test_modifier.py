from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tripq.simulate import Anatomy, GradientTable, SimulationError, Tissue, diffusion_signal
from tripq.tasks.lesions.simulate import LesionEffect, Lesions


def one(value: float) -> np.ndarray:
    return np.array([value], np.float32)


def white_matter() -> Tissue:
    """One voxel of normal white matter with its first fibre along x and its second along y."""
    return Tissue(
        one(1.0),
        one(0.0),
        one(0.0),
        np.eye(3, dtype=np.float32)[None, :2],
        np.array([[0.6, 0.25]], np.float32),
        one(0.6),
        one(1.7e-3),
        one(0.8e-3),
        water=one(0.0),
        s0=one(1.0),
    )


def damaged(tissue: Tissue, damage: float) -> Tissue:
    return LesionEffect().on(tissue, one(damage))


def tensor_fit(signal: np.ndarray, table: GradientTable) -> tuple[float, float]:
    """Mean diffusivity in mm2/s and fractional anisotropy of a noise-free signal."""
    x, y, z = table.directions[~table.b0].T
    design = np.stack([x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z], axis=1)
    decay = -np.log(signal[~table.b0] / signal[table.b0][0]) / table.b_values[~table.b0]
    a, b, c, d, e, f = np.linalg.lstsq(design, decay, rcond=None)[0]
    values = np.linalg.eigvalsh([[a, d, e], [d, b, f], [e, f, c]])
    mean = values.mean()
    return mean, float(np.sqrt(1.5 * ((values - mean) ** 2).sum() / (values**2).sum()))


def test_lesions_raise_diffusivity_and_lower_anisotropy_as_measured_in_patients() -> None:
    """Guo et al. 2002: MD 0.739 -> 1.025 (e-3 mm2/s), FA 0.493 -> 0.280 in plaques."""
    table = GradientTable.from_shells([1000.0], [60])
    fits = [
        tensor_fit(diffusion_signal(damaged(white_matter(), damage), table)[0], table)
        for damage in (0.0, 0.2, 0.5, 0.8)
    ]
    diffusivity, anisotropy = np.transpose(fits)
    assert (np.diff(diffusivity) > 0).all()
    assert (np.diff(anisotropy) < 0).all()
    assert diffusivity[0] == pytest.approx(0.739e-3, rel=0.15)
    assert diffusivity[2] == pytest.approx(1.025e-3, rel=0.15)
    assert anisotropy[0] == pytest.approx(0.493, rel=0.15)
    assert anisotropy[2] == pytest.approx(0.280, rel=0.15)


def test_no_damage_is_no_change() -> None:
    ill = replace(white_matter(), water=one(0.2), s0=one(1.1), stick_fraction=one(0.5))
    same = damaged(ill, 0.0)
    for name, values in vars(ill).items():
        np.testing.assert_array_equal(getattr(same, name), values)


def test_the_effect_is_in_proportion_to_the_damage() -> None:
    effect = LesionEffect(stick_loss=0.5, water=0.4, s0_gain=0.2)
    tissue = effect.on(white_matter(), one(0.5))
    assert tissue.stick_fraction[0] == pytest.approx(0.6 * 0.75)
    assert tissue.water[0] == pytest.approx(0.2)
    assert tissue.s0[0] == pytest.approx(1.1)


def test_tissue_is_replaced_by_water_but_water_is_not() -> None:
    """Of tissue that is half water, a lesion takes the other half."""
    tissue = replace(white_matter(), water=one(0.5))
    assert LesionEffect(water=1.0).on(tissue, one(1.0)).water[0] == 1.0
    assert LesionEffect(water=0.2).on(tissue, one(1.0)).water[0] == pytest.approx(0.6)


def test_a_seed_gives_the_same_lesions_wherever_they_lie(anatomy: Anatomy) -> None:
    first, again, other = (Lesions.draw(anatomy, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.damage, again.damage)
    assert not np.array_equal(first.coverage, other.coverage)
    # the severities are drawn apart from the places: given lesions are as severe as drawn ones
    given = Lesions.draw(anatomy, 3, coverage=first.coverage)
    np.testing.assert_array_equal(given.damage, first.damage)


def test_coverage_on_another_grid_is_refused(anatomy: Anatomy) -> None:
    with pytest.raises(SimulationError, match="on the anatomy's grid"):
        Lesions.draw(anatomy, 0, coverage=np.zeros((3, 3, 3), np.float32))
