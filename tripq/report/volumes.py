"""Volumes inside a page: small NIfTI files as text, for the viewer."""

from __future__ import annotations

import gzip
from base64 import b64encode

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from tripq.scans import DWI

_MARGIN = 1  # voxels around the mask
_WHITEST = 99.5  # percentile of intensities


def embed_intensity(dwi: DWI, values: ArrayLike) -> str:
    """Intensities (V,) in 255 steps from 0 to their 99.5th percentile; what is above is white."""
    intensity = np.asarray(values, dtype=np.float64)
    white = float(np.percentile(intensity, _WHITEST)) or 1.0
    return _embed(dwi, np.clip(intensity / white, 0, 1))


def embed_probability(dwi: DWI, values: ArrayLike) -> str:
    """Probabilities (V,) in 255 steps from 0 to 1."""
    return _embed(dwi, np.asarray(values, dtype=np.float64))


def _embed(dwi: DWI, values: NDArray[np.float64]) -> str:
    """Values from 0 to 1 on the box around the mask: uint8, gzip, base64."""
    found = np.argwhere(dwi.mask)
    low = np.maximum(found.min(axis=0) - _MARGIN, 0)
    high = np.minimum(found.max(axis=0) + 1 + _MARGIN, dwi.mask.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    steps = dwi.volume(np.rint(255 * values).astype(np.uint8))[box]
    affine = dwi.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ low
    image = nib.Nifti1Image(steps, affine)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(1 / 255, 0)
    return b64encode(gzip.compress(image.to_bytes(), mtime=0)).decode()
