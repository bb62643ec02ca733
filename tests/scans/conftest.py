"""Made-up scans on disk: the signal means nothing, the geometry does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff
from scipy.spatial.transform import Rotation


@dataclass(frozen=True)
class Scan:
    """Intensities (X, Y, Z, N), their affine, b-values (N,) and directions in the world (N, 3)."""

    data: np.ndarray
    affine: np.ndarray
    b_values: np.ndarray
    directions: np.ndarray

    def reoriented(self, axes, signs) -> Scan:
        """Store the same scan with its voxel axes permuted and flipped."""
        orientation = np.stack([axes, signs], axis=1)
        return replace(
            self,
            data=apply_orientation(self.data, orientation),
            affine=self.affine @ inv_ornt_aff(orientation, self.data.shape[:3]),
        )

    def table(self, frame) -> np.ndarray:
        """Components of the directions in a frame, (N, 3), from the definition of the frame."""
        if frame == "world":
            return self.directions
        image_axes = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        components = np.stack([self.directions @ axis for axis in image_axes.T], axis=1)
        if frame == "fsl" and np.linalg.det(self.affine[:3, :3]) > 0:
            components[:, 0] = -components[:, 0]
        return components

    def write(self, folder, frame="fsl", name="dwi.nii.gz", image_class=nib.Nifti2Image) -> Path:
        """Write image, bval and bvec; NIfTI-2 keeps the affine in float64."""
        path = Path(folder) / name
        stem = name.removesuffix(".gz").removesuffix(".nii")
        image = image_class(self.data, self.affine)
        image.header.set_xyzt_units("mm", "sec")
        image.to_filename(path)
        np.savetxt(path.with_name(f"{stem}.bval"), self.b_values[None], fmt="%.17g")
        np.savetxt(path.with_name(f"{stem}.bvec"), self.table(frame).T, fmt="%.17g")
        return path


@pytest.fixture(scope="session")
def make_scan():
    """Make a scan: two b0, three directions at b=1000, two at b=2000, in mixed order."""

    def make(seed=0, shape=(4, 3, 2), affine=None) -> Scan:
        rng = np.random.default_rng(seed)
        if affine is None:
            rotation = Rotation.from_quat(rng.normal(size=4)).as_matrix()
            affine = np.eye(4)
            affine[:3, :3] = rotation * rng.uniform(0.5, 5.0, size=3)
            affine[:3, 3] = rng.uniform(-100, 100, size=3)
        b_values = np.array([1000.0, 0.0, 2000.0, 1005.0, 5.0, 999.0, 2000.0])
        directions = rng.normal(size=(7, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        directions[1] = 0
        data = rng.integers(1, 4000, size=(*shape, 7)).astype(np.uint16)
        return Scan(data, np.asarray(affine, dtype=float), b_values, directions)

    return make


@pytest.fixture
def scan(make_scan) -> Scan:
    """One of them, oblique."""
    return make_scan()
