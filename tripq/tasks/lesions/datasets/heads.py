"""Heads for simulation from the sources of the cohort, with real fibres and real lesions."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import replace
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from tripq.scans import voxel_ml
from tripq.scans.nifti import open_nifti, read_volumes
from tripq.simulate import Anatomy, Grid, default_anatomy, fibres_from_peaks, read_coverage
from tripq.simulate.grid import nearest
from tripq.tasks.layout import DatasetError
from tripq.tasks.lesions.datasets.sources import OpenMS

LPS_TO_RAS = np.array([-1, -1, 1], dtype=np.float32)
"""DSI Studio stores directions in LPS axes: left, posterior, superior."""

_FIBRES = 3  # per voxel of a .fib.gz


def read_fibres(path: str | PathLike[str]) -> tuple[NDArray[np.float32], Grid]:
    """Peaks of a ``.fib.gz`` of DSI Studio, a gzipped MATLAB file of version 4.

    Parameters
    ----------
    path : path
        File with a table of directions ``odf_vertices`` (3, N), and for each of three fibres its
        index ``index0`` in the table and its quantitative anisotropy ``fa0``; ``trans`` is the
        transposed affine.

    Returns
    -------
    peaks : (X, Y, Z, 3, 3) float32 array
        Three fibres as vectors in world axes (RAS+), with their anisotropy as length; zeros for
        missing fibres.
    grid : Grid
        Grid of the voxels.

    Raises
    ------
    DatasetError
        If the file does not have this format; the message names it.
    """
    try:
        with gzip.open(path) as file:
            stored: dict[str, Any] = loadmat(file)  # type: ignore[arg-type]  # it accepts files
    except (OSError, EOFError, ValueError, TypeError, zlib.error, NotImplementedError) as error:
        raise DatasetError(f"{path}: cannot be read as a gzipped MATLAB file: {error}") from error
    try:
        x, y, z = stored["dimension"].ravel().tolist()
        vertices = stored["odf_vertices"].T * LPS_TO_RAS  # (N, 3)
        peaks = np.empty((x, y, z, _FIBRES, 3), np.float32)
        for fibre in range(_FIBRES):
            # MATLAB stores arrays in column-major order
            place, length = (
                stored[f"{name}{fibre}"].reshape((x, y, z), order="F") for name in ("index", "fa")
            )
            peaks[..., fibre, :] = vertices[place] * length[..., None]
        return peaks, Grid((x, y, z), stored["trans"].T.astype(np.float64))
    except (KeyError, IndexError, ValueError) as error:
        raise DatasetError(f"{path}: not a fibre template: {error}") from error


def cohort_anatomy(
    fibres: str | PathLike[str], voxel_size: float | tuple[float, float, float] = 2.0
) -> Anatomy:
    """Anatomy of the ICBM152 template with the fibres of a file instead of estimated fibres.

    Parameters
    ----------
    fibres : path
        A ``.fib.gz`` file; see `read_fibres`.
    voxel_size : float or (float, float, float), optional
        Edge of the voxels in mm, along x, y and z where they differ; from 1 to 5.

    Returns
    -------
    Anatomy
        Each voxel has the fibres of the nearest voxel of the file, or none outside the grid of the
        file.
    """
    peaks, source = read_fibres(fibres)
    anatomy = default_anatomy(voxel_size)
    voxels = source.to_voxels(anatomy.grid.points())
    seen = peaks[nearest(source.shape, voxels)]
    beyond = (voxels < -0.5) | (voxels > np.array(source.shape) - 0.5)
    seen[beyond.any(axis=1)] = 0
    directions, weights = fibres_from_peaks(seen.reshape(*anatomy.mask.shape, _FIBRES, 3))
    return replace(anatomy, directions=directions, weights=weights)


def brain_scale(brain: str | PathLike[str], anatomy: Anatomy) -> float:
    """Scale factor from a patient's brain to the brain of the anatomy.

    Parameters
    ----------
    brain : path
        Mask of the patient's brain, at any position.
    anatomy : Anatomy
        Anatomy for the comparison.

    Returns
    -------
    float
        Cube root of the ratio of volumes, a factor of lengths.

    Raises
    ------
    DatasetError
        If the mask is empty or not a single volume.
    tripq.scans.DWIError
        If the file cannot be read.
    """
    path = Path(brain)
    image = open_nifti(path)
    if prod(image.shape[3:]) != 1:
        raise DatasetError(f"{path}: shape {image.shape}; a mask is (X, Y, Z).")
    (volume,) = read_volumes(image, path)
    own = np.count_nonzero(volume > 0) * voxel_ml(image.affine)
    if own == 0:
        raise DatasetError(f"{path}: the mask of the brain is empty.")
    template = np.count_nonzero(anatomy.brain) * voxel_ml(anatomy.grid.affine)
    return float(np.cbrt(template / own))


def lesion_coverage(sources: OpenMS, patient: str, anatomy: Anatomy) -> NDArray[np.float32]:
    """A patient's lesions in the anatomy.

    The outlines were registered rigidly, and brains kept their sizes.  The outlines are therefore
    scaled about the centre of the brain of the anatomy by `brain_scale`.  The lesion fraction of a
    voxel is limited by its tissue: outlines over a ventricle are cropped.

    Parameters
    ----------
    sources : OpenMS
        The source files.
    patient : str
        One of `OpenMS.patients`.
    anatomy : Anatomy
        Anatomy that defines the grid.

    Returns
    -------
    (X, Y, Z) float32 array
        Lesion fraction of each voxel.
    """
    scale = brain_scale(sources.brain(patient), anatomy)
    coverage = read_coverage(sources.lesions(patient), anatomy, scale)
    return np.minimum(coverage, np.clip(1 - anatomy.csf, 0, 1))
