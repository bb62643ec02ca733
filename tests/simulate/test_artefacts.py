"""Every artefact is a law of its own; together they leave a scan without artefacts as it was."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from tripq.simulate import (
    Anatomy,
    Artefacts,
    GradientTable,
    Grid,
    Heterogeneity,
    ReadMap,
    SimulationError,
    Tissue,
    add_chi_noise,
    add_rician_noise,
    random_rotation,
    simulate_scan,
)
from tripq.simulate.artefacts import (
    Cavities,
    add_ghost,
    along_axis,
    blur,
    cavities_below,
    cavity_field,
    compression,
    displacement_field,
    eddy_currents,
    fold,
    inexact_mask,
    lost_volumes,
    motion,
    move,
    sharpen,
    slice_gains,
    spread_diffusivities,
    truncate,
)
from tripq.simulate.artefacts.effects import FOLD_SCALE
from tripq.simulate.pose import Pose

UNIFORM = Heterogeneity(stick_fraction=0, axial_diffusivity=0, gm_diffusivity=0, gain_sd=0)
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = random_rotation(np.random.default_rng(1)) @ np.diag([2.0, 2.5, 3.0])
GRID = Grid((40, 36, 12), OBLIQUE)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def blob(grid: Grid, radius: float = 12.0) -> np.ndarray:
    """A smooth image, which is 0 near the edges of the grid."""
    points = grid.points()
    distance = np.linalg.norm(points - points.mean(axis=0), axis=1) / radius
    return np.exp(-(distance**2)).reshape(grid.shape).astype(np.float32)


def centre_of(volume: np.ndarray, grid: Grid) -> np.ndarray:
    """Centre of mass in mm."""
    return volume.ravel() @ grid.points() / volume.sum()


def upright(anatomy: Anatomy) -> Pose:
    """The head of the anatomy as it is."""
    still = np.zeros((*anatomy.mask.shape, 3), np.float32)
    return Pose(anatomy.grid, anatomy.centre, np.eye(3), still)


@dataclass(frozen=True, eq=False)
class Mark:
    """Bright tissue."""

    coverage: np.ndarray

    def change(self, tissue: Tissue, read: ReadMap) -> Tissue:
        return replace(tissue, s0=1 + 9 * read(self.coverage))


# -- tissue --------------------------------------------------------------------------------------


def test_sharper_maps_keep_their_sum_and_blurred_ones_their_volume() -> None:
    wm = np.random.default_rng(0).random((6, 6, 6), np.float32)
    maps = [wm, 0.8 * (1 - wm)]
    crisp = sharpen(maps, 2.0)
    np.testing.assert_allclose(sum(crisp), sum(maps), rtol=1e-5)
    larger = maps[0] > maps[1]
    assert (crisp[0] >= maps[0] - 1e-6)[larger].all()
    assert (crisp[0] <= maps[0] + 1e-6)[~larger].all()
    (smooth,) = blur([blob(GRID, 4.0)], GRID, 3.0)
    assert smooth.sum() == pytest.approx(blob(GRID, 4.0).sum(), rel=1e-3)
    assert smooth.max() < 0.7


def test_folds_keep_the_sum_and_what_is_certain() -> None:
    rng = np.random.default_rng(0)
    wm = rng.random((20, 20, 20), np.float32)
    wm[:5], wm[5:10] = 1.0, 0.0
    gm = 0.7 * (1 - wm)
    csf = 0.2 * (1 - wm)
    grid = Grid(wm.shape, np.diag([2.0, 2.0, 2.0, 1.0]))
    folded = fold([wm, gm, csf], grid, 2.0, rng)
    np.testing.assert_allclose(sum(folded), wm + gm + csf, rtol=1e-5)
    np.testing.assert_allclose(folded[0][:10], wm[:10], rtol=1e-6)
    assert all(part.min() >= 0 and part.max() <= 1 for part in folded)
    share = folded[2][5:10] / 0.9  # of fluid, beside grey matter only: 0.22 on average
    assert share.min() < 0.05
    assert share.max() > 0.6
    assert np.median(share) == pytest.approx(0.22, abs=0.05)


def test_folds_are_a_few_mm_wide_on_every_grid() -> None:
    for edges in ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (1.5, 1.5, 3.0)):
        shape = tuple(int(60 / edge) for edge in edges)
        grid = Grid(shape, np.diag([*edges, 1.0]))
        halves = [np.full(shape, 0.5, np.float32)] * 2
        one = fold(halves, grid, 1.0, np.random.default_rng(0))[0]
        logit = np.log(one / (1 - one))
        for axis, edge in enumerate(edges):
            along = np.moveaxis(logit, axis, 0)
            for n in (round(3 / edge), round(12 / edge)):
                correlation = np.corrcoef(along[n:].ravel(), along[:-n].ravel())[0, 1]
                expected = np.exp(-((n * edge) ** 2) / (4 * FOLD_SCALE**2))  # of `random_field`
                assert correlation == pytest.approx(expected, abs=0.1)


def test_spread_diffusivities_add_kurtosis_and_leave_the_mean() -> None:
    b = np.array([0.0, 0.01, 0.02], np.float64)  # in units of 1 / D, so small that terms separate
    theta = 0.2
    log = np.log(spread_diffusivities(np.exp(-b)[None], np.array([[theta]])))[0]
    assert -log[1] / b[1] == pytest.approx(1, abs=0.002)
    curvature = (log[2] - 2 * log[1] + log[0]) / b[1] ** 2
    assert curvature == pytest.approx(3 * theta / 3, rel=0.01)  # K D^2 / 3, with K = 3 theta
    signal = np.float32([[1.0, 0.4]])
    np.testing.assert_allclose(spread_diffusivities(signal, np.float32([[0]])), signal, rtol=1e-3)


# -- distortion ----------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("sd", [1.0, 50.0])
def test_distortion_folds_nothing_and_keeps_the_intensity(axis: int, sd: float) -> None:
    field = displacement_field(GRID, sd, 20.0, axis, rng())
    jacobian = compression(field, GRID, axis)
    assert 0.3 < jacobian.min() < 1 < jacobian.max() < 1.7
    assert np.abs(field).max() <= 3.001 * sd
    along = GRID.affine[:3, axis] / GRID.voxel_size[axis]
    points = GRID.points() + field.reshape(-1, 1) * along
    centre = GRID.points().mean(axis=0)
    seen = np.exp(-(np.linalg.norm(points - centre, axis=1) ** 2) / 8.0**2).reshape(GRID.shape)
    assert (seen * jacobian).sum() == pytest.approx(blob(GRID, 8.0).sum(), rel=0.02)
    if sd == 50.0:
        assert abs(seen.sum() / blob(GRID, 8.0).sum() - 1) > 0.03


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("steepness", [0.1, 0.6])
def test_air_piles_signal_up_and_keeps_the_intensity(axis: int, steepness: float) -> None:
    """The displacement of the signal is as steep as asked, so its density is known."""
    grid = Grid((81, 81, 5), np.eye(4))  # fine enough for the steep places
    centre = grid.points().mean(axis=0)
    cavities = Cavities(centre[None], np.array([20.0]))
    field = cavity_field(grid, cavities, steepness, axis, rng())
    jacobian = compression(field, grid, axis)
    assert jacobian.min() == pytest.approx(1 / (1 + steepness), rel=0.05)
    assert jacobian.max() == pytest.approx(1 / (1 - steepness), rel=0.05)
    fields = [cavity_field(grid, cavities, 0.01, axis, rng(seed)) for seed in range(8)]
    assert {float(np.sign(field.flat[0])) for field in fields} == {-1.0, 1.0}  # either polarity
    along = grid.affine[:3, axis] / grid.voxel_size[axis]
    points = grid.points() + field.reshape(-1, 1) * along
    seen = np.exp(-(np.linalg.norm(points - centre, axis=1) ** 2) / 8.0**2).reshape(grid.shape)
    assert (seen * jacobian).sum() == pytest.approx(blob(grid, 8.0).sum(), rel=0.02)


def test_the_field_of_a_cavity_is_that_of_a_sphere_far_away() -> None:
    """Opposite signs along the main field and across it, twice as strong along it."""
    grid = Grid((41, 41, 41), np.diag([4.0, 4.0, 4.0, 1.0]))
    cavities = Cavities(np.full((1, 3), 80.0), np.array([4.0]))
    field = cavity_field(grid, cavities, 0.01, 1, rng())
    along, across = field[20, 20, 40], field[40, 20, 20]
    assert along == pytest.approx(-2 * across, rel=0.02)
    assert field[20, 20, 35] / along == pytest.approx((20 / 15) ** 3, rel=0.02)


def test_far_from_the_cavities_there_is_no_distortion() -> None:
    """Whatever else of the head is on the grid."""
    cavities = Cavities(np.array([[0.0, 0.0, -100.0], [20.0, 0.0, -95.0]]), np.array([9.0, 20.0]))
    slab = Grid((40, 40, 6), np.diag([5.0, 5.0, 5.0, 1.0]))
    assert np.abs(cavity_field(slab, cavities, 0.8, 1, rng())).max() < 0.5  # mm


def test_the_field_is_along_the_axis_of_the_scanner() -> None:
    """A tilted head takes its cavities along, but not the direction of the field."""
    grid = Grid((41, 41, 41), np.diag([4.0, 4.0, 4.0, 1.0]))
    tilted = Grid(grid.shape, np.diag([4.0, 4.0, 4.0, 1.0])[[0, 2, 1, 3]] * [1, 1, -1, 1])
    cavities = Cavities(np.full((1, 3), 80.0), np.array([4.0]))
    turned = Cavities(np.array([[80.0, -80.0, 80.0]]), np.array([4.0]))
    straight = cavity_field(grid, cavities, 0.01, 0, rng())
    lying = cavity_field(tilted, turned, 0.01, 0, rng())
    assert straight[20, 20, 40] == pytest.approx(-2 * straight[20, 40, 20], rel=0.02)
    assert lying[20, 40, 20] == pytest.approx(-2 * lying[20, 20, 40], rel=0.02)


def test_two_distortions_follow_each_other() -> None:
    ramp = np.broadcast_to(np.arange(GRID.shape[0], dtype=np.float32)[:, None, None], GRID.shape)
    twice = along_axis(np.full(GRID.shape, GRID.voxel_size[0], np.float32), ramp, GRID, 0)
    np.testing.assert_allclose(twice[:-1], GRID.voxel_size[0] + ramp[1:], rtol=1e-6)
    wave = np.sin(ramp / 5)  # x shows x + 0.1 x of an image that shows y + wave(y) at y
    stretched = along_axis(0.1 * GRID.voxel_size[0] * ramp, wave, GRID, 0)
    voxels = np.arange(30)
    expected = 0.1 * GRID.voxel_size[0] * voxels + np.sin(1.1 * voxels / 5)
    np.testing.assert_allclose(stretched[:30, 0, 0], expected, atol=0.01)


@pytest.mark.parametrize("seed", [0, 1])
def test_cavities_are_below_the_brain(anatomy: Anatomy, seed: int) -> None:
    cavities = cavities_below(anatomy.brain, anatomy.grid, 20, rng(seed))
    voxels = np.rint(anatomy.grid.to_voxels(cavities.centres)).astype(int)
    tall = np.argwhere(anatomy.mask)[:, 2]
    inside = np.all((voxels >= 0) & (voxels < anatomy.mask.shape), axis=1)
    assert not anatomy.mask[tuple(voxels[inside].T)].any()
    assert (voxels[:, 2] < np.median(tall)).all()
    cut = anatomy.within((-40, -40, 0), (40, 40, 30))
    same = cavities_below(cut.brain, cut.grid, 20, rng(seed))
    np.testing.assert_array_equal(same.centres, cavities.centres)


def test_cavities_turn_with_the_head(anatomy: Anatomy) -> None:
    """The place of a distortion is that of the head's cavities, wherever the head is."""
    artefacts = Artefacts(seed=2, air=0.5)
    turned = replace(upright(anatomy), matrix=np.diag([-1.0, -1.0, 1.0]))
    before = artefacts.displacement(anatomy.grid, anatomy, upright(anatomy))
    grid = Grid(anatomy.grid.shape, np.diag([-1.0, -1.0, 1.0, 1.0]) @ anatomy.affine)
    centre = anatomy.centre * [2, 2, 0]
    grid.affine[:3, 3] += centre
    after = artefacts.displacement(grid, anatomy, turned)
    np.testing.assert_allclose(after, before, atol=1e-4)


def test_coverages_move_with_a_distorted_scan(anatomy: Anatomy) -> None:
    """What is marked is where it is seen, and its fibres keep their directions."""
    coverage = (blob(anatomy.grid, 25.0) > 0.5).astype(np.float32)
    table = GradientTable.from_shells([1000.0], [6])
    options = {"snr": np.inf, "deformation": 0.0, "heterogeneity": UNIFORM}
    options["grid"] = Grid(anatomy.grid.shape, anatomy.affine)
    artefacts = Artefacts(seed=1, distortion=6.0, distortion_scale=30.0)
    plain, bent = (
        simulate_scan(anatomy, table, 1, [Mark(coverage)], artefacts=given, **options)
        for given in (None, artefacts)
    )
    before, after = (scan.dwi.volume(scan.coverages[0]) for scan in (plain, bent))
    moved = centre_of(after, anatomy.grid) - centre_of(before, anatomy.grid)
    displacement = artefacts.displacement(anatomy.grid, anatomy, upright(anatomy))
    expected = -np.average(displacement, weights=after)  # a voxel at x shows x + d
    assert abs(expected) > 3.0  # mm along the phase axis
    assert moved[1] == pytest.approx(expected, abs=1.0)
    assert np.abs(moved[[0, 2]]).max() < 1.0
    assert (bent.dwi.mask != plain.dwi.mask).any()
    # the brightness of tissue, whatever the compression
    bright = bent.dwi.b0 / compression(displacement, anatomy.grid, 1)[bent.dwi.mask]
    assert (bright[bent.coverages[0] > 0.9] > 2 * np.median(bright)).mean() > 0.95
    total = [(s.dwi.b0.sum()) for s in (plain, bent)]
    assert total[1] == pytest.approx(total[0], rel=0.03)


# -- images --------------------------------------------------------------------------------------


def test_no_motion_is_the_identity() -> None:
    table = GradientTable.from_shells([1000.0], [6])
    for matrices in (motion(7, GRID, 0, 0, rng()), eddy_currents(table, GRID, 0, 1, rng())):
        np.testing.assert_array_equal(matrices, np.tile(np.eye(4), (7, 1, 1)))
    image = blob(GRID)
    assert move(image, GRID, np.eye(4)) is image


def test_motion_is_as_strong_as_asked_and_relative_to_the_first_volume() -> None:
    matrices = motion(400, GRID, 0.5, 2.0, rng())
    np.testing.assert_array_equal(matrices[0], np.eye(4))
    centre = GRID.points().mean(axis=0)
    shifts = matrices[1:, :3, :3] @ centre + matrices[1:, :3, 3] - centre
    assert shifts.std() == pytest.approx(0.5, rel=0.1)
    cosine = (np.trace(matrices[1:, :3, :3], axis1=1, axis2=2) - 1) / 2
    angles = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    assert np.sqrt((angles**2).mean() / 3) == pytest.approx(2.0, rel=0.1)
    image = blob(GRID)
    moved = move(image, GRID, matrices[5])
    there = np.linalg.inv(matrices[5])[:3] @ [*centre, 1]
    np.testing.assert_allclose(centre_of(moved, GRID), there, atol=0.05)


def test_eddy_currents_are_linear_in_the_gradient_and_along_the_phase_axis() -> None:
    g = np.array([[0.0, 0, 0], [1, 0, 0], [-1, 0, 0], [1, 0, 0]])
    table = GradientTable(np.array([0.0, 1000.0, 1000.0, 4000.0]), g)
    maps = eddy_currents(table, GRID, 0.7, 0, rng()) - np.eye(4)
    np.testing.assert_array_equal(maps[0], 0)
    np.testing.assert_allclose(maps[2], -maps[1], atol=1e-12)
    np.testing.assert_allclose(maps[3], 2 * maps[1], atol=1e-12)
    points = np.c_[GRID.points(), np.ones(len(GRID.points()))]
    shift = points @ maps[1][:3].T
    phase = GRID.affine[:3, 0] / GRID.voxel_size[0]
    np.testing.assert_allclose(shift, (shift @ phase)[:, None] * phase, atol=1e-9)
    assert np.ptp(shift @ phase) > 0.1


def test_lost_volumes_and_slices_are_nearly_dark_and_are_named(block: Anatomy) -> None:
    table = GradientTable.from_shells([1000.0], [20], n_b0=2)
    artefacts = Artefacts(seed=4, lost=0.2)
    lost = artefacts.lost_volumes(table)
    assert lost
    dwi = simulate_scan(block, table, 0, snr=np.inf, artefacts=artefacts).dwi
    levels = np.median(dwi.signal[:, 1:], axis=0)
    found = np.flatnonzero(levels < 0.35 * np.median(levels))
    assert (found + 2).tolist() == lost  # after two b0 volumes
    gains = slice_gains(50, table, 0.1, rng())
    assert (gains[:2] == 1).all()
    assert (gains[2:] < 1).mean() == pytest.approx(0.1, abs=0.03)
    assert gains[gains < 1].max() <= 0.6
    few = GradientTable.from_shells([1000.0], [8])
    assert all(len(lost_volumes(few, 1.0, rng(seed))) == 2 for seed in range(5))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_ghost_is_at_half_the_field_of_view(axis: int) -> None:
    image = np.roll(blob(GRID, 6.0), 5, axis=axis)
    ghosted = add_ghost(image, 0.05, axis)
    half = GRID.shape[axis] // 2
    np.testing.assert_allclose(ghosted - 0.95 * image, 0.05 * np.roll(image, half, axis), atol=1e-6)
    assert ghosted.sum() == pytest.approx(image.sum(), rel=1e-5)


def test_truncation_keeps_the_mean_and_rings_at_an_edge_in_plane() -> None:
    image = np.zeros((64, 48, 4), np.float32)
    image[16:48] = 1.0
    image[..., 3] = 0.5
    ringing = truncate(image, 0.3)
    assert ringing.dtype == np.float32
    np.testing.assert_allclose(ringing.mean((0, 1)), image.mean((0, 1)), rtol=1e-5)
    overshoot = ringing[16:48, 24, 0].max() - 1
    assert 0.07 < overshoot < 0.11  # 9 % of the step, whatever the matrix
    np.testing.assert_allclose(ringing[..., 3], 0.5, atol=1e-6)  # no edge, and none from a slice
    np.testing.assert_allclose(truncate(ringing, 0.3), ringing, atol=1e-6)
    np.testing.assert_allclose(truncate(image, 1.0), image, atol=1e-6)
    field = blob(Grid((64, 48, 4), np.eye(4)), 12.0)
    np.testing.assert_allclose(truncate(field, 0.5), field, atol=1e-2)  # smooth: nothing to lose


# -- noise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("coils", [1, 2, 8])
def test_the_floor_rises_with_the_number_of_coils(coils: int) -> None:
    signal = np.repeat(np.float32([0.0, 3.0]), 100_000)
    power = (add_chi_noise(signal, 0.5, coils, rng()) ** 2).reshape(2, -1).mean(axis=1)
    np.testing.assert_allclose(power, np.array([0.0, 9.0]) + 2 * coils * 0.5**2, rtol=0.02)
    if coils == 1:
        np.testing.assert_array_equal(
            add_chi_noise(signal, 0.5, 1, rng()), add_rician_noise(signal, 0.5, rng())
        )


@pytest.mark.parametrize("kept", [1.0, 0.7])
def test_noise_is_as_strong_as_asked_everywhere(anatomy: Anatomy, kept: float) -> None:
    """Of the mean in white matter that the SNR says, and locally as the level says."""
    artefacts = Artefacts(seed=1, noise_variation=0.5, kept=kept)
    grid = Grid((40, 40, 20), np.diag([4.0, 4.0, 4.0, 1.0]))
    scanned = np.ones(grid.shape, bool)
    white = np.ones(scanned.size, np.float32)
    level = artefacts.noise_level(grid, scanned, white)
    assert level.mean() == pytest.approx(1, rel=1e-3)
    assert np.quantile(level, 0.95) / np.quantile(level, 0.05) > 2
    table = GradientTable(np.repeat([0.0, 1000.0], [1, 9]), np.eye(3)[[0] * 10])
    clean = np.full((scanned.size, 10), 1.0, np.float32)
    recorded = artefacts.record(clean, table, grid, scanned, 0.05 * level, rng())
    inner = np.zeros(grid.shape, bool)
    inner[4:-4, 4:-4] = True  # k-space repeats the image beyond its edges
    low, high = (level[:, 0] < np.quantile(level, q) for q in (0.3, 0.7))
    for region in (inner.ravel() & low, inner.ravel() & ~high):
        spread = recorded[region].std()
        expected = 0.05 * np.sqrt((level[region] ** 2).mean())
        assert spread == pytest.approx(expected, rel=0.06)
    neighbours = recorded.reshape(*grid.shape, 10) - 1
    correlation = np.corrcoef(neighbours[:-1].ravel(), neighbours[1:].ravel())[0, 1]
    assert (correlation > 0.15) == (kept < 1)


# -- mask ----------------------------------------------------------------------------------------


def test_masks_are_as_wide_as_asked() -> None:
    brain = blob(GRID, 12.0) > 0.5
    exact = inexact_mask(brain, GRID, 0.0, 0.0, rng())
    np.testing.assert_array_equal(exact, brain)
    tight, wide = (inexact_mask(brain, GRID, offset, 0.0, rng()) for offset in (-3.0, 3.0))
    assert (tight <= brain).all()
    assert (brain <= wide).all()
    radius = [
        np.cbrt(np.count_nonzero(m) * GRID.voxel_volume * 0.75 / np.pi)
        for m in (tight, brain, wide)
    ]
    np.testing.assert_allclose(np.diff(radius), 3.0, atol=1.0)
    rough = inexact_mask(brain, GRID, 0.0, 1.5, rng())
    assert (rough & ~brain).any()
    assert (brain & ~rough).any()
    with pytest.raises(SimulationError, match="mask_offset=-50 mm leaves no voxel"):
        inexact_mask(brain, GRID, -50.0, 0.0, rng())


def test_a_mask_leaves_the_images_alone(anatomy: Anatomy, table: GradientTable) -> None:
    small = anatomy.within((-60, -80, 0), (60, 60, 40))
    options = {"snr": np.inf, "grid": small.grid}
    plain, wide = (
        simulate_scan(small, table, 3, artefacts=artefacts, **options).dwi
        for artefacts in (None, Artefacts(mask_offset=5.0))
    )
    both = plain.mask & wide.mask
    assert both.sum() == plain.mask.sum() < wide.mask.sum()
    there = wide.volume(wide.signal)[plain.mask]
    np.testing.assert_allclose(there, plain.signal, rtol=1e-6)
    assert np.isfinite(wide.signal).all()


# -- scans ---------------------------------------------------------------------------------------


def test_no_artefacts_change_no_byte(anatomy: Anatomy, table: GradientTable) -> None:
    plain, same = (
        simulate_scan(anatomy, table, 5, artefacts=artefacts)
        for artefacts in (None, Artefacts(seed=123))
    )
    for name in ("signal", "b0", "mask", "affine"):
        assert getattr(plain.dwi, name).tobytes() == getattr(same.dwi, name).tobytes()


EVERYTHING = Artefacts(
    seed=7, phase_axis=0, crispness=1.4, blur=1.0, coherence=1.2, diffusivity_spread=0.1,
    distortion=3.0, eddy=0.5, translation=0.5, rotation=0.5, drift=0.05, slice_dropout=0.02,
    lost=0.1, ghost=0.05, kept=0.8, noise_variation=0.3, coils=4, mask_offset=2.0,
    mask_roughness=1.0, folding=1.0, air=0.6,
)  # fmt: skip


def test_all_artefacts_at_once_on_any_grid_and_table(block: Anatomy) -> None:
    table = GradientTable.from_shells([700.0, 2000.0], [7, 9], n_b0=3)
    affine = np.eye(4)
    affine[:3, :3] = random_rotation(np.random.default_rng(8)) @ np.diag([2.0, 2.5, 4.0])
    grid = Grid((5, 4, 3), affine).covering(block.grid.points(), margin=6.0)
    first, again, other = (
        simulate_scan(block, table, 5, [Mark(np.ones(block.mask.shape))], grid=grid, artefacts=a)
        for a in (EVERYTHING, EVERYTHING, replace(EVERYTHING, seed=8))
    )
    assert np.isfinite(first.dwi.signal).all()
    assert len(first.tissue) == len(first.coverages[0]) == len(first.dwi.b0)
    np.testing.assert_array_equal(first.dwi.signal, again.dwi.signal)
    assert first.dwi.signal.tobytes() != other.dwi.signal.tobytes()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kept": 0.0}, r"kept=0 must be between 0\.1 and 1"),
        ({"coils": 1.5}, "coils=1.5 must be a whole number"),
        ({"ghost": -0.1}, "ghost=-0.1 must be between 0 and 0.5"),
        ({"phase_axis": 2}, "phase_axis=2 must be between 0 and 1"),
        ({"air": 1.0}, r"air=1 must be between 0 and 0\.9"),
        ({"blur": float("nan")}, "blur=nan"),
    ],
)
def test_values_out_of_range_are_named(values: dict[str, float], message: str) -> None:
    with pytest.raises(SimulationError, match=message):
        Artefacts(**values)  # type: ignore[arg-type]
