r"""Changed tissue in measured scans: the signal is real, the change is modelled.

A share :math:`\omega = c\, s` of the tissue of a voxel, with coverage c and severity s, is replaced
by water that diffuses equally in all directions, by the model of the simulator
(`tripq.simulate.signal.replace_by_water`):

.. math::
    S'(b, g) = s_0 \big[ (1 - \omega)\, S(b, g) + \omega\, S(0)\, e^{-b D_w} \big],
    \qquad s_0 = 1 + r\, \omega

with the measured signal S and the relative rise r of b0 where all tissue is replaced.  The noise of
S is attenuated by :math:`k = s_0 (1 - \omega) \le 1`, so complex noise of standard deviation
:math:`\sqrt{1 - k^2}\, \sigma` is added before the magnitude is taken: the mean square of the noise
is then that of the scan, for low signals too.  b0 is multiplied by :math:`s_0` and keeps its
signal-to-noise ratio.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tripq.scans import DWI
from tripq.scans.noise import noise_level
from tripq.simulate.errors import SimulationError
from tripq.simulate.noise import add_rician_noise
from tripq.simulate.signal import Constants, replace_by_water


def implant(
    dwi: DWI,
    coverage: ArrayLike,
    severity: ArrayLike = 1.0,
    *,
    diffusivity: ArrayLike = Constants.water_diffusivity,
    b0_rise: ArrayLike = 0.5,
    noise: ArrayLike | None = None,
    seed: int = 0,
) -> DWI:
    """Replace a share of the tissue of a measured scan by water.

    Parameters
    ----------
    dwi : DWI
        The scan, V voxels.  It is not changed.
    coverage : (V,) array-like
        Share of each voxel that is changed, between 0 and 1.
    severity : float or (V,) array-like, optional
        Share of the changed tissue that water replaces, between 0 and 1.
    diffusivity : float or (V,) array-like, optional
        Of the water, in mm2/s.
    b0_rise : float or (V,) array-like, optional
        Relative rise of b0 where water replaces all tissue, between 0 and 1.
    noise : float or (V,) array-like, optional
        Standard deviation of the noise, in the unit of `DWI.b0`; by default that of
        `tripq.scans.noise.noise_level`.
    seed : int, optional
        Seed of the added noise.

    Returns
    -------
    DWI
        Voxels without a change are bit for bit those of the scan; a note counts the others.

    Raises
    ------
    SimulationError
        If an argument is outside its range, or is not one value for each voxel.
    tripq.scans.DWIError
        If the noise level is not given and the scan has too few directions for an estimate.

    Examples
    --------
    >>> from tripq.simulate import GradientTable, default_anatomy, simulate_scan
    >>> anatomy = default_anatomy(5.0).within((-40, -40, 0), (40, 40, 30))
    >>> healthy = simulate_scan(anatomy, GradientTable.from_shells([1000.0], [12]), seed=0).dwi
    >>> left = (healthy.voxel_centres()[:, 0] < 0).astype(np.float32)
    >>> changed = implant(healthy, left, severity=0.5, b0_rise=0.4)
    >>> (changed.b0 / healthy.b0)[left == 1].mean().round(3)
    np.float32(1.2)
    >>> bool((changed.signal[left == 0] == healthy.signal[left == 0]).all())
    True
    """
    covered = _per_voxel("coverage", coverage, dwi, 0, 1)
    share = covered * _per_voxel("severity", severity, dwi, 0, 1)
    rise = _per_voxel("b0_rise", b0_rise, dwi, 0, 1)
    water = _per_voxel("diffusivity", diffusivity, dwi, 0, np.inf)
    sigma = noise_level(dwi) if noise is None else _per_voxel("noise", noise, dwi, 0, np.inf)

    changed = np.flatnonzero(share > 0)
    omega, before = share[changed, None], dwi.b0[changed, None]
    s0 = 1 + rise[changed, None] * omega
    intensity = replace_by_water(
        dwi.signal[changed] * before,
        before,
        omega,
        s0,
        dwi.b_values.astype(np.float32),
        water[changed, None],
    )
    lost = np.sqrt(np.maximum(1 - (s0 * (1 - omega)) ** 2, 0))
    rng = np.random.default_rng(seed)
    noisy = add_rician_noise(intensity[:, 1:], lost * sigma[changed, None], rng)
    signal, b0 = dwi.signal.copy(), dwi.b0.copy()
    b0[changed] = (s0 * before)[:, 0]
    signal[changed, 1:] = noisy / b0[changed, None]
    note = f"Implanted: tissue of {len(changed)} voxels was replaced by a model of water."
    return replace(dwi, signal=signal, b0=b0, notes=(*dwi.notes, note))


def _per_voxel(
    name: str, values: ArrayLike, dwi: DWI, lowest: float, highest: float
) -> NDArray[np.float32]:
    """One value for each voxel, (V,), within a range."""
    array = np.asarray(values, dtype=np.float32)
    if array.shape not in ((), dwi.b0.shape):
        raise SimulationError(
            f"{name} has shape {array.shape}; the scan needs {dwi.b0.shape}, in the order of "
            "np.argwhere(dwi.mask)."
        )
    if not (np.isfinite(array) & (array >= lowest) & (array <= highest)).all():
        limits = f"{lowest:g} or more" if np.isinf(highest) else f"from {lowest:g} to {highest:g}"
        raise SimulationError(f"{name} must be {limits}, and finite, everywhere.")
    return np.broadcast_to(array, dwi.b0.shape)
