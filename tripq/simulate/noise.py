"""Noise of magnitude images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def add_rician_noise(
    signal: NDArray[np.float32], sigma: float | NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.float32]:
    r"""Magnitude of a signal with complex Gaussian noise.

    :math:`M = |S + \sigma (n_1 + i\, n_2)|`, with independent standard normal :math:`n_1, n_2`
    (Gudbjartsson and Patz, Magn Reson Med 34:910-914, 1995). For :math:`S = 0` the mean of M is
    :math:`\sigma \sqrt{\pi / 2}`; in any case :math:`\langle M^2 \rangle = S^2 + 2 \sigma^2`.

    Parameters
    ----------
    signal : float32 array
        Of any shape.
    sigma : float or float32 array
        Standard deviation of the noise in either channel, in the unit of the signal; of a
        shape that broadcasts to that of the signal.
    rng : numpy.random.Generator
        Source of the noise.

    Returns
    -------
    float32 array of the same shape

    Examples
    --------
    >>> noise = add_rician_noise(np.zeros(100_000, np.float32), 2.0, np.random.default_rng(0))
    >>> round(float(noise.mean()), 1)  # 2 * sqrt(pi / 2) = 2.507
    2.5
    """
    scale = np.asarray(sigma, dtype=np.float32)
    real = signal + scale * rng.standard_normal(signal.shape, dtype=np.float32)
    return np.hypot(real, scale * rng.standard_normal(signal.shape, dtype=np.float32))
