"""The signal of a scan along other gradient directions, for networks with a fixed table.

Each shell is fitted by dipy's even spherical harmonics, by least squares. The layers of tripq never
need this.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from dipy.core.sphere import Sphere
from dipy.reconst.shm import real_sh_descoteaux
from numpy.typing import NDArray

from tripq.scans import B_REFERENCE, DWI, DWIError

#: Highest order of the fit: at b = 1000 s/mm2 higher orders are mostly noise.
HIGHEST_ORDER = 4


def resample_directions(dwi: DWI, q: NDArray[np.floating]) -> DWI:
    """Estimate the signal of a scan for another gradient table.

    Parameters
    ----------
    dwi : DWI
        The scan.
    q : (Q, 3) array
        The new q-vectors, in world axes, ``|q| = sqrt(b / b_ref)``; b0 is 0.

    Returns
    -------
    DWI
        With the Q samples in that order; the signal of b0 is 1 as always.

    Raises
    ------
    DWIError
        If no shell of the scan is near a new b-value, or if that shell has fewer than 6 directions.

    Examples
    --------
    >>> from tripq.simulate import GradientTable, default_anatomy, simulate_scan
    >>> anatomy = default_anatomy(5.0).within((-20, -20, 10), (20, 20, 30))
    >>> scan = simulate_scan(anatomy, GradientTable.from_shells([1000.0], [20]), seed=0).dwi
    >>> wanted = GradientTable.from_shells([1000.0], [32])
    >>> resample_directions(scan, np.concatenate([[[0.0, 0, 0]], wanted.directions[1:]]))
    DWI(... 32 directions, shells b=1000 (32))
    """
    wanted = B_REFERENCE * (np.asarray(q, dtype=np.float64) ** 2).sum(axis=1)
    weighted = np.flatnonzero(wanted > 0)
    signal = np.ones((len(dwi.b0), len(wanted)), dtype=np.float32)
    for b_value in np.unique(wanted[weighted].round(6)):
        targets = weighted[np.isclose(wanted[weighted], b_value)]
        shell = dwi.shell_near(b_value)
        fit = _fit(dwi.q[shell.indices], np.asarray(q)[targets])
        if fit is None:
            raise DWIError(
                f"{dwi.path or 'scan'}: {len(shell.indices)} directions at "
                f"b={shell.b_value:.0f} s/mm2 are too few: resampling needs 6."
            )
        signal[:, targets] = dwi.signal[:, shell.indices] @ fit.T.astype(np.float32)
    return replace(
        dwi,
        signal=signal,
        b_values=wanted,
        q=np.asarray(q, dtype=dwi.q.dtype),
        notes=(*dwi.notes, f"Resampled to {len(weighted)} other directions."),
    )


def _fit(
    measured: NDArray[np.floating], wanted: NDArray[np.floating]
) -> NDArray[np.float64] | None:
    """The matrix (wanted, measured) from samples of a shell to its fit elsewhere."""
    orders = [l for l in range(2, HIGHEST_ORDER + 1, 2) if (l + 1) * (l + 2) // 2 <= len(measured)]
    if not orders:
        return None
    before, after = even_harmonics(measured, orders[-1]), even_harmonics(wanted, orders[-1])
    fit: NDArray[np.float64] = after @ np.linalg.pinv(before)
    return fit


def even_harmonics(q: NDArray[np.floating], order: int) -> NDArray[np.float64]:
    """Even real spherical harmonics up to an order, (N, coefficients), at q-vectors (N, 3)."""
    sphere = Sphere(xyz=q / np.linalg.norm(q, axis=1, keepdims=True))
    values: NDArray[np.float64]
    values, _, _ = real_sh_descoteaux(order, sphere.theta, sphere.phi, legacy=False)
    return values
