r"""Functions on the sphere as MRtrix stores them: real spherical harmonics of even orders.

With the associated Legendre functions :math:`P_l^m`, Condon-Shortley phase included, and polar
angle :math:`\theta` and azimuth :math:`\phi` in world (scanner) axes, the harmonics of MRtrix 3 are

.. math::
    Y_{lm} = N_{l|m|}\, P_l^{|m|}(\cos\theta) \begin{cases}
        \sqrt 2 \sin(|m| \phi) & m < 0 \\ 1 & m = 0 \\ \sqrt 2 \cos(m \phi) & m > 0
    \end{cases}

with :math:`N_{lm}` such that they are orthonormal on the sphere (MRtrix 3, ``core/math/SH.h``;
"tournier07" with ``legacy=False`` in dipy).  Coefficients are in the order l = 0, 2, 4, ...; within
an order m = -l, ..., l.  Ours are those of the components of e3nn divided by :math:`\sqrt{4\pi}`,
orthonormal too, so that a change of basis is an orthogonal matrix for each order.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from tripq.so3.fit import even_orders, harmonics_at

ORTHONORMAL = math.sqrt(4 * math.pi)
"""The harmonics of `tripq.so3.fit.harmonics_at` divided by this are orthonormal."""


def n_coefficients(order: int) -> int:
    """Number of coefficients of the even orders up to one.

    >>> n_coefficients(8)
    45
    """
    return (order + 1) * (order + 2) // 2


def highest_order(n: int) -> int:
    """The highest order of so many coefficients.

    Raises
    ------
    ValueError
        If there is no even order with this number.

    Examples
    --------
    >>> highest_order(45)
    8
    """
    order = round((math.sqrt(8 * n + 1) - 3) / 2) if n > 0 else -1
    if order < 0 or order % 2 or n_coefficients(order) != n:
        raise ValueError(f"{n} coefficients do not match an even order: 1, 6, 15, 28, 45, ...")
    return order


def mrtrix_harmonics(directions: NDArray[np.floating], order: int) -> NDArray[np.float64]:
    """The harmonics of MRtrix at directions.

    Parameters
    ----------
    directions : (N, 3) array
        In world axes, of any length but 0.
    order : int
        The highest; even.

    Returns
    -------
    (N, C) float64 array

    Examples
    --------
    The order 0 is constant:

    >>> mrtrix_harmonics(np.eye(3), 0).round(4).ravel()
    array([0.2821, 0.2821, 0.2821])
    """
    from scipy.special import lpmv

    x, y, z = (directions / np.linalg.norm(directions, axis=1, keepdims=True)).T
    azimuth = np.arctan2(y, x)
    columns = []
    for l in even_orders(order):
        for m in range(-l, l + 1):
            size = abs(m)
            norm = (2 * l + 1) / (4 * math.pi) * math.factorial(l - size) / math.factorial(l + size)
            around = np.sin(size * azimuth) if m < 0 else np.cos(size * azimuth)
            factor = math.sqrt(norm * (2 if m else 1))
            columns.append(factor * lpmv(size, l, z) * around)
    return np.stack(columns, axis=1)


@cache
def _change(order: int) -> NDArray[np.float64]:
    """Orthogonal matrix (C, C) from our coefficients to those of MRtrix; a block for each order."""
    directions = np.random.default_rng(0).normal(size=(4 * n_coefficients(order), 3))
    ours = harmonics_at(torch.from_numpy(directions), order).numpy() / ORTHONORMAL
    theirs = mrtrix_harmonics(directions, order)
    change = np.zeros((n_coefficients(order),) * 2)
    for l in even_orders(order):
        block = slice(n_coefficients(l) - (2 * l + 1), n_coefficients(l))
        change[block, block] = np.linalg.lstsq(theirs[:, block], ours[:, block])[0]
    change.setflags(write=False)
    return change


def to_mrtrix(coefficients: NDArray[np.floating]) -> NDArray[np.floating]:
    """Coefficients of MRtrix's harmonics from those of e3nn's, orthonormal.

    Parameters
    ----------
    coefficients : (..., C) array
        Of the even orders up to one.

    Returns
    -------
    (..., C) array
        Of the same type.

    Raises
    ------
    ValueError
        If C is the number of coefficients of no even order.

    Examples
    --------
    >>> to_mrtrix(np.array([1.0, 0, 0, 0, 0, 0])).round(6)
    array([1., 0., 0., 0., 0., 0.])
    """
    change = _change(highest_order(coefficients.shape[-1]))
    return coefficients @ change.T.astype(coefficients.dtype)


def from_mrtrix(coefficients: NDArray[np.floating]) -> NDArray[np.floating]:
    """The inverse of `to_mrtrix`."""
    change = _change(highest_order(coefficients.shape[-1]))
    return coefficients @ change.astype(coefficients.dtype)
