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
    return magnitude(*receive(signal, sigma, rng), sigma, 1, rng)


def add_chi_noise(
    signal: NDArray[np.float32],
    sigma: NDArray[np.float32] | float,
    coils: int,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    r"""Magnitude of several coils, by the root of the sum of squares: noncentral chi.

    :math:`M^2 = |S + \sigma (n_1 + i\, n_2)|^2 + \sigma^2 \chi^2_{2 L - 2}` for L coils, however
    the signal is divided among them (Constantinides, Atalar and McVeigh, Magn Reson Med
    38:852-857, 1997): :math:`\langle M^2 \rangle = S^2 + 2 L \sigma^2`.

    Parameters
    ----------
    signal : float32 array
        Of any shape.
    sigma : float or float32 array
        Standard deviation of the noise in either channel of a coil, in the unit of the signal; of
        a shape that fits the signal.
    coils : int
        L, the effective number of coils; with 1 it is Rician noise.
    rng : numpy.random.Generator
        Source of the noise.

    Returns
    -------
    float32 array of the same shape

    Examples
    --------
    >>> noise = add_chi_noise(np.zeros(100_000, np.float32), 2.0, 4, np.random.default_rng(0))
    >>> round(float((noise**2).mean()))  # 2 * 4 * 2**2
    32
    """
    return magnitude(*receive(signal, sigma, rng), sigma, coils, rng)


def receive(
    signal: NDArray[np.float32], sigma: NDArray[np.float32] | float, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Real and imaginary channel of a coil, with noise of standard deviation `sigma` in each."""
    scale = np.asarray(sigma, dtype=np.float32)
    real = signal + scale * rng.standard_normal(signal.shape, dtype=np.float32)
    return real, scale * rng.standard_normal(signal.shape, dtype=np.float32)


def magnitude(
    real: NDArray[np.float32],
    imaginary: NDArray[np.float32],
    sigma: NDArray[np.float32] | float,
    coils: int,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Magnitude of one coil with all of the signal and of others with noise alone."""
    one = np.hypot(real, imaginary)
    if coils == 1:
        return one
    others = 2 * rng.standard_gamma(coils - 1, size=one.shape, dtype=np.float32)  # chi squared
    return np.hypot(one, np.float32(sigma) * np.sqrt(others))
