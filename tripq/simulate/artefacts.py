r"""Imperfections of a scan, each of which is one function; `Artefacts` are those of one scan.

`tripq.simulate.simulate_scan` applies them where they arise:

1. *Tissue maps of the anatomy*: `sharpen` and `blur` set the partial volume with fluid, and
   `coherence` scales the weights of the fibres.
2. *Position*: `displacement_field` says how far from its voxel a signal arises along the phase
   axis.  Tissue, modifiers and mask are read at the displaced points, so all of them move alike:
   the coverage of a modifier is where it is **seen in the distorted scan**.  Directions of fibres
   are those at the displaced point, unchanged, as distortion rotates no gradient.
3. *Signal without noise*, (V, N): `spread_diffusivities`, compression by the distortion, `drift`.
4. *Images*, one volume after the other on the whole grid: `move` (eddy currents and motion left
   over, relative to the first volume), loss of signal (`slice_gains`), `add_ghost`, and
   `truncate` for Gibbs ringing, of the noise as well: it is correlated like the signal.
5. *Magnitude*: `tripq.simulate.noise.add_chi_noise`, with a standard deviation for each voxel.
6. *Mask*: `inexact_mask` is too wide or too tight, with a rough edge.

Every effect of a scan has its own stream of random numbers.  `Artefacts()` has none of them, and
gives a scan of the same bytes as no artefacts.  In plane are the first two axes of the grid;
slices lie along the third.

Not simulated: rotation of the gradients by motion (below 2 degrees in the ranges of
`tripq.simulate.Randomisation`), signal of skull and scalp, pulsation, fat shift, gradient
nonlinearity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.spatial.transform import Rotation

from tripq.simulate.anatomy import Anatomy
from tripq.simulate.errors import SimulationError
from tripq.simulate.fields import random_field
from tripq.simulate.grid import Grid
from tripq.simulate.noise import magnitude, receive
from tripq.simulate.signal import Tissue
from tripq.simulate.tables import GradientTable

IN_PLANE = (0, 1)
"""Axes of a slice: of k-space, and of which one is the phase axis."""

EDDY_RADIUS = 80.0
"""Distance in mm from the centre of the grid at which `Artefacts.eddy` is given."""

STEEPEST = 0.6
"""Largest gradient of a displacement along the phase axis; 1 would fold the image."""

FARTHEST = 3.0
"""Largest displacement, and deviation of the edge of a mask, in standard deviations."""

FEWEST_DIRECTIONS = 6
"""So many diffusion-weighted volumes are never lost: a tensor needs them."""

NOISE_SCALE, EDGE_SCALE = 30.0, 15.0
"""Lengths in mm over which the noise and the edge of a mask vary."""

_STREAMS = (
    "displacement",
    "eddy",
    "motion",
    "slices",
    "lost",
    "ghost",
    "coils",
    "noise",
    "mask",
    "beyond",
)


# -- tissue --------------------------------------------------------------------------------------


def sharpen(fractions: Sequence[NDArray[np.float32]], power: float) -> list[NDArray[np.float32]]:
    """Make tissue maps crisper, or less crisp, by a power of each; their sum stays.

    Parameters
    ----------
    fractions : sequence of (X, Y, Z) float32 array
        Fractions of all tissues.
    power : float
        Above 1 for crisper maps.

    Returns
    -------
    list of (X, Y, Z) float32 array

    Examples
    --------
    >>> one, other = sharpen([np.full((1, 1, 1), f, np.float32) for f in (0.6, 0.2)], 2.0)
    >>> round(float(one), 2), round(float(other), 2)
    (0.72, 0.08)
    """
    powers = [fraction**power for fraction in fractions]
    share = np.sum(fractions, axis=0) / np.maximum(np.sum(powers, axis=0), 1e-12)
    return [np.minimum(share * part, 1.0).astype(np.float32) for part in powers]


def blur(
    fractions: Sequence[NDArray[np.float32]], grid: Grid, sd: float
) -> list[NDArray[np.float32]]:
    """Mix neighbouring tissues by a Gaussian: partial volume, with fluid above all.

    Parameters
    ----------
    fractions : sequence of (X, Y, Z) float32 array
        Fractions of tissue.
    grid : Grid
        Their grid.
    sd : float
        Standard deviation of the Gaussian in mm.

    Returns
    -------
    list of (X, Y, Z) float32 array
    """
    return [ndimage.gaussian_filter(fraction, sd / grid.voxel_size) for fraction in fractions]


def spread_diffusivities(
    attenuation: NDArray[np.float32], spread: NDArray[np.float32]
) -> NDArray[np.float32]:
    r"""Attenuation of tissue whose diffusivities spread within a voxel.

    Every :math:`e^{-x}` becomes :math:`(1 + \theta x)^{-1 / \theta}`: the diffusivity has a gamma
    distribution with a relative variance of :math:`\theta` (Jbabdi et al., Magn Reson Med
    68:1846-1855, 2012), which adds :math:`3 \theta` to the kurtosis.

    Parameters
    ----------
    attenuation : (V, N) float32 array
        Signal divided by that at b = 0, above 0.
    spread : (V, 1) float32 array
        The relative variance, from 0.

    Returns
    -------
    (V, N) float32 array

    Examples
    --------
    >>> attenuation, spread = np.float32([[1.0, 0.5]]), np.float32([[0.2]])
    >>> spread_diffusivities(attenuation, spread).round(3)
    array([[1.   , 0.522]], dtype=float32)
    """
    exponent = -np.log(np.maximum(attenuation, np.float32(1e-12)))
    some = np.maximum(spread, np.float32(1e-4))  # the limit at 0 within rounding
    return np.exp(-np.log1p(some * exponent) / some)


def drift(n: int, share: float) -> NDArray[np.float32]:
    """Gains of n volumes, (n,): the signal falls linearly by a share of the first.

    See Vos et al., Magn Reson Med 77:285-299, 2017.

    Examples
    --------
    >>> drift(3, 0.1)
    array([1.  , 0.95, 0.9 ], dtype=float32)
    """
    return np.linspace(1.0, 1.0 - share, n, dtype=np.float32)


# -- position ------------------------------------------------------------------------------------


def displacement_field(
    grid: Grid, sd: float, scale: float, axis: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Distortion of echo-planar images: displacements along the phase axis.

    A voxel at x shows what lies at x + d(x) (Jezzard and Balaban, Magn Reson Med 34:65-73, 1995).
    The field is smooth and never folds the image.

    Parameters
    ----------
    grid : Grid
        Of the scan.
    sd : float
        Standard deviation of the displacement in mm; less where it would fold the image.
    scale : float
        Length in mm over which it varies.
    axis : int
        The phase axis of the grid.
    rng : numpy.random.Generator
        Source of the field.

    Returns
    -------
    (X, Y, Z) float32 array
        d in mm, at most `FARTHEST` times `sd`.
    """
    field = random_field(grid, scale, rng)
    field /= max(1.0, float(np.abs(field).max()) / FARTHEST)
    steepest = sd * float(np.abs(_slope(field, grid, axis)).max(initial=0.0))
    return field * np.float32(sd * min(1.0, STEEPEST / max(steepest, 1e-9)))


def compression(displacement: NDArray[np.float32], grid: Grid, axis: int) -> NDArray[np.float32]:
    """Factor of the intensity by a distortion, 1 + dd/dx, which keeps the total intensity.

    Signal piles up where the image is compressed (Andersson, Skare and Ashburner, NeuroImage
    20:870-888, 2003).

    Parameters
    ----------
    displacement : (X, Y, Z) float32 array
        In mm, from `displacement_field`.
    grid : Grid
        Of the scan.
    axis : int
        The phase axis of the grid.

    Returns
    -------
    (X, Y, Z) float32 array
    """
    return 1 + _slope(displacement, grid, axis)


def _slope(field: NDArray[np.float32], grid: Grid, axis: int) -> NDArray[np.float32]:
    if field.shape[axis] < 2:  # one voxel: no slope
        return np.zeros_like(field)
    return np.gradient(field, grid.voxel_size[axis], axis=axis).astype(np.float32)


# -- images --------------------------------------------------------------------------------------


def motion(
    n: int, grid: Grid, translation: float, rotation: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Rigid motion of n volumes relative to the first, independent of each other.

    Parameters
    ----------
    n : int
        Number of volumes.
    grid : Grid
        Of the scan; rotations are about its centre.
    translation, rotation : float
        Standard deviations along and about each axis, in mm and degrees.
    rng : numpy.random.Generator
        Source of the motion.

    Returns
    -------
    (n, 4, 4) float64 array
        In mm: from points of the scanner to the points of the head that are seen there.
    """
    angles = np.radians(rotation) * rng.standard_normal((n, 3))
    shifts = translation * rng.standard_normal((n, 3))
    matrices = np.tile(np.eye(4), (n, 1, 1))
    for matrix, angle, shift in zip(matrices[1:], angles[1:], shifts[1:], strict=True):
        matrix[:3, :3] = Rotation.from_rotvec(angle).as_matrix()
        matrix[:3, 3] = shift
    return _about_centre(matrices, grid)


def eddy_currents(
    table: GradientTable, grid: Grid, strength: float, axis: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Shift, shear and scale along the phase axis, linear in the gradient of a volume.

    The first-order model of Andersson and Sotiropoulos (NeuroImage 125:1063-1078, 2016); b0
    volumes have none.

    Parameters
    ----------
    table : GradientTable
        Of N volumes.
    grid : Grid
        Of the scan.
    strength : float
        Standard deviation in mm of the displacement by each term at b = 1000 s/mm2, of the linear
        ones `EDDY_RADIUS` from the centre of the grid.
    axis : int
        The phase axis of the grid.
    rng : numpy.random.Generator
        Source of the coefficients.

    Returns
    -------
    (N, 4, 4) float64 array
        In mm: from points of the scanner to the points of the head that are seen there.
    """
    linear, constant = strength * rng.standard_normal((3, 3)), strength * rng.standard_normal(3)
    gradients = np.where(table.b0[:, None], 0.0, table.directions)
    gradients = gradients * np.sqrt(table.b_values / 1000.0)[:, None]
    along = grid.affine[:3, axis] / grid.voxel_size[axis]
    matrices = np.tile(np.eye(4), (len(table), 1, 1))
    matrices[:, :3, :3] += along[:, None] * (gradients @ linear.T)[:, None, :] / EDDY_RADIUS
    matrices[:, :3, 3] = along * (gradients @ constant)[:, None]
    return _about_centre(matrices, grid)


def move(
    volume: NDArray[np.float32], grid: Grid, matrix: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Move an image; the identity returns it as it is.

    Parameters
    ----------
    volume : (X, Y, Z) float32 array
        The image.
    grid : Grid
        Its grid.
    matrix : (4, 4) array
        In mm: from points of the result to points of the image. It is read trilinearly, as 0
        outside.

    Returns
    -------
    (X, Y, Z) float32 array
    """
    if np.array_equal(matrix, np.eye(4)):
        return volume
    voxels = np.linalg.inv(grid.affine) @ matrix @ grid.affine
    return ndimage.affine_transform(
        volume, voxels[:3, :3], voxels[:3, 3], order=1, mode="grid-constant", output=np.float32
    )


def slice_gains(
    n_slices: int, table: GradientTable, share: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Loss of signal in slices, by motion during the diffusion weighting.

    See Andersson et al., NeuroImage 141:556-572, 2016.

    Parameters
    ----------
    n_slices : int
        Number of slices.
    table : GradientTable
        Of N volumes; b0 volumes lose nothing.
    share : float
        Of the slices of diffusion-weighted volumes that lose signal.
    rng : numpy.random.Generator
        Source of the slices and their losses.

    Returns
    -------
    (N, n_slices) float32 array
        Factors: 1, or from 0 to 0.6.
    """
    hit = rng.random((len(table), n_slices)) < share
    left = rng.uniform(0.0, 0.6, hit.shape)
    return np.where(hit & ~table.b0[:, None], left, 1.0).astype(np.float32)


def lost_volumes(table: GradientTable, share: float, rng: np.random.Generator) -> NDArray[np.intp]:
    """Diffusion-weighted volumes that are lost; `FEWEST_DIRECTIONS` always remain.

    Parameters
    ----------
    table : GradientTable
        Of N volumes.
    share : float
        Probability that a volume is lost.
    rng : numpy.random.Generator
        Source of the choice.

    Returns
    -------
    (L,) int array
        Indices of volumes, in ascending order.
    """
    weighted = np.flatnonzero(~table.b0)
    chosen = rng.permutation(weighted[rng.random(len(weighted)) < share])
    return np.sort(chosen[: max(0, len(weighted) - FEWEST_DIRECTIONS)])


def add_ghost(volume: NDArray[np.float32], level: float, axis: int) -> NDArray[np.float32]:
    """Nyquist ghost: a share of the image, displaced by half the field of view.

    Odd and even lines of k-space are out of step (Buonocore and Gao, Magn Reson Med 38:89-100,
    1997).

    Parameters
    ----------
    volume : (X, Y, Z) float32 array
        The image; its grid is the field of view.
    level : float
        Share of the intensity in the ghost.
    axis : int
        The phase axis.

    Returns
    -------
    (X, Y, Z) float32 array

    Examples
    --------
    >>> line = np.zeros((1, 6, 1), np.float32)
    >>> line[0, 1] = 1.0
    >>> add_ghost(line, 0.1, axis=1).ravel().round(2)
    array([0. , 0.9, 0. , 0. , 0.1, 0. ], dtype=float32)
    """
    half = np.roll(volume, volume.shape[axis] // 2, axis=axis)
    return (1 - np.float32(level)) * volume + np.float32(level) * half


def truncate(volume: NDArray[Any], kept: float) -> NDArray[Any]:
    """Gibbs ringing: the outer part of k-space is missing, in plane.

    Scanners acquire a smaller matrix than they reconstruct, and edges ring (Kellner et al., Magn
    Reson Med 76:1574-1581, 2016).

    Parameters
    ----------
    volume : (X, Y, Z) float32 or complex64 array
        The image.
    kept : float
        Share of k-space along each axis, from above 0 to 1.

    Returns
    -------
    (X, Y, Z) array of the same type
        Of the same mean.
    """
    spectrum = fft.fft2(volume, axes=IN_PLANE)
    for axis in IN_PLANE:
        outer = ~_low(volume.shape[axis], kept)
        np.moveaxis(spectrum, axis, 0)[outer] = 0
    result = fft.ifft2(spectrum, axes=IN_PLANE, overwrite_x=True)
    return result if np.iscomplexobj(volume) else result.real


def _low(n: int, kept: float) -> NDArray[np.bool_]:
    """Frequencies that remain along an axis, (n,)."""
    return np.abs(fft.fftfreq(n)) <= kept / 2


def _about_centre(matrices: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    """Affine maps (N, 4, 4) about the origin as maps about the centre of a grid."""
    centre = grid.affine[:3, :3] @ ((np.array(grid.shape) - 1) / 2) + grid.affine[:3, 3]
    moved = matrices.copy()
    moved[:, :3, 3] += centre - matrices[:, :3, :3] @ centre
    # exactly the identity, where it is to rounding
    still = np.abs(matrices - np.eye(4)).max(axis=(1, 2)) == 0
    moved[still] = np.eye(4)
    return moved


# -- mask ----------------------------------------------------------------------------------------


def inexact_mask(
    brain: NDArray[np.bool_],
    grid: Grid,
    offset: float,
    roughness: float,
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Mask of a brain as programs find it: too wide or too tight, with a rough edge.

    Parameters
    ----------
    brain : (X, Y, Z) bool array
        The brain.
    grid : Grid
        Its grid.
    offset : float
        Distance in mm of the edge of the mask from that of the brain; below 0 inside.
    roughness : float
        Standard deviation of that distance in mm, from place to place.
    rng : numpy.random.Generator
        Source of the edge.

    Returns
    -------
    (X, Y, Z) bool array

    Raises
    ------
    SimulationError
        If nothing remains.
    """
    size = grid.voxel_size
    outside = ndimage.distance_transform_edt(~brain, sampling=size)
    inside = ndimage.distance_transform_edt(np.pad(brain, 1), sampling=size)[1:-1, 1:-1, 1:-1]
    # distances are those of voxel centres, so the edge lies half a voxel from either
    edge = np.where(brain, -inside, outside) - np.where(brain, -0.5, 0.5) * size.min()
    rough = np.clip(random_field(grid, EDGE_SCALE, rng), -FARTHEST, FARTHEST)
    mask = edge < offset + roughness * rough
    if not mask.any():
        raise SimulationError(f"mask_offset={offset:g} mm leaves no voxel of the brain.")
    return mask


# -- one scan ------------------------------------------------------------------------------------


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
        return FARTHEST * self.distortion + max(
            0.0, self.mask_offset + FARTHEST * self.mask_roughness
        )

    def lost_volumes(self, table: GradientTable) -> list[int]:
        """Volumes of a scan with a table that are lost, numbered from 0."""
        return lost_volumes(table, self.lost, self._rng("lost")).tolist()

    def on_anatomy(self, anatomy: Anatomy) -> Anatomy:
        """Effects on the tissue maps of an anatomy."""
        if (self.crispness, self.blur, self.coherence) == (1, 0, 1):
            return anatomy
        fractions = [anatomy.wm, anatomy.gm, anatomy.csf]
        if self.crispness != 1:
            fractions = sharpen(fractions, self.crispness)
        if self.blur:
            fractions = blur(fractions, anatomy.grid, self.blur)
        weights = anatomy.weights
        if self.coherence != 1:
            weights = weights * np.float32(self.coherence)
            weights = weights / np.maximum(weights.sum(axis=-1, keepdims=True), 1)
        wm, gm, csf = (np.clip(fraction, 0.0, 1.0) for fraction in fractions)
        return replace(anatomy, wm=wm, gm=gm, csf=csf, weights=weights)

    def displacement(self, grid: Grid) -> NDArray[np.float32]:
        """Displacement along the phase axis in mm, (X, Y, Z); see `displacement_field`."""
        return displacement_field(
            grid,
            self.distortion,
            self.distortion_scale,
            self.phase_axis,
            self._rng("displacement"),
        )

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
            remaining = np.prod([_low(grid.shape[axis], self.kept).mean() for axis in IN_PLANE])
            real, imaginary = receive(signal, noise / np.sqrt(remaining), rng)
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
            volume = np.zeros(grid.shape, np.float32)
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
