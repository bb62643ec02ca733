r"""The noise level of a scan, from the scatter of its samples about a smooth signal.

Each shell is fitted by even spherical harmonics with at most half as many coefficients as samples,
once the signal and once its logarithm, of which a tensor needs order 2 alone; the fit with the
smaller residuals is used.  What a fit cannot follow counts as noise: with fewer than 20 directions,
where only order 2 is left, the level of anisotropic tissue is 5 to 30 % too high.  Isotropic voxels
therefore have more weight.
The mean square of the residuals, with :math:`\nu` degrees of freedom, is :math:`\sigma^2
\chi^2_\nu / \nu`; the noise varies smoothly over a head, so the logarithms are averaged over some
millimetres, and their bias :math:`\psi(\nu / 2) - \log(\nu / 2)` is subtracted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import digamma

from tripq.scans.angular import even_harmonics
from tripq.scans.errors import DWIError
from tripq.scans.scan import DWI

SMOOTHING = 8.0
"""Standard deviation in mm of the average over neighbouring voxels."""

_ISOTROPIC = 1e-4  # squared variance of the logarithms over directions that is little: 10 % of b0
_LOWEST = 1e-3  # of b0, for logarithms
_TINY = 1e-20  # variance of a scan without noise, for logarithms


def noise_level(dwi: DWI) -> NDArray[np.float32]:
    """Standard deviation of the noise.

    Parameters
    ----------
    dwi : DWI
        With 7 or more directions on at least one shell.

    Returns
    -------
    (V,) float32 array
        In the unit of `DWI.b0`.

    Raises
    ------
    DWIError
        If all shells have too few directions.

    Examples
    --------
    >>> from tripq.simulate import GradientTable, default_anatomy, simulate_scan
    >>> anatomy = default_anatomy(5.0).within((-40, -40, 0), (40, 40, 30))
    >>> table = GradientTable.from_shells([1000.0], [32])
    >>> noise = noise_level(simulate_scan(anatomy, table, seed=0, snr=20.0).dwi)
    >>> bool(45 < np.median(noise) < 55)  # b0 of white matter is 1000
    True
    """
    squares = np.zeros(len(dwi.b0))
    anisotropy = np.zeros(len(dwi.b0))
    freedom = 0
    for shell in dwi.shells:
        basis = _basis(dwi.q[shell.indices])
        if basis is None:
            continue
        signal = dwi.signal[:, shell.indices]
        project = (basis @ np.linalg.pinv(basis)).astype(np.float32)
        logs = np.log(np.maximum(signal, _LOWEST)) @ project
        anisotropy = np.maximum(anisotropy, logs.var(axis=1))
        residuals = [
            ((signal - fitted) ** 2).sum(axis=1, dtype=np.float64)
            for fitted in (signal @ project, np.exp(logs))
        ]
        squares += min(residuals, key=np.median)
        freedom += len(shell) - int(np.linalg.matrix_rank(basis))
    if not freedom:
        raise DWIError(
            f"{dwi.path or 'scan'}: the noise level needs 7 or more directions on a shell; "
            "give the noise level yourself."
        )
    logs = np.log(squares / freedom * dwi.b0.astype(np.float64) ** 2 + _TINY)
    logs -= digamma(freedom / 2) - np.log(freedom / 2)
    sigma = SMOOTHING / dwi.voxel_size
    trust = 1 / (_ISOTROPIC + anisotropy**2)
    total = gaussian_filter(dwi.volume(trust), sigma)[dwi.mask]
    mean = gaussian_filter(dwi.volume(trust * logs), sigma)[dwi.mask] / total
    return np.exp(mean / 2).astype(np.float32)


def _basis(q: NDArray[np.floating]) -> NDArray[np.float64] | None:
    """Harmonics at the samples of a shell, with at most half as many columns if possible."""
    if len(q) < 7:
        return None
    orders = [l for l in range(2, 9, 2) if (l + 1) * (l + 2) <= len(q)]
    return even_harmonics(q, orders[-1] if orders else 2)
