"""Registration of a real head to an anatomy: the position in the anatomy of every voxel.

A scan of the anatomy is simulated with the gradient table of the head and without noise.  For both
scans, fractional anisotropy and mean diffusivity are combined into one map, in which white matter,
grey matter and fluid have the same order for any scanner.  dipy registers the maps: on voxels
of 6 mm by mutual information (translation, rigid, affine), and on voxels of 3 mm by
cross-correlation (SyN: Avants et al., Medical Image Analysis 12:26-41, 2008).
"""

from __future__ import annotations

import numpy as np
from dipy.align.imaffine import (
    AffineRegistration,
    MutualInformationMetric,
    transform_centers_of_mass,
)
from dipy.align.imwarp import SymmetricDiffeomorphicRegistration
from dipy.align.metrics import CCMetric
from dipy.align.transforms import AffineTransform3D, RigidTransform3D, TranslationTransform3D
from nibabel.affines import apply_affine
from numpy.typing import NDArray

from tripq.scans import DWI
from tripq.scans.tensor import tensor_maps
from tripq.simulate.anatomy import Anatomy, resample_map
from tripq.simulate.grid import Grid, interpolate
from tripq.simulate.scan import Heterogeneity, simulate_scan
from tripq.simulate.tables import GradientTable

VOXEL_SIZE = 3.0
"""Edge of the voxels of the registration in mm."""

_COARSE = 6.0  # mm, for the affine part
_MARGIN = 15.0  # mm of empty space around the head
_STARTS = (-40.0, -20.0, 0.0, 20.0, 40.0)  # mm along z: a slab can show any part of a head
_TISSUE, _FLUID = 0.6e-3, 3.0e-3  # mean diffusivities in mm2/s


def register_anatomy(anatomy: Anatomy, dwi: DWI) -> NDArray[np.float32]:
    """Points of an anatomy at the voxels of a real head.

    Parameters
    ----------
    anatomy : Anatomy
        Of any voxel size; 3 mm is enough.
    dwi : DWI
        The head, with a mask of its brain, or a slab of it.

    Returns
    -------
    (V, 3) float32 array
        World coordinates of the anatomy in mm; far outside the anatomy where a voxel has no
        counterpart.
    """
    quiet = Heterogeneity(stick_fraction=0, axial_diffusivity=0, gm_diffusivity=0, gain_sd=0)
    table = GradientTable.from_q(dwi.q)
    template = simulate_scan(
        anatomy, table, 0, snr=np.inf, deformation=0.0, heterogeneity=quiet
    ).dwi

    affine = _affine(dwi, template)

    fixed_grid, moving_grid = _grid(dwi, VOXEL_SIZE), _grid(template, VOXEL_SIZE)
    fixed, moving = _contrast(dwi, fixed_grid), _contrast(template, moving_grid)
    # what lies beyond the field of view of a slab has no counterpart
    at_head = apply_affine(np.linalg.inv(affine), moving_grid.points())
    moving *= _within(dwi, at_head).reshape(moving.shape)
    syn = SymmetricDiffeomorphicRegistration(CCMetric(3, radius=3), level_iters=[40, 30, 10])
    syn.verbosity = 0
    warp = syn.optimize(
        fixed,
        moving,
        static_grid2world=fixed_grid.affine,
        moving_grid2world=moving_grid.affine,
        prealign=affine,
    )

    at = fixed_grid.to_voxels(dwi.voxel_centres())
    coordinates = moving_grid.points().astype(np.float32).T.reshape(3, *moving_grid.shape)
    points = np.stack([interpolate(warp.transform(axis), at) for axis in coordinates], axis=1)
    inside = interpolate(warp.transform(np.ones(moving_grid.shape, np.float32)), at) > 0.99
    points[~inside] = coordinates.max() + 1000.0
    return points


def _grid(dwi: DWI, voxel_size: float) -> Grid:
    """Grid along the axes of the world that holds a head."""
    lattice = Grid((1, 1, 1), np.diag([voxel_size] * 3 + [1.0]))
    return lattice.covering(dwi.voxel_centres(), _MARGIN)


def _contrast(dwi: DWI, grid: Grid) -> NDArray[np.float32]:
    """From 0 outside the mask over fluid and grey matter to 1, on a grid."""
    fa, md = tensor_maps(dwi)
    solid = np.clip((_FLUID - md) / (_FLUID - _TISSUE), 0, 1)
    x, y, z = dwi.mask.shape
    return resample_map(dwi.volume((solid + fa) / 2), Grid((x, y, z), dwi.affine), grid)


def _within(dwi: DWI, points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether points (N, 3) are in the field of view."""
    voxels = apply_affine(np.linalg.inv(dwi.affine), points)
    return ((voxels > -0.5) & (voxels < np.array(dwi.mask.shape) - 0.5)).all(axis=1)


def _affine(dwi: DWI, template: DWI) -> NDArray[np.float64]:
    """From the head to the anatomy, in world coordinates, by mutual information."""
    fixed_grid, moving_grid = _grid(dwi, _COARSE), _grid(template, _COARSE)
    fixed, moving = _contrast(dwi, fixed_grid), _contrast(template, moving_grid)
    seen = _within(dwi, fixed_grid.points()).reshape(fixed.shape)
    registration = AffineRegistration(
        metric=MutualInformationMetric(), level_iters=[100], sigmas=[0.0], factors=[1], verbosity=0
    )
    options = {
        "static_grid2world": fixed_grid.affine,
        "moving_grid2world": moving_grid.affine,
        "static_mask": seen.astype(np.int32),
        "ret_metric": True,
    }
    centre = transform_centers_of_mass(fixed, fixed_grid.affine, moving, moving_grid.affine).affine
    best, lowest = centre, np.inf
    for start in _STARTS:
        affine = centre.copy()
        affine[2, 3] += start
        for kind in (TranslationTransform3D(), RigidTransform3D()):
            found, _, value = registration.optimize(
                fixed, moving, kind, None, starting_affine=affine, **options
            )
            affine = found.affine
        if value < lowest:
            best, lowest = affine, value
    found, _, _ = registration.optimize(
        fixed, moving, AffineTransform3D(), None, starting_affine=best, **options
    )
    return found.affine
