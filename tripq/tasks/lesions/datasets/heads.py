"""Heads for simulation from the sources of the cohort: real fibres, real lesions."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import replace
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from tripq.scans.nifti import open_nifti, read_volumes
from tripq.simulate import Anatomy, Grid, default_anatomy, fibres_from_peaks, read_coverage
from tripq.simulate.grid import nearest
from tripq.tasks.lesions.datasets.errors import DatasetError
from tripq.tasks.lesions.datasets.sources import OpenMS

LPS_TO_RAS = np.array([-1, -1, 1], dtype=np.float32)
"""DSI Studio stores directions along axes to the left, to the back (posterior) and up."""

_FIBRES = 3  # per voxel of a .fib.gz


def read_fibres(path: str | PathLike[str]) -> tuple[NDArray[np.float32], Grid]:
    """Peaks of a ``.fib.gz`` of DSI Studio, a gzipped MATLAB file of version 4.

    Parameters
    ----------
    path : path
        With tables of directions ``odf_vertices`` (3, N), and for each of three fibres its place
        ``index0`` in the table and its quantitative anisotropy ``fa0``; ``trans`` is the transposed
        affine.

    Returns
    -------
    peaks : (X, Y, Z, 3, 3) float32 array
        Fibres by x, y, z in world axes (RAS+), as long as their anisotropy; zeros for missing ones.
    grid : Grid
        Of the voxels.

    Raises
    ------
    DatasetError
        If the file cannot be read as such; the message names it.
    """
    try:
        with gzip.open(path) as file:
            stored: dict[str, Any] = loadmat(file)  # type: ignore[arg-type]  # a file will do
    except (OSError, EOFError, ValueError, TypeError, zlib.error, NotImplementedError) as error:
        raise DatasetError(f"{path}: cannot be read as a gzipped MATLAB file: {error}") from error
    try:
        x, y, z = stored["dimension"].ravel().tolist()
        vertices = stored["odf_vertices"].T * LPS_TO_RAS  # (N, 3)
        peaks = np.empty((x, y, z, _FIBRES, 3), np.float32)
        for fibre in range(_FIBRES):
            # MATLAB counts voxels along x first
            place, length = (
                stored[f"{name}{fibre}"].reshape((x, y, z), order="F") for name in ("index", "fa")
            )
            peaks[..., fibre, :] = vertices[place] * length[..., None]
        return peaks, Grid((x, y, z), stored["trans"].T.astype(np.float64))
    except (KeyError, IndexError, ValueError) as error:
        raise DatasetError(f"{path}: not a template of fibres: {error}") from error


def cohort_anatomy(
    fibres: str | PathLike[str], voxel_size: float | tuple[float, float, float] = 2.0
) -> Anatomy:
    """Anatomy of the ICBM152 template with the fibres of a file instead of estimated ones.

    Parameters
    ----------
    fibres : path
        A ``.fib.gz``, see `read_fibres`.
    voxel_size : float or (float, float, float), optional
        Edge of the voxels in mm, along x, y and z where they differ; from 1 to 5.

    Returns
    -------
    Anatomy
        Each voxel has the fibres of the voxel of the file that is nearest to its centre, or none
        beyond the grid of the file.
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
    """Scale from the size of a patient's brain to that of the anatomy.

    Parameters
    ----------
    brain : path
        Mask of the patient's brain, at any position.
    anatomy : Anatomy
        Whose brain is compared.

    Returns
    -------
    float
        Cube root of the ratio of volumes, a factor for lengths.

    Raises
    ------
    DatasetError
        If the mask is empty or no single volume.
    tripq.scans.DWIError
        If the file cannot be read.
    """
    path = Path(brain)
    image = open_nifti(path)
    if prod(image.shape[3:]) != 1:
        raise DatasetError(f"{path}: shape {image.shape}; a mask is (X, Y, Z).")
    (volume,) = read_volumes(image, path)
    own = np.count_nonzero(volume > 0) * float(np.prod(nib.affines.voxel_sizes(image.affine)))
    if own == 0:
        raise DatasetError(f"{path}: the mask of the brain is empty.")
    template = np.count_nonzero(anatomy.brain) * anatomy.grid.voxel_volume
    return float(np.cbrt(template / own))


def lesion_coverage(sources: OpenMS, patient: str, anatomy: Anatomy) -> NDArray[np.float32]:
    """A patient's lesions in the anatomy.

    The outlines were registered rigidly, so that brains kept their sizes: they are enlarged about
    the centre of the brain of the anatomy by `brain_scale`. The lesion share of a voxel is limited
    by its tissue: outlines over a ventricle are cut off.

    Parameters
    ----------
    sources : OpenMS
        The files.
    patient : str
        Of `OpenMS.patients`.
    anatomy : Anatomy
        Whose grid is taken.

    Returns
    -------
    (X, Y, Z) float32 array
        Share of each voxel that is lesion.
    """
    scale = brain_scale(sources.brain(patient), anatomy)
    coverage = read_coverage(sources.lesions(patient), anatomy, scale)
    return np.minimum(coverage, np.clip(1 - anatomy.csf, 0, 1))
