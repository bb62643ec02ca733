from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tripq.simulate import (
    Constants,
    GradientTable,
    Tissue,
    add_rician_noise,
    diffusion_signal,
    random_rotation,
    spread_directions,
)

TABLE = GradientTable.from_shells([1000.0, 3000.0], [12, 20], n_b0=2)


def random_tissue(seed: int, voxels: int = 20) -> Tissue:
    rng = np.random.default_rng(seed)
    fractions = rng.dirichlet(np.ones(3), voxels).astype(np.float32)
    directions = rng.standard_normal((voxels, 3, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return Tissue(
        *fractions.T,
        directions=directions.astype(np.float32),
        weights=rng.dirichlet(np.ones(4), voxels)[:, :3].astype(np.float32),
        stick_fraction=rng.uniform(0.3, 0.8, voxels).astype(np.float32),
        axial_diffusivity=rng.uniform(1.4e-3, 2e-3, voxels).astype(np.float32),
        gm_diffusivity=rng.uniform(0.7e-3, 0.9e-3, voxels).astype(np.float32),
        water=rng.uniform(0, 0.3, voxels).astype(np.float32),
        s0=rng.uniform(0.8, 1.5, voxels).astype(np.float32),
    )


def white_matter(weights: list[float]) -> Tissue:
    """One voxel of normal white matter with its first fibre along x and its second along y."""

    def one(value: float) -> np.ndarray:
        return np.array([value], np.float32)

    return Tissue(
        one(1.0),
        one(0.0),
        one(0.0),
        np.eye(3, dtype=np.float32)[None, : len(weights)],
        np.array([weights], np.float32),
        one(0.6),
        one(1.7e-3),
        one(0.8e-3),
        water=one(0.0),
        s0=one(1.0),
    )


@given(st.integers(0, 2**32 - 1))
def test_signal_at_b0_is_s0(seed: int) -> None:
    tissue, constants = random_tissue(seed), Constants()
    solid = tissue.wm + constants.gm_s0 * tissue.gm
    s0 = solid * tissue.s0 + constants.csf_s0 * tissue.csf
    signal = diffusion_signal(tissue, TABLE)
    np.testing.assert_allclose(signal[:, TABLE.b0], np.stack([s0, s0], axis=1), rtol=2e-6)


@given(st.integers(0, 2**32 - 1))
def test_rotating_fibres_and_table_together_changes_nothing(seed: int) -> None:
    tissue = random_tissue(seed)
    rotation = random_rotation(np.random.default_rng(seed))
    turned = replace(tissue, directions=(tissue.directions @ rotation.T).astype(np.float32))
    np.testing.assert_allclose(
        diffusion_signal(turned, TABLE.rotated(rotation)),
        diffusion_signal(tissue, TABLE),
        rtol=5e-6,
    )
    assert not np.allclose(
        diffusion_signal(turned, TABLE), diffusion_signal(tissue, TABLE), rtol=1e-3
    )


@given(st.integers(0, 2**32 - 1))
def test_signs_of_directions_carry_nothing(seed: int) -> None:
    rng, tissue = np.random.default_rng(seed), random_tissue(seed)
    signs = rng.choice([-1.0, 1.0], size=(*tissue.weights.shape, 1)).astype(np.float32)
    reversed_fibres = replace(tissue, directions=tissue.directions * signs)
    np.testing.assert_array_equal(
        diffusion_signal(reversed_fibres, TABLE.with_random_signs(rng)),
        diffusion_signal(tissue, TABLE),
    )


def test_one_fibre_is_the_stick_and_zeppelin_of_the_formula() -> None:
    tissue = white_matter([1.0])
    cosine2 = TABLE.directions[:, 0] ** 2
    b, nu, axial = TABLE.b_values, 0.6, 1.7e-3
    radial = (1 - nu) * axial
    zeppelin = np.exp(-b * (radial + (axial - radial) * cosine2))
    expected = nu * np.exp(-b * axial * cosine2) + (1 - nu) * zeppelin
    np.testing.assert_allclose(diffusion_signal(tissue, TABLE)[0], expected, rtol=3e-6)


def test_fibres_without_weight_are_dispersed_over_all_directions() -> None:
    one = white_matter([1.0])
    many = Tissue(**{name: np.repeat(values, 200, axis=0) for name, values in vars(one).items()})
    everywhere = spread_directions(200).astype(np.float32)[:, None]
    mean = diffusion_signal(replace(many, directions=everywhere), TABLE).mean(axis=0)
    loose = diffusion_signal(white_matter([0.0]), TABLE)[0]
    np.testing.assert_allclose(loose, mean, rtol=1e-3)


@given(st.integers(0, 2**32 - 1))
def test_tissue_that_is_all_water_decays_as_water_does(seed: int) -> None:
    """Whatever it was: only its signal at b = 0 is left of the tissue."""
    tissue, constants = random_tissue(seed), Constants(water_diffusivity=1.3e-3)
    water = replace(tissue, water=np.ones_like(tissue.wm), csf=np.zeros_like(tissue.wm))
    signal = diffusion_signal(water, TABLE, constants)
    start = tissue.s0 * (tissue.wm + constants.gm_s0 * tissue.gm)
    expected = start[:, None] * np.exp(-1.3e-3 * TABLE.b_values)
    np.testing.assert_allclose(signal, expected, rtol=5e-6)


def test_long_scans_are_computed_in_parts_that_fit_together() -> None:
    tissue = random_tissue(0, voxels=40_000)
    whole = diffusion_signal(tissue, TABLE)
    some = slice(16_300, 16_500)
    np.testing.assert_allclose(whole[some], diffusion_signal(tissue[some], TABLE), rtol=1e-6)


@pytest.mark.parametrize("level", [0.0, 0.5, 2.0, 10.0])
def test_rician_noise_has_its_moments(level: float) -> None:
    """<M^2> = S^2 + 2 sigma^2 and <M^4> = S^4 + 8 sigma^2 S^2 + 8 sigma^4."""
    sigma, n = 1.5, 400_000
    noisy = add_rician_noise(np.full(n, level, np.float32), sigma, np.random.default_rng(3))
    second, fourth = np.mean(noisy.astype(float) ** 2), np.mean(noisy.astype(float) ** 4)
    expected = level**2 + 2 * sigma**2
    expected4 = level**4 + 8 * sigma**2 * level**2 + 8 * sigma**4
    error = np.sqrt((expected4 - expected**2) / n)  # standard error of the second moment
    assert abs(second - expected) < 4 * error
    assert fourth == pytest.approx(expected4, rel=0.02)
    assert noisy.min() >= 0


def test_no_noise_is_no_change() -> None:
    signal = np.linspace(0, 3, 50, dtype=np.float32)
    np.testing.assert_array_equal(
        add_rician_noise(signal, 0.0, np.random.default_rng(0)), np.abs(signal)
    )
