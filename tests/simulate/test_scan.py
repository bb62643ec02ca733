from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from tripq.simulate import (
    Anatomy,
    GradientTable,
    Grid,
    Heterogeneity,
    ReadMap,
    SimulationError,
    Tissue,
    diffusion_signal,
    random_rotation,
    random_settings,
    simulate_scan,
)

UNIFORM = Heterogeneity(stick_fraction=0, axial_diffusivity=0, gm_diffusivity=0, gain_sd=0)


@dataclass(frozen=True, eq=False)
class Swelling:
    """Water in the place of half of the tissue."""

    coverage: np.ndarray

    def change(self, tissue: Tissue, read: ReadMap) -> Tissue:
        return replace(tissue, water=np.maximum(tissue.water, 0.5 * read(self.coverage)))


@dataclass(frozen=True, eq=False)
class Brightness:
    """A gain of the signal, which is larger where there is water."""

    coverage: np.ndarray

    def change(self, tissue: Tissue, read: ReadMap) -> Tissue:
        return replace(tissue, s0=1 + (0.1 + tissue.water) * read(self.coverage))


def ball(anatomy: Anatomy, radius: float = 30.0) -> np.ndarray:
    """Coverage by a ball around the centre of the brain, in the anatomy."""
    distance = np.linalg.norm(anatomy.grid.points() - anatomy.centre, axis=1)
    return (distance < radius).reshape(anatomy.mask.shape).astype(np.float32)


def test_a_scan_has_the_table_and_the_mask_of_the_head(
    anatomy: Anatomy, table: GradientTable
) -> None:
    dwi = simulate_scan(anatomy, table, seed=3).dwi
    assert dwi.signal.shape == (dwi.mask.sum(), 33)
    assert dwi.signal.dtype == np.float32
    assert (dwi.signal[:, 0] == 1).all()
    np.testing.assert_allclose(dwi.q[1:], table.directions[1:], atol=1e-12)
    assert dwi.notes == ("simulated",)
    assert not any(face.any() for face in (dwi.mask[0], dwi.mask[:, 0], dwi.mask[:, :, -1]))


def test_the_signal_is_that_of_the_tissue_that_is_returned(
    anatomy: Anatomy, table: GradientTable
) -> None:
    """Whatever the receiver's gain, which b0 has too; modifiers included."""
    scan = simulate_scan(anatomy, table, 3, [Swelling(ball(anatomy))], snr=np.inf)
    signal = diffusion_signal(scan.tissue, table)
    np.testing.assert_allclose(scan.dwi.signal, signal / signal[:, :1], rtol=2e-6)
    assert (scan.tissue.water > 0.4).any()


def test_true_fibres_turn_with_the_head(block: Anatomy) -> None:
    rotation = random_rotation(np.random.default_rng(2))
    table = GradientTable.from_shells([1000.0], [30])
    scan = simulate_scan(
        block, table, 4, snr=np.inf, rotation=rotation, deformation=0.0, heterogeneity=UNIFORM
    )
    white = scan.tissue.wm > 0.99
    expected = np.array([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8]]) @ rotation.T
    there = scan.tissue.directions[white]
    np.testing.assert_allclose(there, np.broadcast_to(expected, there.shape), atol=1e-6)
    np.testing.assert_allclose(scan.tissue.weights[white], np.full((white.sum(), 2), [0.5, 0.3]))
    # and the scan shows them: the axes of its diffusion tensor, as the two cross at right angles
    x, y, z = scan.dwi.q[1:].T
    design = np.stack([x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z], axis=1)
    a, b, c, d, e, f = np.linalg.lstsq(design, -np.log(scan.dwi.signal[white][0, 1:]), rcond=None)[
        0
    ]
    _, axes = np.linalg.eigh([[a, d, e], [d, b, f], [e, f, c]])  # the weakest first
    measured = np.abs(np.sum(axes[:, :0:-1] * expected.T, axis=0))
    assert (measured > np.cos(np.radians(3.0))).all()


def test_other_modifiers_leave_the_head_alone(anatomy: Anatomy, table: GradientTable) -> None:
    covered = ball(anatomy)
    well = simulate_scan(anatomy, table, 5)
    ill = simulate_scan(anatomy, table, 5, [Swelling(covered)])
    assert well.coverages == ()
    (coverage,) = ill.coverages
    assert coverage.shape == ill.dwi.b0.shape
    np.testing.assert_array_equal(well.dwi.mask, ill.dwi.mask)
    free = coverage == 0
    assert 0.5 < free.mean() < 0.99
    np.testing.assert_array_equal(well.dwi.signal[free], ill.dwi.signal[free])
    assert (np.abs(well.dwi.signal - ill.dwi.signal).max(axis=1)[coverage > 0.5] > 1e-4).all()


def test_modifiers_change_what_those_before_them_have_left(block: Anatomy) -> None:
    table = GradientTable.from_shells([1000.0], [6])
    swelling, brightness = Swelling(ball(block, 5.0)), Brightness(np.ones(block.mask.shape))
    options = {"deformation": 0.0, "grid": block.grid}
    scan = simulate_scan(block, table, 0, [swelling, brightness], **options)
    inside = block.mask & (swelling.coverage > 0)
    assert scan.dwi.volume(scan.tissue.s0)[inside] == pytest.approx(1.6)
    assert scan.dwi.volume(scan.tissue.s0)[~inside] == pytest.approx(1.1)
    np.testing.assert_array_equal(scan.dwi.volume(scan.coverages[0]), swelling.coverage)
    other = simulate_scan(block, table, 0, [brightness, swelling], **options)
    assert other.tissue.s0 == pytest.approx(1.1)


def test_a_map_on_another_grid_is_refused(block: Anatomy, table: GradientTable) -> None:
    small = Swelling(np.zeros((3, 3, 3), np.float32))
    with pytest.raises(SimulationError, match=r"map of shape \(3, 3, 3\), the anatomy \(9, 9, 9\)"):
        simulate_scan(block, table, 0, [small])


def test_b0_volumes_are_averaged_and_b_values_kept(anatomy: Anatomy) -> None:
    table = GradientTable.from_shells([700.0, 2800.0], [6, 9], n_b0=4)
    dwi = simulate_scan(anatomy, table, seed=0).dwi
    assert dwi.b_values.tolist() == [0.0] + [700.0] * 6 + [2800.0] * 9
    np.testing.assert_allclose(np.linalg.norm(dwi.q, axis=1) ** 2 * 1000, dwi.b_values)


def test_a_seed_gives_the_same_scan(anatomy: Anatomy, table: GradientTable) -> None:
    first, again, other = (simulate_scan(anatomy, table, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.dwi.signal, again.dwi.signal)
    np.testing.assert_array_equal(first.tissue.directions, again.tissue.directions)
    assert first.dwi.mask.shape != other.dwi.mask.shape or (first.dwi.mask != other.dwi.mask).any()


def test_turning_head_table_and_grid_together_changes_nothing(block: Anatomy) -> None:
    """A turned head on a turned grid with a turned table is the head as it was."""
    table = GradientTable.from_shells([1000.0], [12])
    rotation = random_rotation(np.random.default_rng(2))
    turned = np.eye(4)
    turned[:3, :3] = rotation
    turned[:3, 3] = block.centre - rotation @ block.centre
    grid = Grid(block.grid.shape, turned @ block.affine)
    swelling = [Swelling(ball(block, 5.0))]
    straight = simulate_scan(block, table, 4, swelling, snr=np.inf, grid=block.grid)
    moved = simulate_scan(
        block, table.rotated(rotation), 4, swelling, snr=np.inf, rotation=rotation, grid=grid
    )
    np.testing.assert_array_equal(moved.dwi.mask, straight.dwi.mask)
    np.testing.assert_allclose(moved.dwi.signal, straight.dwi.signal, rtol=1e-4)
    np.testing.assert_allclose(moved.coverages, straight.coverages, atol=1e-4)
    turned_fibres = straight.tissue.directions @ rotation.T
    np.testing.assert_allclose(moved.tissue.directions, turned_fibres, atol=1e-4)
    still = simulate_scan(block, table, 4, swelling, snr=np.inf, rotation=rotation, grid=grid)
    assert not np.allclose(still.dwi.signal, straight.dwi.signal, rtol=1e-2)


def test_flipped_heads_are_mirror_images(anatomy: Anatomy) -> None:
    """Mirroring the table as well as the head gives the mirrored scan."""
    table = GradientTable.from_shells([1000.0], [12])
    mirrored = table.rotated(np.diag([-1.0, 1.0, 1.0]))
    options = {"snr": np.inf, "deformation": 0.0, "grid": anatomy.grid}
    straight = simulate_scan(anatomy, table, 1, **options)
    flipped = simulate_scan(anatomy, mirrored, 1, flip=True, **options)
    np.testing.assert_array_equal(flipped.dwi.mask[::-1], straight.dwi.mask)
    there = flipped.dwi.volume(flipped.dwi.signal)[::-1][straight.dwi.mask]
    # where a voxel lies between two of the anatomy, either is nearest to it
    differs = np.abs(there - straight.dwi.signal).max(axis=1) > 1e-3
    assert differs.mean() < 1e-3


@pytest.mark.parametrize("sizes", [(2.0, 2.0, 2.0), (3.0, 3.0, 6.0)])
def test_scans_on_oblique_grids(block: Anatomy, sizes: tuple[float, float, float]) -> None:
    """Uniform tissue looks alike on every grid."""
    affine = np.eye(4)
    affine[:3, :3] = random_rotation(np.random.default_rng(8)) @ np.diag(sizes)
    grid = Grid((4, 4, 3), affine).covering(block.grid.points(), margin=0.0)
    table = GradientTable.from_shells([1000.0], [12])
    scan = simulate_scan(
        block, table, 0, snr=np.inf, deformation=0.0, grid=grid, heterogeneity=UNIFORM
    )
    np.testing.assert_allclose(scan.dwi.voxel_size, sizes)
    volume = scan.dwi.mask.sum() * grid.voxel_volume
    assert volume == pytest.approx(block.mask.sum() * block.grid.voxel_volume, rel=0.15)
    white = scan.dwi.voxel_centres()[:, 2] < 2
    spread = np.ptp(scan.dwi.signal[white], axis=0)
    np.testing.assert_allclose(spread, 0, atol=1e-5)


def test_a_grid_elsewhere_is_refused(block: Anatomy, table: GradientTable) -> None:
    away = block.affine.copy()
    away[:3, 3] = 1000.0
    with pytest.raises(SimulationError, match="the head is outside"):
        simulate_scan(block, table, 0, grid=Grid((4, 4, 4), away))
    with pytest.raises(SimulationError, match=r"snr=0\.0"):
        simulate_scan(block, table, 0, snr=0.0)


def test_noise_is_as_strong_as_stated(block: Anatomy) -> None:
    # with so many b0 volumes their mean is as good as without noise
    table = GradientTable(np.repeat([0.0, 1000.0], [60, 1]), np.eye(3)[[0] * 61])
    quiet, noisy = (
        simulate_scan(block, table, 0, snr=snr, deformation=0.0, heterogeneity=UNIFORM)
        for snr in (np.inf, 10.0)
    )
    white = quiet.dwi.b0 < 1001
    difference = noisy.dwi.signal[:, 1] * noisy.dwi.b0 - quiet.dwi.signal[:, 1] * quiet.dwi.b0
    assert difference[white].std() == pytest.approx(1000 / 10, rel=0.12)


def test_the_intensity_of_tissue_varies_without_its_diffusion(
    anatomy: Anatomy, table: GradientTable
) -> None:
    plain, varied = (
        simulate_scan(
            anatomy, table, 3, snr=np.inf, heterogeneity=replace(UNIFORM, tissue_s0=variation)
        )
        for variation in (0.0, 0.2)
    )
    fluid = plain.tissue.csf
    change = np.log(varied.dwi.b0 / plain.dwi.b0)
    assert change[fluid < 0.01].std() == pytest.approx(0.2, abs=0.04)
    assert change[fluid > 0.7].std() < 0.05
    solid = fluid < 1e-3
    np.testing.assert_allclose(varied.dwi.signal[solid], plain.dwi.signal[solid], atol=5e-3)


def test_settings_vary_and_can_be_drawn_again() -> None:
    few, more = (list(random_settings(n, seed=7)) for n in (3, 20))
    for one, same in zip(few, more, strict=False):
        assert (one.seed, one.snr, one.flip) == (same.seed, same.snr, same.flip)
        np.testing.assert_array_equal(one.table.directions, same.table.directions)
        np.testing.assert_array_equal(one.rotation, same.rotation)
    assert len({settings.seed for settings in more}) == 20
    assert {settings.flip for settings in more} == {True, False}
    assert all(15 <= settings.snr <= 25 for settings in more)
    fixed = random_settings(3, seed=7, vary_table=False, max_rotation=0.0)
    assert len({settings.table.directions.tobytes() for settings in fixed}) == 1
