"""Constrained spherical deconvolutions of dipy and of tripq, and how they are tuned."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import product

import numpy as np
import torch
from dipy.data import get_sphere
from dipy.reconst.csdeconv import ConstrainedSphericalDeconvModel, response_from_mask_ssst
from numpy.typing import NDArray
from signal_study.rivals import MPPCA
from study.gradients import dipy_table

from tripq.scans import DWI
from tripq.scans.response import FLUID, RESPONSE_VOXELS, scale_by_response
from tripq.scans.tensor import tensor_maps
from tripq.so3.deconvolution import Deconvolution as Ridge
from tripq.so3.fit import harmonics_at
from tripq.so3.mrtrix import ORTHONORMAL

ORDERS = (4, 6, 8)
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)
THRESHOLDS = (0.0, 0.1, 0.3, 0.6)

PATCH_RADII = (1, 2)
"""Of MP-PCA, in voxels."""

RIDGES = (1e-9, 1e-8, 1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)


@dataclass(frozen=True)
class Deconvolution:
    """Constrained spherical deconvolution of the signal as measured.

    Parameters
    ----------
    order : int
        Highest of the harmonics; may have more coefficients than there are directions.
    penalty, threshold : float
        ``lambda_`` and ``tau`` of dipy: weight of the negative lobes, and amplitude below which a
        value is taken for one, relative to the mean.
    """

    order: int
    penalty: float = 1.0
    threshold: float = 0.1

    def model(self, dwi: DWI) -> ConstrainedSphericalDeconvModel:
        """The model of dipy, with the response of a scan itself."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # more coefficients than directions: it is meant
            return ConstrainedSphericalDeconvModel(
                dipy_table(dwi),
                response_of(dwi),
                sh_order_max=self.order,
                lambda_=self.penalty,
                tau=self.threshold,
            )

    def __call__(self, dwi: DWI, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Distributions in some voxels of a scan, (n, C), as of `tripq.so3.mrtrix`."""
        return apply(self.model(dwi), dwi.signal[rows])


@dataclass(frozen=True)
class RidgeDeconvolution:
    """The deconvolution with which networks start, by itself; see `tripq.so3.deconvolution`.

    Parameters
    ----------
    order : int
        Highest of the harmonics.
    penalty : float
        The ridge.
    threshold : float
        Amplitude that values must not fall below: always 0.
    """

    order: int
    penalty: float
    threshold: float = 0.0

    def __call__(self, dwi: DWI, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Distributions in some voxels of a scan, (n, C), as of `tripq.so3.mrtrix`."""
        scaled = scale_by_response(dwi)
        q, signal = torch.from_numpy(scaled.q[1:]), torch.from_numpy(scaled.signal[rows, 1:])
        found: NDArray[np.float32] = Ridge.of(q, self.order, self.penalty)(signal).numpy()
        return found


@dataclass(frozen=True)
class Denoised:
    """A deconvolution after MP-PCA of the whole scan."""

    deconvolution: Deconvolution | RidgeDeconvolution
    patch_radius: int

    def __call__(self, dwi: DWI, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Distributions in some voxels of a scan, (n, C), as of `tripq.so3.mrtrix`."""
        return self.deconvolution(denoised(dwi, self.patch_radius), rows)


@lru_cache(maxsize=1)  # two methods take the same scan, one after the other
def denoised(dwi: DWI, patch_radius: int) -> DWI:
    """A scan after MP-PCA."""
    return replace(dwi, signal=MPPCA(patch_radius)(dwi).astype(np.float32))


def apply(
    model: ConstrainedSphericalDeconvModel, signal: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Fit a model of dipy, and change the basis: coefficients (V, C)."""
    sphere = get_sphere(name="repulsion724")
    odf = model.fit(signal.astype(np.float64)).odf(sphere)
    return (odf @ _to_coefficients(model.sh_order_max).T).astype(np.float32)


@cache
def _to_coefficients(order: int) -> NDArray[np.float64]:
    """Matrix (C, N) from values on the sphere of `apply`."""
    vertices = torch.from_numpy(get_sphere(name="repulsion724").vertices)
    return np.linalg.pinv(harmonics_at(vertices, order).numpy() / ORTHONORMAL)


def response_of(dwi: DWI) -> tuple[NDArray[np.float64], float]:
    """Eigenvalues and b0 of `RESPONSE_VOXELS` of a scan."""
    fa, md = tensor_maps(dwi)
    fa[md > FLUID] = 0
    chosen = np.argsort(-fa, kind="stable")[:RESPONSE_VOXELS]
    data = dwi.signal[chosen][:, None, None].astype(np.float64)
    response, _ = response_from_mask_ssst(dipy_table(dwi), data, np.ones(data.shape[:3], int))
    return response


def all_settings() -> list[Deconvolution]:
    """Settings of dipy's deconvolution to choose from."""
    return [Deconvolution(*one) for one in product(ORDERS, PENALTIES, THRESHOLDS)]


def all_ridges() -> list[RidgeDeconvolution]:
    """Settings of tripq's deconvolution to choose from."""
    return [RidgeDeconvolution(max(ORDERS), one) for one in RIDGES]
