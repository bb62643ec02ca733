"""All artefacts of one scan, in the order of `tripq.simulate.artefacts`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from tripq.simulate.anatomy import Anatomy
from tripq.simulate.artefacts.effects import (
    CAVITIES,
    CAVITY_SCALES,
    EDGE_SCALE,
    FARTHEST,
    Cavities,
    add_ghost,
    along_axis,
    blur,
    cavities_below,
    cavity_field,
    displacement_field,
    drift,
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
    truncated_noise,
)
from tripq.simulate.errors import SimulationError
from tripq.simulate.fields import random_field
from tripq.simulate.grid import Grid
from tripq.simulate.noise import magnitude, receive
from tripq.simulate.pose import Pose
from tripq.simulate.signal import Tissue
from tripq.simulate.tables import GradientTable

NOISE_SCALE = 30.0
"""Length in mm over which the level of noise varies."""

_STREAMS = (
    *("displacement", "eddy", "motion", "slices", "lost", "ghost"),
    *("coils", "noise", "mask", "beyond", "folds", "air"),
)


@dataclass(frozen=True)
class Artefacts:
    """Artefacts of one scan; by default there is none. `Randomisation` draws them.

    Parameters
    ----------
    seed : int
        Of what differs between places and volumes.
    phase_axis : int
        Axis of the grid along which phase is encoded: 0 or 1.
    crispness : float
        Power of the tissue maps, see `sharpen`.
    blur : float
        Standard deviation in mm of the blur of the tissue maps.
    coherence : float
        Factor of the weights of the fibres: below 1 for more dispersion.
    diffusivity_spread : float
        Relative variance of diffusivities within a voxel, outside fluid; see
        `spread_diffusivities`.
    distortion, distortion_scale : float
        Standard deviation and length in mm of the displacement along the phase axis.
    eddy : float
        Displacement by eddy currents in mm, see `eddy_currents`.
    translation, rotation : float
        Motion left over in mm and degrees, see `motion`.
    drift : float
        Share of the signal lost from the first volume to the last.
    slice_dropout : float
        Share of the slices of diffusion-weighted volumes that lose signal.
    lost : float
        Share of the diffusion-weighted volumes that are lost, with at most a fifth of the signal.
    ghost : float
        Share of the intensity in the Nyquist ghost of the strongest volume.
    kept : float
        Share of k-space along each axis of a slice; 1 for no Gibbs ringing.
    noise_variation : float
        Logarithmic standard deviation of the level of noise between places.
    coils : int
        Effective number of coils: 1 for Rician noise.
    mask_offset, mask_roughness : float
        Distance in mm of the edge of the mask from that of the brain, and its variation.
    folding : float
        Logarithmic standard deviation of the fields that fold the tissue maps, see `fold`.
    air : float
        Steepness of the distortion by air-filled cavities below the brain, see `cavity_field`.

    Raises
    ------
    SimulationError
        If a value is out of range; the message names it.
    """

    seed: int = 0
    phase_axis: int = 1
    crispness: float = 1.0
    blur: float = 0.0
    coherence: float = 1.0
    diffusivity_spread: float = 0.0
    distortion: float = 0.0
    distortion_scale: float = 25.0
    eddy: float = 0.0
    translation: float = 0.0
    rotation: float = 0.0
    drift: float = 0.0
    slice_dropout: float = 0.0
    lost: float = 0.0
    ghost: float = 0.0
    kept: float = 1.0
    noise_variation: float = 0.0
    coils: int = 1
    mask_offset: float = 0.0
    mask_roughness: float = 0.0
    folding: float = 0.0
    air: float = 0.0

    def __post_init__(self) -> None:
        limits: dict[str, tuple[float, float]] = {
            "phase_axis": (0, 1),
            "crispness": (0.1, 10),
            "coherence": (0, 3),
            "diffusivity_spread": (0, 2),
            "distortion_scale": (5, np.inf),
            "drift": (0, 0.9),
            "slice_dropout": (0, 1),
            "lost": (0, 1),
            "ghost": (0, 0.5),
            "kept": (0.1, 1),
            "coils": (1, 1024),
            "mask_offset": (-np.inf, np.inf),
            "air": (0, 0.9),
        }
        for field in fields(self):
            low, high = limits.get(field.name, (0, np.inf))
            value = getattr(self, field.name)
            if not low <= value <= high:
                raise SimulationError(
                    f"{field.name}={value:g} must be between {low:g} and {high:g}."
                )
            if isinstance(field.default, int) and value != int(value):
                raise SimulationError(f"{field.name}={value:g} must be a whole number.")

    @property
    def reach(self) -> float:
        """How far in mm beyond the head the grid of a scan must extend."""
        mask = max(0.0, self.mask_offset + FARTHEST * self.mask_roughness)
        # A field moves the signal by at most its scale over `STEEPEST_OF_CAVITY`: 1.16 times.
        return FARTHEST * self.distortion + 1.2 * CAVITY_SCALES[1] * self.air + mask

    def lost_volumes(self, table: GradientTable) -> list[int]:
        """Volumes of a scan with a table that are lost, numbered from 0."""
        return lost_volumes(table, self.lost, self._rng("lost")).tolist()

    def on_anatomy(self, anatomy: Anatomy) -> Anatomy:
        """Effects on the tissue maps of an anatomy."""
        if (self.crispness, self.folding, self.blur, self.coherence) == (1, 0, 0, 1):
            return anatomy
        fractions = [anatomy.wm, anatomy.gm, anatomy.csf]
        if self.crispness != 1:
            fractions = sharpen(fractions, self.crispness)
        if self.folding:
            fractions = fold(fractions, anatomy.grid, self.folding, self._rng("folds"))
        if self.blur:
            fractions = blur(fractions, anatomy.grid, self.blur)
        weights = anatomy.weights
        if self.coherence != 1:
            weights = weights * np.float32(self.coherence)
            weights = weights / np.maximum(weights.sum(axis=-1, keepdims=True), 1)
        wm, gm, csf = (np.clip(fraction, 0.0, 1.0) for fraction in fractions)
        return replace(anatomy, wm=wm, gm=gm, csf=csf, weights=weights)

    def displacement(self, grid: Grid, anatomy: Anatomy, pose: Pose) -> NDArray[np.float32]:
        """Displacement along the phase axis in mm, (X, Y, Z), for a head in a pose.

        See `displacement_field`, and `cavity_field` for that near air.
        """
        axis = self.phase_axis
        smooth = displacement_field(
            grid, self.distortion, self.distortion_scale, axis, self._rng("displacement")
        )
        if not self.air:
            return smooth
        rng = self._rng("air")
        below = cavities_below(anatomy.brain, anatomy.grid, CAVITIES, rng)
        cavities = Cavities(pose.to_scanner(below.centres), below.scales)
        return along_axis(smooth, cavity_field(grid, cavities, self.air, axis, rng), grid, axis)

    def mask(self, brain: NDArray[np.bool_], grid: Grid) -> NDArray[np.bool_]:
        """Mask that is delivered with the scan, see `inexact_mask`."""
        if not (self.mask_offset or self.mask_roughness):
            return brain
        return inexact_mask(brain, grid, self.mask_offset, self.mask_roughness, self._rng("mask"))

    def beyond_brain(
        self, tissue: Tissue, brain: NDArray[np.bool_], grid: Grid, scanned: NDArray[np.bool_]
    ) -> Tissue:
        """Fluid, and bone without signal, where a mask is wider than the brain.

        Parameters
        ----------
        tissue : Tissue
            Of the V voxels that are scanned.
        brain : (V,) bool array
            Those of the brain.
        grid : Grid
            Of the scan.
        scanned : (X, Y, Z) bool array
            The V voxels.

        Returns
        -------
        Tissue
            With more fluid beyond the brain.
        """
        if brain.all():
            return tissue
        field = random_field(grid, EDGE_SCALE / 2, self._rng("beyond"))[scanned]
        empty = np.clip(1 - tissue.wm - tissue.gm - tissue.csf, 0, 1)
        fluid = tissue.csf + np.clip(0.5 + 0.3 * field, 0.05, 1.0) * empty
        return replace(tissue, csf=np.where(brain, tissue.csf, fluid).astype(np.float32))

    def on_signal(
        self, signal: NDArray[np.float32], tissue: Tissue, table: GradientTable
    ) -> NDArray[np.float32]:
        """Spread of diffusivities and drift of the scanner, on a signal (V, N) without noise."""
        if self.diffusivity_spread:
            b0 = signal[:, table.b0].mean(axis=1, keepdims=True)
            spread = np.float32(self.diffusivity_spread) * (1 - tissue.csf[:, None])
            signal = b0 * spread_diffusivities(signal / b0, spread)
        if self.drift:
            signal = signal * drift(len(table), self.drift)
        return signal

    def noise_level(
        self, grid: Grid, scanned: NDArray[np.bool_], white: NDArray[np.float32]
    ) -> NDArray[np.float32] | float:
        """Standard deviation of the noise in each of V voxels, (V, 1), of mean 1 in white matter.

        It varies with the noise amplification of parallel imaging (Pruessmann et al., Magn Reson
        Med 42:952-962, 1999).
        """
        if not self.noise_variation:
            return 1.0
        field = random_field(grid, NOISE_SCALE, self._rng("noise"))[scanned]
        level = np.exp(np.float32(self.noise_variation) * field)
        return (level / np.average(level, weights=white + 1e-6))[:, None].astype(np.float32)

    def record(
        self,
        signal: NDArray[np.float32],
        table: GradientTable,
        grid: Grid,
        scanned: NDArray[np.bool_],
        noise: NDArray[np.float32] | float,
        rng: np.random.Generator,
    ) -> NDArray[np.float32]:
        """Images of a signal: motion, eddy currents, loss of signal, ghost, ringing and noise.

        Parameters
        ----------
        signal : (V, N) float32 array
            Without noise.
        table : GradientTable
            Of the N volumes.
        grid : Grid
            Of the scan.
        scanned : (X, Y, Z) bool array
            The V voxels; elsewhere there is no signal.
        noise : float or (V, 1) array
            Standard deviation of the noise in either channel.
        rng : numpy.random.Generator
            Source of the noise.

        Returns
        -------
        (V, N) float32 array
            Magnitudes.
        """
        signal = self._on_images(signal, table, grid, scanned)
        if self.kept == 1:
            channels = receive(signal, noise, rng)
        else:
            real, imaginary = receive(signal, noise / truncated_noise(grid.shape, self.kept), rng)
            for row in range(len(table)):
                volume = np.zeros(grid.shape, np.complex64)
                volume[scanned] = real[:, row] + 1j * imaginary[:, row]
                ringing = truncate(volume, self.kept)[scanned]
                real[:, row], imaginary[:, row] = ringing.real, ringing.imag
            channels = real, imaginary
        return magnitude(*channels, noise, self.coils, self._rng("coils"))

    def _on_images(
        self,
        signal: NDArray[np.float32],
        table: GradientTable,
        grid: Grid,
        scanned: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        n, axis = len(table), self.phase_axis
        rigid = motion(n, grid, self.translation, self.rotation, self._rng("motion"))
        bent = eddy_currents(table, grid, self.eddy, axis, self._rng("eddy"))
        gains = slice_gains(grid.shape[2], table, self.slice_dropout, self._rng("slices"))
        of_lost, of_ghost = self._rng("lost"), self._rng("ghost")
        gains[lost_volumes(table, self.lost, of_lost)] *= of_lost.uniform(0, 0.2)
        levels = self.ghost * of_ghost.uniform(0.5, 1.0, n)
        if (gains == 1).all() and not (levels.any() or self._moves):
            return signal
        result = np.empty_like(signal)
        for row in range(n):
            volume: NDArray[np.float32] = np.zeros(grid.shape, np.float32)
            volume[scanned] = signal[:, row]
            volume = move(volume, grid, rigid[row] @ bent[row]) * gains[row]
            if levels[row]:
                volume = add_ghost(volume, levels[row], axis)
            result[:, row] = volume[scanned]
        return result

    @property
    def _moves(self) -> bool:
        return bool(self.eddy or self.translation or self.rotation)

    def _rng(self, effect: str) -> np.random.Generator:
        key = (_STREAMS.index(effect),)
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))
