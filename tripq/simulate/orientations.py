r"""The fibres of simulated tissue as functions on the sphere, and as peaks.

The fibre orientation distribution of a voxel is, with the white-matter fraction w, the share
:math:`\omega` of water, and directions :math:`v_k` with weights :math:`f_k` as in
`tripq.simulate.signal`,

.. math::
    F(u) = w (1 - \omega) \Big[ \sum_k \frac{f_k}{2} (\delta(u - v_k) + \delta(u + v_k))
           + \frac{f_0}{4 \pi} \Big] .

Its integral is the volume of white matter, and one fibre that fills a voxel has the scale that
MRtrix gives it.  Spherical harmonics up to an order are its projection, so that the difference of
two functions on the sphere is that of their coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tripq.simulate.anatomy import Anatomy
from tripq.simulate.fields import random_field
from tripq.simulate.modifier import ReadMap
from tripq.simulate.scan import MODIFIER_STREAMS
from tripq.simulate.signal import Tissue
from tripq.so3.fit import harmonics_at
from tripq.so3.mrtrix import ORTHONORMAL, n_coefficients

WHITE = 0.5
"""Voxels with less white matter have no peaks."""

MOST_PEAKS = 3
"""Fibres of a voxel at most."""


def fibre_odf(tissue: Tissue, order: int = 8) -> NDArray[np.float32]:
    """Fibre orientation distribution of every voxel.

    Parameters
    ----------
    tissue : Tissue
        Of V voxels.
    order : int
        Highest order of the harmonics; even.

    Returns
    -------
    (V, C) float32 array
        Coefficients of e3nn's harmonics, orthonormal; `tripq.so3.mrtrix.to_mrtrix` gives those of
        MRtrix.

    Examples
    --------
    >>> from tripq.simulate import GradientTable, default_anatomy, simulate_scan
    >>> anatomy = default_anatomy(5.0).within((-20, -20, 10), (20, 20, 30))
    >>> scan = simulate_scan(anatomy, GradientTable.from_shells([1000.0], [12]), seed=0)
    >>> fodf = fibre_odf(scan.tissue)
    >>> fodf.shape == (len(scan.dwi.b0), 45)
    True
    >>> bool(np.allclose(fodf[:, 0] * np.sqrt(4 * np.pi), scan.tissue.wm, atol=1e-6))
    True
    """
    white = tissue.wm * (1 - tissue.water)
    odf = np.zeros((len(tissue), n_coefficients(order)), np.float32)
    for fibre in range(tissue.weights.shape[1]):
        along = harmonics_at(torch.from_numpy(tissue.directions[:, fibre]), order).numpy()
        odf += tissue.weights[:, fibre, None] * along
    odf[:, 0] = 1.0  # fibres and what is dispersed add up to all of the white matter
    return (odf * (white / ORTHONORMAL)[:, None]).astype(np.float32)


def fibre_peaks(tissue: Tissue) -> NDArray[np.float32]:
    """Directions of the fibres of every voxel, in world axes, as long as their volume.

    Parameters
    ----------
    tissue : Tissue
        Of V voxels.

    Returns
    -------
    (V, 3, 3) float32 array
        Up to three vectors, the longest first, zeros for missing ones.  Voxels with less than
        `WHITE` white matter have none.
    """
    white = tissue.wm * (1 - tissue.water)
    lengths = tissue.weights * np.where(white < WHITE, 0, white)[:, None]
    order = np.argsort(-lengths, axis=1, kind="stable")
    peaks = np.take_along_axis(lengths[..., None] * tissue.directions, order[..., None], axis=1)
    found = np.zeros((len(tissue), MOST_PEAKS, 3), np.float32)
    found[:, : peaks.shape[1]] = peaks
    return found


@dataclass(frozen=True, eq=False)
class Crossings:
    """Fibres that cross at other angles than those of the anatomy: a `tripq.simulate.Modifier`.

    In `tripq.simulate.default_anatomy` the two fibres of a voxel are at right angles.  All fibres
    of a voxel but the first are turned, by rotations that vary smoothly from place to place.

    Parameters
    ----------
    turns : (X, Y, Z, 3) float32 array
        Rotation vectors, in radians.
    """

    turns: NDArray[np.float32]

    @classmethod
    def draw(
        cls, anatomy: Anatomy, seed: int, *, spread: float = 20.0, scale: float = 15.0
    ) -> Crossings:
        """Draw rotations.

        Parameters
        ----------
        anatomy : Anatomy
            The head.
        seed : int
            Of the rotations; independent of the head of the same seed.
        spread : float
            Standard deviation of each component of the rotation vectors, in degrees.  Where two
            fibres were at right angles, the angle at which they cross changes by as much.
        scale : float
            Length in mm over which they vary.
        """
        child = np.random.SeedSequence(seed).spawn(MODIFIER_STREAMS)[0]
        rng = np.random.default_rng(child)
        fields = [random_field(anatomy.grid, scale, rng) for _ in range(3)]
        return cls(np.float32(np.radians(spread)) * np.stack(fields, axis=-1))

    @property
    def coverage(self) -> NDArray[np.float32]:
        """Every voxel is changed, (X, Y, Z)."""
        return np.ones(self.turns.shape[:3], np.float32)

    def change(self, tissue: Tissue, read: ReadMap) -> Tissue:
        """Turn the fibres of a scan, see `tripq.simulate.Modifier.change`."""
        vectors = np.stack([read(self.turns[..., axis]) for axis in range(3)], axis=1)
        matrices = Rotation.from_rotvec(vectors).as_matrix()
        directions = tissue.directions.copy()
        directions[:, 1:] = directions[:, 1:] @ np.swapaxes(matrices, 1, 2)
        return replace(tissue, directions=directions)
