"""The same head scanned again: how well two maps agree after rigid registration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from dipy.align.imaffine import (
    AffineRegistration,
    MutualInformationMetric,
    transform_centers_of_mass,
)
from dipy.align.transforms import RigidTransform3D, TranslationTransform3D
from nibabel.affines import apply_affine
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import map_coordinates

from tripq.scans import DWI


@dataclass(frozen=True)
class Repeat:
    """Agreement of the maps of two scans of one head.

    Parameters
    ----------
    head, again : str
        Names of the scans.
    says : str
        What differs.
    angle : float
        Rotation between the scans in degrees.
    correlation : float
        Of the logits, over the voxels that both scans show.
    """

    head: str
    again: str
    says: str
    angle: float
    correlation: float


def rigid(fixed: DWI, moving: DWI) -> NDArray[np.float64]:
    """World coordinates of the moving scan from those of the fixed one, a (4, 4) affine.

    The b0 images within their masks are registered by mutual information.
    """
    images = [dwi.volume(np.log(dwi.b0)) * dwi.mask for dwi in (fixed, moving)]
    registration = AffineRegistration(
        metric=MutualInformationMetric(nbins=32), level_iters=[500, 100, 50], verbosity=0
    )
    grids = {"static_grid2world": fixed.affine, "moving_grid2world": moving.affine}
    start = transform_centers_of_mass(images[0], fixed.affine, images[1], moving.affine).affine
    for transform in (TranslationTransform3D(), RigidTransform3D()):
        start = registration.optimize(
            *images, transform, None, starting_affine=start, **grids
        ).affine
    return np.asarray(start, dtype=np.float64)


def agreement(fixed: DWI, logit: ArrayLike, moving: DWI, again: ArrayLike) -> tuple[float, float]:
    """Angle of the head between two scans in degrees, and correlation of their logits.

    Parameters
    ----------
    fixed, moving : DWI
        The scans.
    logit, again : array-likes of shape (V,)
        Of their voxels.
    """
    affine = rigid(fixed, moving)
    voxels = apply_affine(np.linalg.inv(moving.affine) @ affine, fixed.voxel_centres()).T
    values, share = (
        map_coordinates(moving.volume(np.asarray(v, np.float64)), voxels, order=1, cval=0.0)
        for v in (again, np.ones(len(moving.b0)))
    )
    both = share > 0.99
    angle = np.degrees(np.arccos(np.clip((np.trace(affine[:3, :3]) - 1) / 2, -1, 1)))
    return float(angle), float(np.corrcoef(np.asarray(logit)[both], values[both])[0, 1])
