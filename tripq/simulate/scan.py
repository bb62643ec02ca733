"""Simulated scans: a head in a scanner, its diffusion signal and its tissue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray

from tripq.scans import B_REFERENCE, DWI
from tripq.simulate.anatomy import Anatomy
from tripq.simulate.artefacts import Artefacts, compression
from tripq.simulate.errors import SimulationError
from tripq.simulate.fields import random_field
from tripq.simulate.grid import Grid, interpolate, nearest
from tripq.simulate.modifier import Modifier
from tripq.simulate.pose import Pose, random_pose, random_rotation
from tripq.simulate.signal import Constants, Tissue, diffusion_signal
from tripq.simulate.tables import GradientTable

S0_SCALE = 1000.0
"""Intensity of white matter at b = 0 in a simulated scan."""

MODIFIER_STREAMS = 2
"""Streams of random numbers of a seed reserved for a modifier; the head uses the following ones.

A modifier that draws from these children of ``np.random.SeedSequence(seed)`` is independent of the
head of the same seed. A second modifier needs a seed of its own.
"""


@dataclass(frozen=True)
class Heterogeneity:
    """Variation of tissue: logarithmic standard deviations, within and between heads.

    Chosen so that simulated brains spread in FA and MD as real scans do.

    Parameters
    ----------
    stick_fraction, axial_diffusivity, gm_diffusivity : float
        Of the quantities of that name in `Constants`, within a head.
    between : float
        Of each of them between heads, as a share of that within.
    scales : tuple of float
        Lengths in mm over which they vary; every scale has an equal part in the variance.
    gain_sd, gain_scale : float
        Of the sensitivity of the receiver, and its length in mm. It changes b0 and noise.
    tissue_s0 : float
        Of the signal of white and grey matter at b = 0, within a head (`between` does not apply):
        T2 differs between tracts and nuclei.
    """

    stick_fraction: float = 0.12
    axial_diffusivity: float = 0.06
    gm_diffusivity: float = 0.10
    between: float = 0.4
    scales: tuple[float, ...] = (5.0, 20.0)
    gain_sd: float = 0.3
    gain_scale: float = 50.0
    tissue_s0: float = 0.0


@dataclass(frozen=True, eq=False)
class SimulatedScan:
    """A simulated scan and its ground truth. V voxels are in the order of ``np.argwhere(mask)``.

    Parameters
    ----------
    dwi : DWI
        The scan.
    tissue : Tissue
        Tissue of its voxels, after all modifiers. ``tissue.directions`` (V, K, 3) are the true
        directions of the fibres in world axes, ``tissue.weights`` (V, K) their shares.
    coverages : tuple of (V,) float32 array
        Share of each voxel that each of the modifiers covers.
    seed : int
        Seed of the head.
    """

    dwi: DWI
    tissue: Tissue
    coverages: tuple[NDArray[np.float32], ...]
    seed: int

    def __repr__(self) -> str:
        return f"SimulatedScan(seed={self.seed}, {len(self.coverages)} modifiers, {self.dwi})"


def simulate_scan(
    anatomy: Anatomy,
    table: GradientTable,
    seed: int,
    modifiers: Sequence[Modifier] = (),
    *,
    snr: float = 20.0,
    rotation: NDArray[np.floating] | None = None,
    flip: bool = False,
    deformation: float = 3.0,
    grid: Grid | None = None,
    constants: Constants | None = None,
    heterogeneity: Heterogeneity | None = None,
    artefacts: Artefacts | None = None,
) -> SimulatedScan:
    """Simulate a scan of one head.

    The head is drawn in the anatomy, deformed and rotated, and then sampled on the grid of the
    scanner. Each of these steps has its own stream of random numbers, so the same seed with other
    modifiers, another rotation, table or noise level gives the same head. (The folds of
    `Artefacts.folding` and the cavities of `Artefacts.air` have the seed of the artefacts.)

    Parameters
    ----------
    anatomy : Anatomy
        Common anatomy of all heads.
    table : GradientTable
        Gradient table, in world axes; it does not rotate with the head.
    seed : int
        Determines everything except the modifiers.
    modifiers : sequence of Modifier, optional
        They change the tissue, one after the other.
    snr : float, optional
        Signal-to-noise ratio of normal white matter at b = 0; infinite for no noise. With the
        default the residual of a tensor fit is as large as in a clinical scan of 2.5 mm
        (TractSeg's example).
    rotation : (3, 3) array, optional
        Rotation of the head about the centre of the brain, in world axes.
    flip : bool, optional
        Exchange left and right before that.
    deformation : float, optional
        Root mean square of the deformation along each axis in mm.
    grid : Grid, optional
        Of the scan, possibly oblique and anisotropic; tissue outside is cut off. The default has
        the lattice of the anatomy and contains the whole mask.
    constants : Constants, optional
        Of the signal model.
    heterogeneity : Heterogeneity, optional
        How tissue varies.
    artefacts : Artefacts, optional
        Imperfections of the scan, see `tripq.simulate.artefacts`; by default none.
        `tripq.simulate.Randomisation` draws them.

    Returns
    -------
    SimulatedScan
        With distortion, tissue and coverages are those seen in the distorted scan.

    Raises
    ------
    SimulationError
        If an argument is invalid, no voxel of the mask is on the grid, or a map of a modifier has
        another shape than the anatomy.

    Examples
    --------
    >>> from tripq.simulate import default_anatomy
    >>> table = GradientTable.from_shells([1000.0], [12])
    >>> scan = simulate_scan(default_anatomy(4.0), table, seed=1)
    >>> scan.dwi
    DWI(... voxels of 4 x 4 x 4 mm, 12 directions, shells b=1000 (12))
    >>> scan.tissue.directions.shape == (len(scan.dwi.b0), 2, 3)
    True
    """
    if not snr > 0:
        raise SimulationError(f"snr={snr} must be above 0.")
    constants = constants or Constants()
    heterogeneity = heterogeneity or Heterogeneity()
    children = np.random.SeedSequence(seed).spawn(MODIFIER_STREAMS + 3)[MODIFIER_STREAMS:]
    pose_rng, tissue_rng, noise_rng = (np.random.default_rng(child) for child in children)

    artefacts = artefacts or Artefacts()
    pose = random_pose(
        anatomy.grid,
        anatomy.centre,
        pose_rng,
        rotation=rotation,
        flip=flip,
        deformation=deformation,
    )
    grid = grid or _covering(anatomy, pose, artefacts.reach)
    displacement = artefacts.displacement(grid, anatomy, pose)
    brain, points, voxels = _see(anatomy, pose, grid, displacement, artefacts.phase_axis)
    mask = artefacts.mask(brain, grid)
    scanned = brain | mask  # all that has signal takes part in the images
    points, voxels = points[scanned.ravel()], voxels[scanned.ravel()]

    def read(volume: NDArray[np.float32]) -> NDArray[np.float32]:
        if volume.shape != anatomy.mask.shape:
            raise SimulationError(
                f"a modifier has a map of shape {volume.shape}, the anatomy {anatomy.mask.shape}; "
                "read_coverage reads a file on the anatomy's grid."
            )
        return interpolate(volume, voxels)

    tissue, gain = _fill(
        artefacts.on_anatomy(anatomy),
        points,
        voxels,
        pose,
        constants,
        heterogeneity,
        tissue_rng,
    )
    for modifier in modifiers:
        tissue = modifier.change(tissue, read)
    tissue = artefacts.beyond_brain(tissue, brain[scanned], grid, scanned)
    clean = artefacts.on_signal(diffusion_signal(tissue, table, constants), tissue, table)
    clean *= (gain * compression(displacement, grid, artefacts.phase_axis)[scanned])[:, None]
    noise = artefacts.noise_level(grid, scanned, tissue.wm) / snr
    recorded = artefacts.record(clean, table, grid, scanned, noise, noise_rng)
    kept = mask[scanned]
    dwi = _scan(S0_SCALE * recorded[kept], table, mask, grid)
    coverages = tuple(read(modifier.coverage)[kept] for modifier in modifiers)
    return SimulatedScan(dwi, tissue[kept], coverages, seed)


@dataclass(frozen=True, eq=False)
class ScanSettings:
    """Scan settings of one head of a cohort: arguments of `simulate_scan`.

    Parameters
    ----------
    table : GradientTable
        Gradient table, in world axes.
    seed : int
        Of the head.
    snr : float
        Signal-to-noise ratio of normal white matter at b = 0.
    rotation : (3, 3) array
        Rotation of the head about the centre of the brain, in world axes.
    flip : bool
        Whether left and right are exchanged.
    """

    table: GradientTable
    seed: int
    snr: float
    rotation: NDArray[np.float64]
    flip: bool


def random_settings(
    n: int,
    seed: int,
    *,
    table: GradientTable | None = None,
    snr: tuple[float, float] = (15.0, 25.0),
    max_rotation: float = 10.0,
    vary_table: bool = True,
) -> Iterator[ScanSettings]:
    """Draw scan settings for the heads of a cohort, half of them flipped.

    Parameters
    ----------
    n : int
        Number of heads.
    seed : int
        Determines all settings. The settings of head i do not depend on n.
    table : GradientTable, optional
        The default has one b0 volume and 32 directions at b = 1000 s/mm2.
    snr : (float, float), optional
        Range of the signal-to-noise ratio of normal white matter at b = 0; uniform.
    max_rotation : float, optional
        Largest rotation of a head, in degrees.
    vary_table : bool, optional
        Rotate the table at random, and reverse random directions, for every head.

    Yields
    ------
    ScanSettings

    Examples
    --------
    >>> from tripq.simulate import default_anatomy
    >>> small = default_anatomy(4.0).within((-80, -110, 0), (80, 80, 40))
    >>> scans = [simulate_scan(small, **vars(settings)) for settings in random_settings(2, seed=0)]
    >>> [scan.dwi.q.shape for scan in scans]
    [(33, 3), (33, 3)]
    """
    table = table or GradientTable.from_shells([1000.0], [32])
    for index in range(n):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
        varied = table.rotated(random_rotation(rng)).with_random_signs(rng)
        yield ScanSettings(
            varied if vary_table else table,
            int(rng.integers(2**32)),
            snr=rng.uniform(*snr),
            rotation=random_rotation(rng, max_rotation),
            flip=bool(rng.integers(2)),
        )


def _covering(anatomy: Anatomy, pose: Pose, reach: float) -> Grid:
    """Grid on the lattice of the anatomy that holds the posed mask, and so many mm around it."""
    points = apply_affine(anatomy.affine, np.argwhere(anatomy.mask))
    return anatomy.grid.covering(pose.to_scanner(points), margin=pose.margin() + reach)


def _see(
    anatomy: Anatomy,
    pose: Pose,
    grid: Grid,
    displacement: NDArray[np.float32],
    phase_axis: int,
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    """What the voxels of the grid of a scan show.

    Returns
    -------
    brain : (X, Y, Z) bool array
        Voxels that show the mask of the posed head.
    points : (X * Y * Z, 3) array
        Points of the scanner that the voxels show, in mm: their centres, if nothing is displaced.
    voxels : (X * Y * Z, 3) array
        Positions of these points in the anatomy, as fractional voxel indices.
    """
    along = grid.affine[:3, phase_axis] / grid.voxel_size[phase_axis]
    points = grid.points() + displacement.reshape(-1, 1) * along
    voxels = anatomy.grid.to_voxels(pose.to_anatomy(points))
    inside = interpolate(anatomy.mask.astype(np.float32), voxels) >= 0.5
    if not inside.any():
        raise SimulationError(
            f"no voxel of the mask is on the grid of shape {grid.shape}: the head is outside."
        )
    return inside.reshape(grid.shape), points, voxels


def _fill(
    anatomy: Anatomy,
    points: NDArray[np.float64],
    voxels: NDArray[np.float64],
    pose: Pose,
    constants: Constants,
    heterogeneity: Heterogeneity,
    rng: np.random.Generator,
) -> tuple[Tissue, NDArray[np.float32]]:
    """Normal tissue, and receiver gain, of the voxels of a scan."""
    own, scales = rng.standard_normal(3), heterogeneity.scales  # of this head; drawn first

    def vary(mean: float, sd: float, of_head: float) -> NDArray[np.float32]:
        fields = [random_field(anatomy.grid, scale, rng) for scale in scales]
        local = interpolate(np.sum(fields, axis=0) / np.sqrt(len(scales)), voxels)
        return (mean * np.exp(sd * (heterogeneity.between * of_head + local))).astype(np.float32)

    def read(volume: NDArray[np.float32]) -> NDArray[np.float32]:
        return interpolate(volume, voxels)

    # fibres of two voxels cannot be averaged, as their correspondence is unknown
    at = nearest(anatomy.grid.shape, voxels)
    stick_fraction = vary(constants.stick_fraction, heterogeneity.stick_fraction, own[0])
    tissue = Tissue(
        wm=read(anatomy.wm),
        gm=read(anatomy.gm),
        csf=read(anatomy.csf),
        directions=pose.reorient(anatomy.directions[at], points),
        weights=anatomy.weights[at],
        stick_fraction=np.minimum(stick_fraction, 0.95, dtype=np.float32),
        axial_diffusivity=vary(
            constants.axial_diffusivity, heterogeneity.axial_diffusivity, own[1]
        ),
        gm_diffusivity=vary(constants.gm_diffusivity, heterogeneity.gm_diffusivity, own[2]),
        water=np.zeros(len(voxels), dtype=np.float32),
        s0=np.ones(len(voxels), dtype=np.float32),
    )
    field = random_field(anatomy.grid, heterogeneity.gain_scale, rng)
    gain = np.exp(heterogeneity.gain_sd * read(field))
    gain /= np.average(gain, weights=tissue.wm + 1e-6)  # the stated SNR is that of white matter
    if heterogeneity.tissue_s0:
        tissue = replace(tissue, s0=vary(1.0, heterogeneity.tissue_s0, 0.0))
    return tissue, gain


def _scan(
    intensity: NDArray[np.float32], table: GradientTable, mask: NDArray[np.bool_], grid: Grid
) -> DWI:
    """Divide by b0 and sort as `tripq.scans.read_dwi` does."""
    b0 = intensity[:, table.b0].mean(axis=1)
    weighted = ~table.b0
    ones = np.ones((len(b0), 1), dtype=np.float32)
    length = np.sqrt(table.b_values[weighted] / B_REFERENCE)
    unit = table.directions[weighted]
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    return DWI(
        signal=np.concatenate([ones, intensity[:, weighted] / b0[:, None]], axis=1),
        b_values=np.concatenate([[0.0], table.b_values[weighted]]),
        q=np.concatenate([np.zeros((1, 3)), length[:, None] * unit]),
        mask=mask,
        affine=grid.affine,
        b0=b0,
        notes=("simulated",),
        b0_volumes=int(np.count_nonzero(table.b0)),
    )
