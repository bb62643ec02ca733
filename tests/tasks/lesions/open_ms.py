"""Made-up sources of the open cohort, small enough for tests."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.io import savemat


def write_sources(
    folder: Path,
    lesions: Mapping[str, tuple[float, float, float]],
    radius: float = 60,
    edge: float = 1,
) -> None:
    """Patients with round brains of a radius and a lesion each, given by its centre, all in mm.

    The real masks have voxels of 1 mm; larger ones take less time.
    """
    (folder / "open_ms").mkdir(parents=True)
    for patient, centre in lesions.items():
        brain, lesion = (
            folder / f"open_ms/patient{patient}_{name}.nii.gz"
            for name in ("brainmask", "lesions_MNIrigid_1mm")
        )
        write_ball(brain, (0, -20, 10), radius, edge)
        write_ball(lesion, centre, 7, edge)
    write_fibres(folder / "ICBM152_adult.fib.gz")


def write_ball(
    path: Path, centre: tuple[float, float, float], radius: float, edge: float = 1
) -> None:
    """Write a mask, stored from right to left as the real ones are."""
    affine = np.diag([-edge, edge, edge, 1.0])
    affine[:3, 3] = 70, -90, -50
    x, y, z = np.ogrid[:140:edge, :140:edge, :120:edge]
    distance = np.hypot(np.hypot(70 - x - centre[0], y - 90 - centre[1]), z - 50 - centre[2])
    nib.Nifti1Image((distance < radius).astype(np.uint8), affine).to_filename(path)


def write_fibres(path: Path, shape: tuple[int, int, int] = (80, 100, 80)) -> None:
    """Write a template in which the first fibre runs along (0.6, 0.8, 0) of LPS."""
    vertices = np.float32([[1, 0, 0], [0.6, 0.8, 0], [0, 0, 1]]).T
    affine = np.diag([-2.0, -2.0, 2.0, 1.0])
    affine[:3, 3] = 79.5, 81.5, -72
    first = np.ones(shape, np.int16)
    first[3, 2, 1] = 2  # and up
    by_slice = (shape[0] * shape[1], shape[2])
    tables = {f"fa{i}": np.full(by_slice, qa, np.float32) for i, qa in enumerate((0.3, 0.1, 0.0))}
    places = {f"index{i}": np.zeros(by_slice, np.int16) for i in (1, 2)}
    content = {
        "dimension": np.int32([shape]),
        "odf_vertices": vertices,
        "trans": affine.T.astype(np.float32),
        "index0": first.reshape(by_slice, order="F"),
        **tables,
        **places,
    }
    with gzip.open(path, "wb", compresslevel=1) as file:
        savemat(file, content, format="4")
