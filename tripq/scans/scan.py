"""A diffusion scan in memory: the signal of the voxels of a mask, with its geometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from tripq.scans.errors import DWIError
from tripq.scans.shells import LIKE_B, SHELL_TOLERANCE, Shell, find_shells

if TYPE_CHECKING:
    from tripq.scans.response import Response

B_REFERENCE = 1000.0
"""The b-value, in s/mm2, whose q-vectors have length 1: the most common shell in clinical scans."""


def voxel_ml(affine: NDArray[np.floating]) -> float:
    """Volume of a voxel in ml, from the affine (4, 4) of its grid in mm; also of a sheared one.

    >>> round(voxel_ml(np.diag([2.0, 2.0, 2.5, 1.0])), 6)
    0.01
    """
    return abs(float(np.linalg.det(affine[:3, :3]))) / 1000


def cubic_edge(affine: NDArray[np.floating]) -> float:
    """Edge in mm of a cube with the volume of a voxel, from the affine (4, 4) of its grid in mm.

    >>> round(cubic_edge(np.diag([2.0, 2.0, 2.5, 1.0])), 3)
    2.154
    """
    return float(np.cbrt(1000 * voxel_ml(affine)))


@dataclass(frozen=True, eq=False, repr=False)
class DWI:
    """Diffusion-weighted signal on the voxels of a mask.

    There are V voxels, in the order of ``np.argwhere(mask)``, and Q samples of q-space: the mean of
    the b0 volumes first, then the diffusion-weighted volumes in the order of the file.

    Parameters
    ----------
    signal : (V, Q) float32 array
        Intensity divided by b0. Column 0 is the sample at q = 0, which is 1 everywhere. (Networks
        that read the contrast of b0 get `b0_contrast` in its place.)
    b_values : (Q,) float64 array
        In s/mm2; the first is 0.
    q : (Q, 3) float64 array
        q-vectors in world axes (the RAS+ millimetre axes of `affine`), without unit:
        ``|q| = sqrt(b / B_REFERENCE)``. The first is 0.
    mask : (X, Y, Z) bool array
        The voxels, on the grid of the scan.
    affine : (4, 4) float64 array
        From voxel indices to world coordinates in mm.
    b0 : (V,) float32 array
        Mean intensity of the b0 volumes.
    header : nibabel.Nifti1Header, optional
        Of the scan; maps are written with its orientation codes and units.
    path : pathlib.Path, optional
        Of the scan.
    notes : tuple of str, optional
        Corrections that the reader made to voxels and intensities.
    shell_tolerance : float, optional
        See `tripq.scans.shells.SHELL_TOLERANCE`.
    b0_volumes : int, optional
        Number of b0 volumes in the mean.
    response : tripq.scans.response.Response, optional
        Response by which `signal` and `q` are scaled; None in a scan as it was read.

    Raises
    ------
    DWIError
        If the shapes do not agree, or column 0 is not the sample at q = 0.

    Examples
    --------
    >>> mask = np.zeros((2, 2, 2), dtype=bool)
    >>> mask[1, 0, 1] = mask[0, 1, 0] = True
    >>> dwi = DWI(
    ...     signal=np.array([[1.0, 0.5, 0.6], [1.0, 0.4, 0.7]], dtype=np.float32),
    ...     b_values=np.array([0.0, 1000.0, 1000.0]),
    ...     q=np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
    ...     mask=mask,
    ...     affine=np.diag([2.0, 2.0, 3.0, 1.0]),
    ...     b0=np.array([310.0, 290.0], dtype=np.float32),
    ... )
    >>> dwi
    DWI(2 voxels of 2 x 2 x 3 mm, 2 directions, shells b=1000 (2))
    >>> dwi.voxel_centres()
    array([[0., 2., 0.],
           [2., 0., 3.]])
    >>> float(dwi.volume(dwi.b0)[1, 0, 1])
    290.0
    """

    signal: NDArray[np.float32]
    b_values: NDArray[np.float64]
    q: NDArray[np.float64]
    mask: NDArray[np.bool_]
    affine: NDArray[np.float64]
    b0: NDArray[np.float32]
    header: nib.Nifti1Header | None = None
    path: Path | None = None
    notes: tuple[str, ...] = ()
    shell_tolerance: float = SHELL_TOLERANCE
    b0_volumes: int = 1
    response: Response | None = None

    def __post_init__(self) -> None:
        if self.mask.ndim != 3 or self.mask.dtype != np.bool_:
            raise DWIError(f"mask: need (X, Y, Z) bool, not {self.mask.shape} {self.mask.dtype}.")
        voxels, samples = int(np.count_nonzero(self.mask)), len(self.b_values)
        expected = {
            "signal": (voxels, samples),
            "b_values": (samples,),
            "q": (samples, 3),
            "affine": (4, 4),
            "b0": (voxels,),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise DWIError(
                    f"{name} has shape {getattr(self, name).shape}; a mask of {voxels} voxels and "
                    f"{samples} b-values need {shape}."
                )
        if samples == 0 or self.b_values[0] != 0 or self.q[0].any():
            raise DWIError("sample 0 must be the one at q = 0, with b = 0.")

    @cached_property
    def shells(self) -> tuple[Shell, ...]:
        """Shells by ascending b-value; their indices are columns of `signal`."""
        return find_shells(self.b_values, self.shell_tolerance)

    @cached_property
    def b0_median(self) -> float:
        """Median of b0 over the mask; 1 without voxels."""
        return float(np.median(self.b0)) if len(self.b0) else 1.0

    @property
    def b0_contrast(self) -> NDArray[np.float32]:
        """b0 divided by its median over the mask, (V,) float32.

        It shows T2, which the signal divided by b0 does not, without the scale of the scanner.
        """
        return self.b0 / np.float32(self.b0_median)

    def shell_near(self, b_value: float) -> Shell:
        """The shell nearest to a b-value in s/mm2.

        Raises
        ------
        DWIError
            If no shell is near it.
        """
        shells = self.shells
        nearest = min(shells, key=lambda shell: abs(shell.b_value - b_value), default=None)
        if nearest is None or abs(nearest.b_value - b_value) > LIKE_B * b_value:
            present = ", ".join(f"{shell.b_value:.0f}" for shell in shells) or "none"
            raise DWIError(
                f"{self.path or 'scan'}: no shell near b={b_value:.0f} s/mm2; there is {present}."
            )
        return nearest

    def with_shells(self, b_values: Sequence[float]) -> DWI:
        """Only b0 and the shells near some b-values, such as those of a training.

        Parameters
        ----------
        b_values : sequence of float
            In s/mm2.

        Returns
        -------
        DWI
            The samples in the same order.

        Raises
        ------
        DWIError
            If there is no shell near one of them.
        """
        kept = np.unique(np.concatenate([[0], *(self.shell_near(b).indices for b in b_values)]))
        left_out = len(self.b_values) - len(kept)
        if not left_out:
            return self
        note = f"Left out {left_out} volumes of other shells."
        return replace(self.with_samples(kept), notes=(*self.notes, note))

    def with_samples(self, kept: NDArray[np.integer]) -> DWI:
        """Only some samples of q-space.

        Parameters
        ----------
        kept : (n,) int array
            Columns of `signal`; the first is 0, that of b0.

        Returns
        -------
        DWI
            The samples in the order of `kept`.
        """
        return replace(
            self, signal=self.signal[:, kept], b_values=self.b_values[kept], q=self.q[kept]
        )

    def with_voxels(self, inside: NDArray[np.bool_]) -> DWI:
        """Only some voxels, on the same grid.

        Parameters
        ----------
        inside : (X, Y, Z) bool array
            Those of the mask that are kept; others of it are of no account.

        Returns
        -------
        DWI
            Its mask is the part of the mask that is inside.

        Raises
        ------
        DWIError
            If `inside` has another shape than the mask.
        """
        if inside.shape != self.mask.shape:
            raise DWIError(f"inside has shape {inside.shape}; the scan has {self.mask.shape}.")
        rows = inside[self.mask]
        kept = self.mask & inside
        return replace(self, signal=self.signal[rows], b0=self.b0[rows], mask=kept)

    @property
    def voxel_size(self) -> NDArray[np.float64]:
        """Edges of a voxel in mm, (3,)."""
        return nib.affines.voxel_sizes(self.affine)

    def voxel_centres(self) -> NDArray[np.float64]:
        """Centres of the voxels in world coordinates, (V, 3), in mm."""
        return nib.affines.apply_affine(self.affine, np.argwhere(self.mask))

    def volume(self, values: ArrayLike, fill: float = 0.0) -> NDArray[Any]:
        """Put one value (or one row of values) per voxel back on the grid.

        Parameters
        ----------
        values : (V, ...) array-like
            In the order of ``np.argwhere(mask)``.
        fill : float, optional
            Value outside the mask.

        Returns
        -------
        (X, Y, Z, ...) array
            Of the type of `values`.

        Raises
        ------
        DWIError
            If there is not one value for every voxel.
        """
        array = np.asarray(values)
        if array.ndim == 0 or len(array) != len(self.b0):
            raise DWIError(f"values has shape {array.shape}; the scan has {len(self.b0)} voxels.")
        grid = np.full(self.mask.shape + array.shape[1:], fill, dtype=array.dtype)
        grid[self.mask] = array
        return grid

    def __repr__(self) -> str:
        name = f"{self.path.name}: " if self.path else ""
        size = " x ".join(f"{edge:.3g}" for edge in self.voxel_size)
        shells = ", ".join(f"b={shell.b_value:.4g} ({len(shell)})" for shell in self.shells)
        return (
            f"DWI({name}{len(self.b0):,} voxels of {size} mm, "
            f"{sum(map(len, self.shells))} directions, shells {shells})"
        )
