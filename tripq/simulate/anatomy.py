"""Anatomy of simulated heads: tissue fractions and fibre directions."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from itertools import product
from os import PathLike
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import ndimage

from tripq.scans import DWIError
from tripq.scans.nifti import open_nifti
from tripq.simulate.errors import SimulationError
from tripq.simulate.fibres import estimate_fibres
from tripq.simulate.grid import Grid, interpolate, nearest

VENTRICLE_DEPTH = 25.0
"""Fluid at least this far below the surface of the brain, in mm, is in ventricles.

In the ICBM152 template it is the lateral and third ventricles and the cisterns between them, 29 ml.
"""

PEAK_COHERENCE = 0.75
"""Share of the white matter that runs along the peaks of a file; the rest is dispersed evenly.

Chosen so that fractional anisotropies with the peaks of the HCP1065 template spread as in real
scans.
"""

AIR = 10
"""Voxels of 1 mm around the brain of the template: averages over 5 mm do not reach further."""

CRISPNESS = 1.5
"""Power of the tissue probabilities of the template, which undoes the blur of averaging heads.

Chosen so that mean diffusivities spread in simulated brains as they do in real ones.
"""


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Tissue fractions and fibre directions of a head, on a grid.

    Parameters
    ----------
    wm, gm, csf : (X, Y, Z) float32 array
        Fractions of white matter, grey matter and cerebrospinal fluid, between 0 and 1.
    mask : (X, Y, Z) bool array
        Voxels to simulate: the brain, or a part of it.
    directions : (X, Y, Z, K, 3) float32 array
        Directions of up to K fibres per voxel, in world axes (RAS+): unit vectors, or zeros for
        missing fibres. K is 3 at most.
    weights : (X, Y, Z, K) float32 array
        Share of the white matter along each direction. The rest is dispersed evenly over all
        directions.
    affine : (4, 4) float64 array
        From voxel indices to world coordinates in mm.

    Raises
    ------
    SimulationError
        If shapes do not agree, a fraction or weight is outside [0, 1], or the mask is empty.
    DWIError
        If the affine is singular or sheared.
    """

    wm: NDArray[np.float32]
    gm: NDArray[np.float32]
    csf: NDArray[np.float32]
    mask: NDArray[np.bool_]
    directions: NDArray[np.float32]
    weights: NDArray[np.float32]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        shape, fibres = self.mask.shape, self.weights.shape[-1]
        expected = {
            "wm": shape,
            "gm": shape,
            "csf": shape,
            "directions": (*shape, fibres, 3),
            "weights": (*shape, fibres),
            "affine": (4, 4),
        }
        for name, wanted in expected.items():
            if getattr(self, name).shape != wanted:
                raise SimulationError(
                    f"{name} has shape {getattr(self, name).shape}; a mask of shape {shape} and "
                    f"{fibres} fibres per voxel need {wanted}."
                )
        if fibres > 3:
            raise SimulationError(f"{fibres} fibres per voxel; 3 at most are simulated.")
        if not self.mask.any():
            raise SimulationError("the mask is empty: there is no voxel to simulate.")
        fractions = {"wm": self.wm, "gm": self.gm, "csf": self.csf, "weights": self.weights}
        for name, values in fractions.items():
            if not (values.min() >= 0 and values.max() <= 1):
                raise SimulationError(
                    f"{name} must be between 0 and 1, not between {values.min():g} and "
                    f"{values.max():g}."
                )
        if self.weights.sum(axis=-1).max() > 1 + 1e-5:
            raise SimulationError("the weights of the fibres of a voxel add up to more than 1.")
        if not (self.wm + self.gm + self.csf)[self.mask].all():
            raise SimulationError("the mask holds voxels without tissue or fluid.")

    @cached_property
    def grid(self) -> Grid:
        """The grid of the maps."""
        x, y, z = self.mask.shape
        return Grid((x, y, z), self.affine)

    @cached_property
    def brain(self) -> NDArray[np.bool_]:
        """Voxels of the head, (X, Y, Z), whether they are in the mask or not."""
        return self.wm + self.gm + self.csf > 0.5

    @cached_property
    def centre(self) -> NDArray[np.float64]:
        """Centre of the brain in world coordinates, (3,), in mm."""
        return apply_affine(self.affine, np.argwhere(self.brain).mean(axis=0))

    @cached_property
    def ventricle_distance(self) -> NDArray[np.float32]:
        """Distance to the nearest ventricle in mm, (X, Y, Z); infinite where there is none."""
        size = self.grid.voxel_size
        depth = ndimage.distance_transform_edt(np.pad(self.brain, 1), sampling=size)
        ventricles = (self.csf > 0.5) & (depth[1:-1, 1:-1, 1:-1] > VENTRICLE_DEPTH)
        if not ventricles.any():
            return np.full(self.mask.shape, np.inf, dtype=np.float32)
        return ndimage.distance_transform_edt(~ventricles, sampling=size).astype(np.float32)

    def within(self, lower: Sequence[float], upper: Sequence[float]) -> Anatomy:
        """Return the same anatomy with its mask cut to a box: a smaller, quicker simulation.

        Parameters
        ----------
        lower, upper : (3,) sequence of float
            Corners of the box in world coordinates, in mm.

        Returns
        -------
        Anatomy
            Tissue beyond the mask remains but is not scanned.
        """
        points = self.grid.points()
        inside = ((points >= lower) & (points <= upper)).all(axis=1)
        return replace(self, mask=self.mask & inside.reshape(self.mask.shape))

    def __repr__(self) -> str:
        size = " x ".join(f"{edge:.3g}" for edge in self.grid.voxel_size)
        return f"Anatomy({np.count_nonzero(self.mask):,} voxels of {size} mm)"


@lru_cache(maxsize=4)
def default_anatomy(voxel_size: float | tuple[float, float, float] = 2.0) -> Anatomy:
    """Anatomy of the ICBM152 template, with fibre directions estimated from it.

    White- and grey-matter maps are those of the ICBM152 2009a symmetric template (Fonov et al.,
    NeuroImage 54:313-327, 2011) included in nilearn; nothing is downloaded. Cerebrospinal fluid is
    the rest of the brain mask. For the fibres see `tripq.simulate.fibres`: they are a surrogate.

    Parameters
    ----------
    voxel_size : float or (float, float, float), optional
        Edge of the voxels in mm, along x, y and z where they differ; from 1 to 5.

    Returns
    -------
    Anatomy
        On a grid with axes along x, y and z. The last four sizes asked for are kept in memory.

    Raises
    ------
    SimulationError
        If nilearn is missing, or the voxel size is outside its range.
    """
    edges = np.broadcast_to(np.asarray(voxel_size, dtype=np.float64), (3,))
    if not ((edges >= 1) & (edges <= 5)).all():
        raise SimulationError(f"voxel_size={voxel_size} mm must be between 1 and 5 mm.")
    template = _read_template()
    inside = apply_affine(template.grid.affine, np.argwhere(template.brain)[::97])  # for the extent
    lattice = Grid((1, 1, 1), np.diag([*edges, 1.0]))
    grid = lattice.covering(inside, margin=2 * float(edges.max()))
    share, white, grey = (
        resample_map(volume, template.grid, grid)
        for volume in (template.brain, template.wm, template.gm)
    )
    # 152 brains, averaged: powers make the average as crisp as one brain
    fluid = np.clip(share - white - grey, 0.0, 1.0)
    powers = np.stack([white, grey, fluid]) ** CRISPNESS
    white, grey, fluid = powers * share / np.maximum(powers.sum(axis=0), 1e-6)
    directions, weights = estimate_fibres(white, grey, grid)
    anatomy = Anatomy(white, grey, fluid, share >= 0.5, directions, weights, grid.affine)
    for field in fields(anatomy):
        getattr(anatomy, field.name).flags.writeable = False  # it is cached, so others hold it too
    return anatomy


@dataclass(frozen=True, eq=False)
class _Template:
    """The ICBM152 template: its brain (X, Y, Z), and white and grey matter in it, as float32."""

    brain: NDArray[np.bool_]
    wm: NDArray[np.float32]
    gm: NDArray[np.float32]
    grid: Grid


@lru_cache(maxsize=1)
def _read_template() -> _Template:
    """Read the template at 1 mm, without most of the air around it.

    It is kept: to read it takes longer than all else of an anatomy, of whatever size of voxels.
    """
    try:
        from nilearn import datasets
    except ImportError as error:
        raise SimulationError(
            "the default anatomy is the template shipped with nilearn, which is not installed: "
            "pip install 'tripq[ms]', or read another anatomy with read_anatomy."
        ) from error
    image = datasets.load_mni152_brain_mask(resolution=1)
    inside = ndimage.find_objects(np.asarray(image.dataobj))[0]
    box = tuple(slice(max(0, axis.start - AIR), axis.stop + AIR) for axis in inside)
    mask = image.slicer[box]
    # the mask ends at the edge of the grey matter; a scan shows a rim of fluid around it
    brain = ndimage.binary_dilation(ndimage.binary_fill_holes(mask.dataobj))
    wm, gm = (
        np.where(brain, load(resolution=1).get_fdata(dtype=np.float32)[box], np.float32(0))
        for load in (datasets.load_mni152_wm_template, datasets.load_mni152_gm_template)
    )
    return _Template(brain, wm, gm, Grid(mask.shape, mask.affine))


def read_anatomy(
    wm: str | PathLike[str],
    gm: str | PathLike[str],
    csf: str | PathLike[str],
    peaks: str | PathLike[str],
    mask: str | PathLike[str],
) -> Anatomy:
    """Anatomy from NIfTI files, all on one grid.

    Parameters
    ----------
    wm, gm, csf : path
        Tissue fractions: (X, Y, Z), from 0 to 1, or uint8 with 255 for 1.
    peaks : path
        Fibre directions: (X, Y, Z, 3 K), x, y and z of up to three peaks in world axes (RAS+), as
        MRtrix writes them. A longer peak is a stronger fibre. Only the ratios of lengths in a voxel
        are used: anisotropies such as QA are no volume fractions.
    mask : path
        Voxels to simulate: (X, Y, Z), not 0 inside.

    Returns
    -------
    Anatomy

    Raises
    ------
    SimulationError
        If a file cannot be read, or the files do not share one grid; the message names the file.
    """
    files = {"wm": wm, "gm": gm, "csf": csf, "peaks": peaks, "mask": mask}
    images = {name: _load(Path(path)) for name, path in files.items()}
    affine, shape = images["mask"].affine, images["mask"].shape
    for name, image in images.items():
        wanted = (*shape[:3], image.shape[-1]) if name == "peaks" else shape
        if image.shape != wanted or not np.allclose(image.affine, affine, atol=1e-4):
            raise SimulationError(
                f"{files[name]}: not on the grid of {mask}: shape {image.shape} instead of "
                f"{wanted}, or another affine."
            )
    if images["peaks"].ndim != 4 or images["peaks"].shape[3] not in (3, 6, 9):
        raise SimulationError(
            f"{peaks}: shape {images['peaks'].shape}; one to three peaks need (X, Y, Z, 3, 6 or 9)."
        )
    vectors = _values(images["peaks"]).reshape(*shape, -1, 3)
    vectors = np.nan_to_num(vectors, nan=0.0)  # MRtrix writes NaN for missing peaks
    directions, weights = fibres_from_peaks(vectors)
    return Anatomy(
        _fraction(images["wm"]),
        _fraction(images["gm"]),
        _fraction(images["csf"]),
        _values(images["mask"]) != 0,
        directions,
        weights,
        affine,
    )


def fibres_from_peaks(
    peaks: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Directions and weights, as an `Anatomy` has them, of peaks.

    Parameters
    ----------
    peaks : (..., K, 3) float32 array
        Peaks in world axes (RAS+), zeros for missing ones. Only the ratios of the lengths in a
        voxel are used.

    Returns
    -------
    directions : (..., K, 3) float32 array
        Unit vectors, or zeros.
    weights : (..., K) float32 array
        They add up to `PEAK_COHERENCE` where there is a peak.

    Examples
    --------
    >>> directions, weights = fibres_from_peaks(np.array([[0, 0, 3.0], [0, 1, 0]], np.float32))
    >>> directions[0], weights.round(4)
    (array([0., 0., 1.], dtype=float32), array([0.5625, 0.1875], dtype=float32))
    """
    length = np.linalg.norm(peaks, axis=-1)
    total = length.sum(axis=-1, keepdims=True)
    return (
        peaks / np.where(length > 0, length, np.float32(1))[..., None],
        np.float32(PEAK_COHERENCE) * length / np.where(total > 0, total, np.float32(1)),
    )


def read_coverage(
    path: str | PathLike[str], anatomy: Anatomy, scale: float = 1.0
) -> NDArray[np.float32]:
    """Coverage of a modifier from a NIfTI file of outlines, on the grid of an anatomy.

    Parameters
    ----------
    path : path
        Share of each voxel that is covered: from 0 to 1, or uint8 with 255 for 1; a mask of zeros
        and ones is read as well.
    anatomy : Anatomy
        In the same world coordinates. Its voxels may be of another size.
    scale : float, optional
        Enlarge the outlines by this about the centre of the brain of the anatomy: for those that
        were registered to it rigidly and come from a smaller head.

    Returns
    -------
    (X, Y, Z) float32 array
        On the grid of the anatomy.

    Raises
    ------
    SimulationError
        If the file cannot be read or contains no volume.
    """
    image = _load(Path(path))
    if image.ndim != 3:
        raise SimulationError(f"{path}: shape {image.shape}; a map of coverage is (X, Y, Z).")
    if not scale > 0:
        raise SimulationError(f"scale={scale} must be above 0.")
    x, y, z = image.shape
    enlarge = np.diag([scale, scale, scale, 1.0])
    enlarge[:3, 3] = (1 - scale) * anatomy.centre  # the centre stays where it is
    return _average(_fraction(image), Grid((x, y, z), enlarge @ image.affine), anatomy.grid)


def _load(path: Path) -> nib.Nifti1Image:
    try:
        return open_nifti(path)
    except DWIError as error:
        raise SimulationError(str(error)) from error


def _values(image: nib.Nifti1Image) -> NDArray[np.float32]:
    try:
        return image.get_fdata(dtype=np.float32)
    except (OSError, EOFError, zlib.error) as error:
        raise SimulationError(f"{image.get_filename()}: truncated or damaged: {error}.") from error


def _fraction(image: nib.Nifti1Image) -> NDArray[np.float32]:
    """Values from 0 to 1; the 255 steps of uint8 are scaled."""
    values = _values(image)
    if image.get_data_dtype() == np.uint8 and values.max() > 1:
        values = values / np.float32(255)
    return values


def resample_map(volume: NDArray, source: Grid, target: Grid) -> NDArray[np.float32]:
    """Read a map with values from 0 to 1 on another grid; larger voxels average over their extent.

    Parameters
    ----------
    volume : (X, Y, Z) array
        The map.
    source, target : Grid
        Its grid, and the other one.

    Returns
    -------
    float32 array
        Of the shape of `target`; 0 beyond `source`.
    """
    ratio = target.voxel_size / source.voxel_size.mean()
    # a Gaussian as wide as the voxel, less what the source voxel has blurred already
    blur = np.sqrt(np.clip(ratio**2 - 1, 0, None)) / np.sqrt(8 * np.log(2))
    smooth = ndimage.gaussian_filter(volume.astype(np.float32), blur)
    values = interpolate(smooth, source.to_voxels(target.points()))
    return np.clip(values, 0.0, 1.0).reshape(target.shape)


def _average(volume: NDArray[np.float32], source: Grid, target: Grid) -> NDArray[np.float32]:
    """Mean of a map over the extent of each voxel of another grid.

    Outlines keep their edges; the blur of `resample_map` would remove outlines as small as a voxel.
    """
    centres = apply_affine(source.affine, np.argwhere(volume))
    near = np.zeros(target.shape, dtype=bool)
    near[nearest(target.shape, target.to_voxels(centres))] = True
    reach = np.ceil(source.voxel_size.max() / target.voxel_size.min() / 2).astype(int) + 1
    near = ndimage.binary_dilation(near, np.ones((3, 3, 3), dtype=bool), iterations=reach)
    voxels = np.argwhere(near)  # (N, 3); all others are 0
    total = np.zeros(len(voxels), dtype=np.float32)
    # points no farther from each other than half a voxel of the source
    samples = int(np.ceil(2 * target.voxel_size.max() / source.voxel_size.min() - 1e-6))
    steps = (np.arange(samples) + 0.5) / samples - 0.5
    x, y, z = source.shape
    padded = np.zeros((x + 2, y + 2, z + 2), dtype=volume.dtype)  # beyond the grid is nothing
    padded[1:-1, 1:-1, 1:-1] = volume
    for offset in product(steps, repeat=3):
        at = source.to_voxels(apply_affine(target.affine, voxels + np.array(offset)))
        total += padded[nearest((x + 2, y + 2, z + 2), at + 1)]
    average = np.zeros(target.shape, dtype=np.float32)
    average[near] = total / samples**3
    return average
