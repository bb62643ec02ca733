r"""Points and weights on the sphere that integrate harmonics of even orders exactly.

Gauss's points in z and equally spaced azimuths integrate all harmonics up to a degree (Atkinson,
"Numerical integration on the sphere", J Austral Math Soc B 23:332, 1982).  Of functions that are
the same at opposite points, one point of each pair is enough.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray


@cache
def sphere_quadrature(degree: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Quadrature of functions that are the same at opposite points.

    Parameters
    ----------
    degree : int
        Highest order of the harmonics that are integrated exactly; even.

    Returns
    -------
    points : (N, 3) array
        Unit vectors, one of each pair of opposite ones.
    weights : (N,) array
        They add up to the area of the sphere.

    Examples
    --------
    >>> points, weights = sphere_quadrature(16)
    >>> points.shape
    (81, 3)
    >>> round(float(weights @ points[:, 2] ** 16 / (4 * np.pi) * 17), 10)  # the mean is 1/17
    1.0
    """
    z, of_z = np.polynomial.legendre.leggauss(degree // 2 + 1)
    number = degree + 2  # even: every point has its opposite
    azimuth = 2 * math.pi * (np.arange(number) + 0.5) / number
    z, azimuth, of_z = (x.ravel() for x in np.broadcast_arrays(z[:, None], azimuth, of_z[:, None]))
    across = np.sqrt(1 - z**2)
    half = azimuth < math.pi
    points = np.stack([across * np.cos(azimuth), across * np.sin(azimuth), z], axis=1)[half]
    weights = (4 * math.pi / number * of_z)[half]
    for values in (points, weights):
        values.setflags(write=False)  # kept for the next call
    return points, weights
