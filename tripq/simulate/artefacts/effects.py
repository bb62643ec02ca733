"""The effects of `tripq.simulate.artefacts`, each of which is one function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.spatial.transform import Rotation

from tripq.simulate.errors import SimulationError
from tripq.simulate.fields import random_field
from tripq.simulate.grid import Grid
from tripq.simulate.tables import GradientTable

IN_PLANE = (0, 1)
"""Axes of a slice: of k-space, and of which one is the phase axis."""

EDDY_RADIUS = 80.0
"""Distance in mm from the centre of the grid at which the linear eddy currents are given."""

STEEPEST = 0.6
"""Largest gradient of a displacement along the phase axis; 1 would fold the image."""

FARTHEST = 3.0
"""Largest displacement, and deviation of the edge of a mask, in standard deviations."""

FEWEST_DIRECTIONS = 6
"""So many diffusion-weighted volumes are never lost: a tensor needs them."""

EDGE_SCALE = 15.0
"""Length in mm over which the edge of a mask varies."""

CAVITIES = 4
"""Air-filled cavities at the base of the skull that distort a scan."""

STEEPEST_OF_CAVITY = 1.5 * 1.25**-2.5
"""Largest gradient of the field of one cavity across the main field, half its scale away."""

CAVITY_SCALES = (6.0, 20.0)
"""Smallest and largest length in mm over which the field of a cavity falls."""

FOLD_SCALE = 2.0
"""Length in mm of the fields of `fold`, about a quarter of the width of a gyrus."""

# -- tissue --------------------------------------------------------------------------------------


def sharpen(fractions: Sequence[NDArray[np.float32]], power: float) -> list[NDArray[np.float32]]:
    """Make tissue maps crisper, or less crisp, by a power of each; their sum does not change.

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
    >>> round(one.item(), 2), round(other.item(), 2)
    (0.72, 0.08)
    """
    return _with_their_sum([fraction**power for fraction in fractions], fractions)


def fold(
    fractions: Sequence[NDArray[np.float32]], grid: Grid, sd: float, rng: np.random.Generator
) -> list[NDArray[np.float32]]:
    """Give the average of many brains the folds of one; the sum of the fractions does not change.

    Every fraction is multiplied by a log-normal random field.  Where the template is certain of a
    tissue nothing changes; where brains differ, at the cortex and around the ventricles, one tissue
    prevails in one place and another a few mm further.

    Parameters
    ----------
    fractions : sequence of (X, Y, Z) float32 array
        Fractions of all tissues.
    grid : Grid
        Their grid.
    sd : float
        Standard deviation of the logarithm of the fields.
    rng : numpy.random.Generator
        Source of the fields.

    Returns
    -------
    list of (X, Y, Z) float32 array

    Examples
    --------
    >>> grid = Grid((20, 20, 20), np.diag([2.0, 2.0, 2.0, 1.0]))
    >>> average = [np.full(grid.shape, f, np.float32) for f in (0.6, 0.3)]
    >>> one, other = fold(average, grid, 2.0, np.random.default_rng(0))
    >>> float(one.min()) < 0.1, float(one.max()) > 0.8, bool(np.ptp(one + other) < 1e-5)
    (True, True, True)
    """
    varied = [f * np.exp(sd * random_field(grid, FOLD_SCALE, rng)) for f in fractions]
    return _with_their_sum(varied, fractions)


def _with_their_sum(
    changed: Sequence[NDArray[np.float32]], fractions: Sequence[NDArray[np.float32]]
) -> list[NDArray[np.float32]]:
    """Changed tissue maps, scaled so that their sum is that of the fractions."""
    share = np.sum(fractions, axis=0) / np.maximum(np.sum(changed, axis=0), 1e-12)
    return [np.minimum(share * part, 1.0).astype(np.float32) for part in changed]


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
    array([[1.   , 0.523]], dtype=float32)
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


@dataclass(frozen=True, eq=False)
class Cavities:
    """Air-filled cavities near the brain.

    Parameters
    ----------
    centres : (K, 3) array
        In world coordinates in mm.
    scales : (K,) array
        Length in mm over which the field of each falls.
    """

    centres: NDArray[np.float64]
    scales: NDArray[np.float64]


def cavities_below(
    brain: NDArray[np.bool_], grid: Grid, n: int, rng: np.random.Generator
) -> Cavities:
    """Draw cavities below the brain, where sinuses and ear canals are.

    Parameters
    ----------
    brain : (X, Y, Z) bool array
        Mask of an upright head.
    grid : Grid
        Its grid.
    n : int
        Number of cavities.
    rng : numpy.random.Generator
        Source of places and scales.

    Returns
    -------
    Cavities
        Each is half its scale below a place of the surface that faces down.
    """
    brain = ndimage.binary_fill_holes(brain)
    smooth = ndimage.gaussian_filter(
        np.pad(brain, 1).astype(np.float32), 6.0 / grid.voxel_size, mode="constant"
    )
    surface = np.argwhere(brain & ~ndimage.binary_erosion(brain))
    gradient = np.stack(
        [np.gradient(smooth, axis=axis)[tuple(surface.T + 1)] for axis in range(3)], axis=1
    )
    outward = -gradient @ np.linalg.inv(grid.affine[:3, :3])
    outward /= np.maximum(np.linalg.norm(outward, axis=1, keepdims=True), 1e-12)
    down = np.flatnonzero(outward[:, 2] < -0.5)
    chosen = rng.choice(down if len(down) else len(surface), n)
    scales = rng.uniform(*CAVITY_SCALES, n)
    places = apply_affine(grid.affine, surface[chosen])
    return Cavities(places + 0.5 * scales[:, None] * outward[chosen], scales)


def cavity_field(
    grid: Grid, cavities: Cavities, steepness: float, axis: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    r"""Distortion of echo-planar images near air: displacements along the phase axis.

    The main field, along the third world axis, changes near a cavity as near a sphere of another
    susceptibility, by :math:`(3 \cos^2 \theta - 1) / \rho^3` with
    :math:`\rho^2 = r^2 + s^2` for a scale s (Jezzard and Balaban, Magn Reson Med 34:65-73, 1995;
    the sphere: Schenck, Med Phys 23:815-850, 1996).  The signal moves in proportion to it.  The
    amplitude of each field is such that cavities of every scale are equally steep.

    Parameters
    ----------
    grid : Grid
        Of the scan.
    cavities : Cavities
        Where the air is.
    steepness : float
        Largest gradient of the displacement of the signal, below 1, so that the image is not
        folded.  It is that of one cavity of any scale, and less where the fields of several add
        up.  Where it is negative signal piles up, by a factor of up to 1 / (1 - steepness).
    axis : int
        The phase axis of the grid.
    rng : numpy.random.Generator
        Source of the polarity of the phase encoding.

    Returns
    -------
    (X, Y, Z) float32 array
        d in mm, as of `displacement_field`.
    """
    polarity = rng.choice([-1.0, 1.0])
    points = grid.points()
    field = np.zeros(len(points))
    for centre, scale in zip(cavities.centres, cavities.scales, strict=True):
        offset = (points - centre) / scale
        square = 1 + np.einsum("ni,ni->n", offset, offset)
        field += scale * (3 * offset[:, 2] ** 2 / square - 1) / square**1.5
    moved = (polarity * steepness / STEEPEST_OF_CAVITY) * field.reshape(grid.shape)
    steepest = np.abs(np.diff(moved, axis=axis)).max(initial=0.0) / grid.voxel_size[axis]
    moved *= min(1.0, steepness / max(steepest, 1e-9))  # fields of several cavities add up
    return _origin(moved.astype(np.float32), grid, axis)


def _origin(moved: NDArray[np.float32], grid: Grid, axis: int) -> NDArray[np.float32]:
    """Where the signal at x comes from, less x, if the signal of y is at ``y + moved(y)``."""
    lines = np.moveaxis(moved, axis, -1)
    position = grid.voxel_size[axis] * np.arange(lines.shape[-1])
    rows = lines.reshape(-1, len(position))
    came = [np.interp(position, position + line, -line) for line in rows]
    return np.moveaxis(np.reshape(came, lines.shape), -1, axis).astype(np.float32)


def along_axis(
    first: NDArray[np.float32], then: NDArray[np.float32], grid: Grid, axis: int
) -> NDArray[np.float32]:
    """Displacement of two distortions: x shows what `then` shows at ``x + first(x)``.

    Parameters
    ----------
    first, then : (X, Y, Z) float32 array
        Displacements in mm along an axis of the grid.
    grid : Grid
        Their grid.
    axis : int
        The phase axis.

    Returns
    -------
    (X, Y, Z) float32 array
        In mm.
    """
    places = np.indices(grid.shape, dtype=np.float32)
    places[axis] += first / np.float32(grid.voxel_size[axis])
    shown: NDArray[np.float32] = ndimage.map_coordinates(then, places, order=1, mode="nearest")
    return first + shown


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


def truncated_noise(shape: tuple[int, int, int], kept: float) -> float:
    """Standard deviation of white noise of 1 after `truncate`."""
    return float(np.sqrt(np.prod([_low(shape[axis], kept).mean() for axis in IN_PLANE])))


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
    """Mask of a brain with the errors of automatic masks: too wide or too tight, with a rough edge.

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
