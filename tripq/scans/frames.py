r"""Conversion of gradient directions between their frame and world axes.

World axes are the millimetre axes of the affine (RAS+: x to the right, y to the front, z up). With
:math:`R` the orthogonal part of the affine, a direction :math:`g` of a table is in world axes

* :math:`R F g` for ``"fsl"``, where components are written along the image axes, x negated when
  det(affine) > 0: the bvec files of FSL, of BIDS, of dcm2niix;
* :math:`R g` for ``"voxel"``: along the image axes as they are stored;
* :math:`g` for ``"world"``: along the world axes, as in the tables of MRtrix;

where :math:`F = \mathrm{diag}(-1, 1, 1)` if det(affine) > 0 and the identity otherwise. The rule
for x is that of FSL ("Diffusion data in FSL", https://fsl.fmrib.ox.ac.uk), which BIDS adopts: bvecs
are written as for an image stored in radiological order. No file records its frame, so the caller
must give it.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tripq.scans.errors import DWIError

Frame = Literal["fsl", "voxel", "world"]
"""The axes along which the components of a gradient table are written."""

MAX_SHEAR = 0.01
"""Largest cosine between two voxel axes that still counts as a right angle.

It is 0.6 degrees. A rotation stored in the float32 fields of a NIfTI header stays below 1e-6; an
affine registration written into the header goes above, and no convention defines the gradient
directions then.
"""

MIN_VOLUME = 1e-3
"""Smallest volume spanned by the unit voxel axes of an affine that can be inverted."""


def check_frame(frame: str) -> None:
    """Raise `DWIError` unless `frame` is one of ``"fsl"``, ``"voxel"`` and ``"world"``."""
    if frame not in get_args(Frame):
        raise DWIError(f"frame={frame!r} is unknown: use 'fsl', 'voxel' or 'world'.")


def check_affine(affine: ArrayLike) -> NDArray[np.float64]:
    """Affine from voxel indices to millimetres, checked.

    Parameters
    ----------
    affine : (4, 4) array-like
        From voxel indices to world coordinates in mm.

    Returns
    -------
    (4, 4) float64 array

    Raises
    ------
    DWIError
        If it is not an affine, contains NaN, or maps the grid to a plane, a line or a point.
    """
    array = np.array(affine, dtype=np.float64)
    if array.shape != (4, 4) or not np.array_equal(array[3], [0, 0, 0, 1]):
        raise DWIError(f"the affine must be 4 x 4 with the last row 0 0 0 1, not {array.tolist()}.")
    if not np.isfinite(array).all():
        raise DWIError(f"the affine contains values that are not numbers: {array.tolist()}.")
    with np.errstate(over="ignore"):  # infinite lengths are singular, too
        lengths = np.linalg.norm(array[:3, :3], axis=0)
    if lengths.min() == 0 or abs(np.linalg.det(array[:3, :3] / lengths)) < MIN_VOLUME:
        raise DWIError(
            f"the affine is singular: {array.tolist()}. The orientation in the header is broken; "
            "restore its sform or qform."
        )
    return array


def orthogonal_part(affine: ArrayLike) -> NDArray[np.float64]:
    """Rotation (or rotation with reflection) of an affine, without its voxel sizes.

    The orthogonal matrix nearest to the unit voxel axes, which is the orthogonal factor of their
    polar decomposition (Higham, SIAM J. Sci. Stat. Comput. 7, 1986); NIfTI obtains its quaternions
    in this way.

    Parameters
    ----------
    affine : (4, 4) array-like
        From voxel indices to world coordinates in mm.

    Returns
    -------
    (3, 3) float64 array
        Maps components along the voxel axes to components along the world axes; its determinant has
        the sign of the affine's.

    Raises
    ------
    DWIError
        If the affine is singular, or its axes are not orthogonal (see `MAX_SHEAR`).

    Examples
    --------
    >>> orthogonal_part(np.diag([-2.0, 2.0, 3.5, 1.0]))
    array([[-1.,  0.,  0.],
           [ 0.,  1.,  0.],
           [ 0.,  0.,  1.]])
    """
    matrix = check_affine(affine)[:3, :3]
    axes = matrix / np.linalg.norm(matrix, axis=0)
    cosine = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if cosine > MAX_SHEAR:
        raise DWIError(
            f"the affine is sheared: two voxel axes are {np.degrees(np.arccos(cosine)):.1f} "
            "degrees apart instead of 90, so gradient directions along them are ambiguous. Use the "
            "scan with its original header, or a gradient table in world axes with frame='world'."
        )
    left, _, right = np.linalg.svd(axes)
    return left @ right


def to_world(directions: ArrayLike, affine: ArrayLike, frame: Frame) -> NDArray[np.float64]:
    """Gradient directions in world axes.

    Parameters
    ----------
    directions : (N, 3) array-like
        Components in the given frame.
    affine : (4, 4) array-like
        Of the image, from voxel indices to world coordinates in mm.
    frame : {"fsl", "voxel", "world"}
        See the list at the top of this module.

    Returns
    -------
    (N, 3) float64 array
        Lengths are kept.

    Raises
    ------
    DWIError
        If the frame is unknown, or the affine singular or (unless the frame is ``"world"``)
        sheared.

    Examples
    --------
    The same vector along the first image axis, in an image stored from left to right:

    >>> affine = np.diag([2.0, 2.0, 2.0, 1.0])
    >>> to_world([[1.0, 0.0, 0.0]], affine, "voxel")
    array([[1., 0., 0.]])
    >>> to_world([[1.0, 0.0, 0.0]], affine, "fsl")
    array([[-1.,  0.,  0.]])
    """
    axes, signs = _axes(affine, frame)
    return (np.array(directions, dtype=np.float64) * signs) @ axes.T


def from_world(directions: ArrayLike, affine: ArrayLike, frame: Frame) -> NDArray[np.float64]:
    """Gradient directions from world axes to a frame: the inverse of `to_world`.

    Parameters, errors and the shape of the result are those of `to_world`.

    Examples
    --------
    >>> affine = np.diag([2.0, 2.0, 2.0, 1.0])
    >>> from_world(to_world([[0.6, 0.8, 0.0]], affine, "fsl"), affine, "fsl")
    array([[0.6, 0.8, 0. ]])
    """
    axes, signs = _axes(affine, frame)
    return np.array(directions, dtype=np.float64) @ axes * signs


def _axes(affine: ArrayLike, frame: Frame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit axes of a frame as columns, (3, 3), and the signs of the components along them, (3,)."""
    check_frame(frame)
    signs = np.ones(3)
    if frame == "world":
        check_affine(affine)
        return np.eye(3), signs
    axes = orthogonal_part(affine)
    if frame == "fsl" and np.linalg.det(axes) > 0:
        signs[0] = -1
    return axes, signs
