"""Gradient directions along which the signal of a scan is predicted."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tripq.scans.errors import DWIError
from tripq.scans.frames import Frame, to_world
from tripq.scans.gradients import MRTRIX_SUFFIX, read_bval, read_bvec, read_mrtrix, unit_directions
from tripq.scans.scan import B_REFERENCE, DWI
from tripq.scans.shells import LIKE_B


def read_directions(
    path: str | PathLike[str], dwi: DWI, frame: Frame = "fsl"
) -> NDArray[np.float64]:
    """Read q-vectors on the shells of a scan.

    Parameters
    ----------
    path : path
        ``.bvec``, or a table of MRtrix, ``.b``.  The b-values are those of a ``.bval`` of the same
        stem beside it; without one every direction is on every shell of the scan.
    dwi : DWI
        The scan.
    frame : {"fsl", "voxel", "world"}
        Axes of a ``.bvec``, see `tripq.scans.frames`; a table of MRtrix is in ``"world"``.

    Returns
    -------
    (Q, 3) array
        q-vectors in world axes: 0 first, then every direction, with the b-value of its shell.  Zero
        vectors of the file are left out.

    Raises
    ------
    DWIError
        If a file cannot be read, or a b-value is that of no shell of the scan.
    """
    file = Path(path)
    b_values = None
    if file.suffix == MRTRIX_SUFFIX:
        b_values, directions = read_mrtrix(file)
        frame = "world"
    else:
        directions = read_bvec(file)
        if (beside := file.with_suffix(".bval")).is_file():
            b_values = read_bval(beside)
    if b_values is not None and len(b_values) != len(directions):
        raise DWIError(f"{file}: {len(directions)} directions, but {len(b_values)} b-values.")
    zero = np.asarray(~directions.any(axis=1))
    if b_values is not None:
        zero |= b_values <= LIKE_B * dwi.shells[0].b_value
    if zero.all():
        raise DWIError(f"{file}: no direction.")
    try:
        unit = unit_directions(directions, np.where(zero, 0, 1), zero)
    except DWIError as error:
        raise DWIError(f"{file}: {error}") from error
    world = to_world(unit[~zero], dwi.affine, frame)
    if b_values is None:
        shells = [np.full(len(world), shell.b_value) for shell in dwi.shells]
        world, lengths = np.tile(world, (len(shells), 1)), np.concatenate(shells)
    else:
        lengths = np.array([dwi.shell_near(b).b_value for b in b_values[~zero]])
    return np.concatenate([np.zeros((1, 3)), np.sqrt(lengths / B_REFERENCE)[:, None] * world])
