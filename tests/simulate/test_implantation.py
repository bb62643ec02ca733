"""Laws of tissue that is replaced in measured scans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tripq.scans import DWI, DWIError
from tripq.scans.noise import noise_level
from tripq.scans.tensor import tensor_maps
from tripq.simulate import (
    Constants,
    GradientTable,
    SimulationError,
    Tissue,
    diffusion_signal,
    implant,
    random_rotation,
)

SIGMA, S0 = 50.0, 1000.0
TWO_SHELLS = GradientTable.from_shells([1000.0, 2000.0], [30, 60])


def white_matter(
    table: GradientTable,
    *,
    sigma: float = 0.0,
    seed: int = 0,
    shape: tuple[int, ...] = (12, 12, 12),
) -> DWI:
    """Fibres of any direction, on an oblique grid of anisotropic voxels."""
    rng = np.random.default_rng(seed)
    n = int(np.prod(shape))
    directions = rng.standard_normal((n, 1, 3))
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    one = np.ones(n, np.float32)
    tissue = Tissue(
        wm=one,
        gm=0 * one,
        csf=0 * one,
        directions=directions.astype(np.float32),
        weights=0.7 * one[:, None],
        stick_fraction=0.6 * one,
        axial_diffusivity=1.7e-3 * one,
        gm_diffusivity=0.8e-3 * one,
        water=0 * one,
        s0=one,
    )
    clean = S0 * diffusion_signal(tissue, table)
    noise = rng.standard_normal((2, *clean.shape))
    intensity = np.hypot(clean + sigma * noise[0], sigma * noise[1])
    b0 = intensity[:, table.b0].mean(axis=1)
    affine = np.eye(4)
    affine[:3, :3] = random_rotation(rng) * [2.0, 2.0, 3.0]
    weighted = ~table.b0
    q = np.sqrt(table.b_values[weighted] / 1000)[:, None] * table.directions[weighted]
    return DWI(
        signal=np.concatenate([one[:, None], intensity[:, weighted] / b0[:, None]], 1).astype("f4"),
        b_values=np.concatenate([[0], table.b_values[weighted]]),
        q=np.concatenate([np.zeros((1, 3)), q]),
        mask=np.ones(shape, bool),
        affine=affine,
        b0=b0.astype(np.float32),
    )


@pytest.fixture(scope="module")
def clean() -> DWI:
    return white_matter(TWO_SHELLS)


@pytest.fixture(scope="module")
def noisy() -> DWI:
    return white_matter(TWO_SHELLS, sigma=SIGMA)


def test_without_coverage_the_scan_is_bit_for_bit_the_same(noisy: DWI) -> None:
    coverage = np.zeros(len(noisy.b0), np.float32)
    coverage[::2] = 0.7
    changed = implant(noisy, coverage, noise=SIGMA)
    for name in ("signal", "b0"):
        assert_array_equal(getattr(changed, name)[1::2], getattr(noisy, name)[1::2])
        assert not np.array_equal(getattr(changed, name), getattr(noisy, name))
    for without in (implant(noisy, 0.0), implant(noisy, coverage, 0.0)):
        assert_array_equal(without.signal, noisy.signal)
        assert_array_equal(without.b0, noisy.b0)


def test_whole_coverage_at_whole_severity_is_water(clean: DWI) -> None:
    changed = implant(clean, 1.0, diffusivity=1.5e-3, b0_rise=0.4, noise=0.0)
    decay = np.exp(-1.5e-3 * clean.b_values)
    assert_allclose(changed.signal, np.tile(decay, (len(clean.b0), 1)), rtol=1e-5)
    assert_allclose(changed.b0, 1.4 * clean.b0, rtol=1e-6)


def test_the_model_is_that_of_simulated_tissue() -> None:
    """Water implanted into a simulated scan without noise is water simulated in its tissue."""
    none, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    fibre = np.eye(3, dtype=np.float32)[None, :1], np.full((1, 1), 0.7, np.float32)
    constants = 0.6 * one, 1.7e-3 * one, 0.8e-3 * one
    tissue = Tissue(one, none, none, *fibre, *constants, water=none, s0=one)
    wet = replace(tissue, water=0.3 * one, s0=1.15 * one)
    expected = diffusion_signal(wet, TWO_SHELLS)

    healthy = diffusion_signal(tissue, TWO_SHELLS)
    dwi = DWI(
        healthy,
        TWO_SHELLS.b_values,
        np.sqrt(TWO_SHELLS.b_values / 1000)[:, None] * TWO_SHELLS.directions,
        np.ones((1, 1, 1), bool),
        np.eye(4),
        one,
    )
    changed = implant(
        dwi, 0.6, 0.5, diffusivity=Constants().water_diffusivity, b0_rise=0.5, noise=0.0
    )
    assert_allclose(changed.signal * changed.b0[:, None], expected, rtol=1e-5)


def test_b0_rises_by_the_factor_in_each_voxel(noisy: DWI) -> None:
    rng = np.random.default_rng(1)
    coverage, severity, rise = rng.random((3, len(noisy.b0))).astype(np.float32)
    changed = implant(noisy, coverage, severity, b0_rise=rise)
    assert_allclose(changed.b0, noisy.b0 * (1 + coverage * severity * rise), rtol=1e-5)
    assert_array_equal(changed.signal[:, 0], 1)


@pytest.mark.parametrize("severity", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("shells", [{1000: 32}, {1000: 64}, {1000: 30, 2000: 60}])
def test_the_noise_keeps_its_level(severity: float, shells: dict[int, int]) -> None:
    """The level is estimated from the scan alone; the truth is that of the simulation."""
    table = GradientTable.from_shells(list(shells), list(shells.values()))
    dwi, truth = white_matter(table, sigma=SIGMA), white_matter(table)
    changed = implant(dwi, 1.0, severity, seed=1)
    expected = implant(truth, 1.0, severity, noise=0.0)
    error = changed.signal * changed.b0[:, None] - expected.signal * expected.b0[:, None]
    at_b1000 = np.isclose(dwi.b_values, 1000)  # far above the floor of a magnitude
    assert error[:, at_b1000].std() == pytest.approx(SIGMA, rel=0.04)
    before, after = (np.median(noise_level(s.with_shells([1000]))) for s in (dwi, changed))
    assert after == pytest.approx(before, rel=0.04)


def test_the_floor_of_a_magnitude_is_kept() -> None:
    """The mean square of a signal that is all noise is that of the scan."""
    dwi = white_matter(GradientTable.from_shells([9000.0], [40]), sigma=SIGMA)
    changed = implant(dwi, 1.0, 0.9, noise=SIGMA, b0_rise=0.0)
    before, after = (scan.signal[:, 1:] * scan.b0[:, None] for scan in (dwi, changed))
    alone = 2 * SIGMA**2
    assert (after**2).mean() == pytest.approx(alone, rel=0.1)
    assert (before**2).mean() > 1.5 * alone  # fibres across the gradient


@pytest.mark.parametrize(
    ("b_values", "counts", "tolerance"),
    [([1000.0], [64], 0.03), ([1000.0, 2000.0], [30, 60], 0.04), ([1000.0], [12], 0.2)],
)
def test_the_noise_level_is_found(
    b_values: list[float], counts: list[int], tolerance: float
) -> None:
    """With a dozen directions the fit is that of a tensor, and crossing fibres count as noise."""
    dwi = white_matter(GradientTable.from_shells(b_values, counts), sigma=SIGMA)
    assert_allclose(np.median(noise_level(dwi)), SIGMA, rtol=tolerance)
    flipped = replace(dwi, q=-dwi.q)
    assert_allclose(noise_level(flipped), noise_level(dwi), rtol=1e-4)


def test_fewer_directions_than_a_fit_needs() -> None:
    dwi = white_matter(GradientTable.from_shells([1000.0], [6]))
    with pytest.raises(DWIError, match="7 or more directions"):
        implant(dwi, 0.5)
    assert (implant(dwi, 0.5, noise=1.0).b0 > dwi.b0).all()


def test_anisotropy_falls_and_diffusivity_rises_with_severity(noisy: DWI) -> None:
    scans = [implant(noisy, 1.0, severity) for severity in (0.0, 0.2, 0.4, 0.6, 0.8)]
    fa, md = np.median([tensor_maps(scan) for scan in scans], axis=2).T
    assert (np.diff(fa) < -0.02).all()
    assert (np.diff(md) > 0.05e-3).all()


def test_the_order_of_the_table_does_not_matter(clean: DWI) -> None:
    order = np.concatenate([[0], 1 + np.random.default_rng(0).permutation(len(clean.q) - 1)])

    def reordered(dwi: DWI) -> DWI:
        return replace(
            dwi, signal=dwi.signal[:, order], b_values=dwi.b_values[order], q=dwi.q[order]
        )

    assert_allclose(noise_level(reordered(clean)), noise_level(clean), rtol=1e-3)
    changed = implant(reordered(clean), 0.5, noise=0.0)
    assert_array_equal(changed.signal, reordered(implant(clean, 0.5, noise=0.0)).signal)


def test_a_table_turned_with_its_head_gives_the_same_change(noisy: DWI) -> None:
    rotation = random_rotation(np.random.default_rng(2))
    turn = np.eye(4)
    turn[:3, :3] = rotation
    turned = replace(noisy, q=noisy.q @ rotation.T, affine=turn @ noisy.affine)
    assert_allclose(noise_level(turned), noise_level(noisy), rtol=1e-4)
    assert_allclose(
        implant(turned, 0.5, seed=3).signal, implant(noisy, 0.5, seed=3).signal, atol=1e-5
    )


def test_seeds_and_inputs(noisy: DWI) -> None:
    coverage = np.linspace(0, 1, len(noisy.b0), dtype=np.float32)
    arrays = (noisy.signal, noisy.b0, coverage)
    before = [array.copy() for array in arrays]
    first, again, other = (implant(noisy, coverage, 0.5, seed=seed) for seed in (3, 3, 4))
    for array, old in zip(arrays, before, strict=True):
        assert_array_equal(array, old)
    assert_array_equal(first.signal, again.signal)
    assert_array_equal(first.b0, other.b0)
    assert not np.array_equal(first.signal, other.signal)
    assert first.notes[-1].startswith("Implanted")
    assert first.header is noisy.header


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"coverage": 1.2}, "coverage must be from 0 to 1"),
        ({"coverage": np.nan}, "coverage must be from 0 to 1, and finite"),
        ({"coverage": np.zeros((3, 3))}, "coverage has shape"),
        ({"coverage": 1.0, "severity": -0.1}, "severity must be from 0 to 1"),
        ({"coverage": 1.0, "b0_rise": 1.5}, "b0_rise must be from 0 to 1"),
        ({"coverage": 1.0, "diffusivity": -1e-3}, "diffusivity must be 0 or more"),
        ({"coverage": 1.0, "noise": np.inf}, "noise must be 0 or more, and finite"),
    ],
)
def test_arguments_out_of_range(noisy: DWI, arguments: dict, says: str) -> None:
    with pytest.raises(SimulationError, match=says):
        implant(noisy, **arguments)
