"""Maps of the diffusion tensor, of any number of shells."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tripq.scans.scan import B_REFERENCE, DWI

_LOWEST = 0.01  # of b0: lower signals are noise, and their logarithms would dominate
_LEAST_SIGNAL = 1e-4  # of b0, as in dipy
_LEAST_ATTENUATION = 1e-6  # of an eigenvalue at the largest b-value, as in dipy


def tensor_maps(dwi: DWI) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    r"""Fractional anisotropy and mean diffusivity.

    The tensor D of :math:`S = e^{-b\, g^T D g}` is fitted to the logarithms by least squares;
    eigenvalues below 0 become 0.

    Parameters
    ----------
    dwi : DWI
        The scan, with at least 6 directions.

    Returns
    -------
    fa : (V,) float32 array
        Between 0 and 1.
    md : (V,) float32 array
        In mm2/s.

    Examples
    --------
    Water that diffuses equally in all directions, at 2e-3 mm2/s:

    >>> axes = [[1, 1, 0], [1, -1, 0], [1, 0, 1], [1, 0, -1], [0, 1, 1], [0, 1, -1]]
    >>> q = np.array([[0, 0, 0], *axes]) / np.sqrt(2)
    >>> b_values = 1000 * (q**2).sum(axis=1)
    >>> dwi = DWI(
    ...     signal=np.exp(-2e-3 * b_values)[None].astype(np.float32),
    ...     b_values=b_values,
    ...     q=q,
    ...     mask=np.ones((1, 1, 1), dtype=bool),
    ...     affine=np.eye(4),
    ...     b0=np.ones(1, dtype=np.float32),
    ... )
    >>> fa, md = tensor_maps(dwi)
    >>> f"{fa[0]:.3f}, {md[0]:.1e}"
    '0.000, 2.0e-03'
    """
    values = tensor_values(dwi.signal, dwi.q)
    return anisotropy(values).astype(np.float32), values.mean(axis=1).astype(np.float32)


def tensor_values(signal: NDArray[np.float32], q: NDArray[np.float64]) -> NDArray[np.floating]:
    """Eigenvalues of the tensors of `tensor_maps`, (V, 3), ascending, in mm2/s.

    Parameters
    ----------
    signal : (V, Q) float32 array
        Divided by b0.
    q : (Q, 3) array
        q-vectors, see `DWI`.
    """
    x, y, z = q.T
    products = np.stack([x * x, y * y, z * z, x * y, x * z, y * z])
    logs = -np.log(np.maximum(signal, _LOWEST))
    xx, yy, zz, xy, xz, yz = (logs @ np.linalg.pinv(products).astype(np.float32)).T
    xy, xz, yz = xy / 2, xz / 2, yz / 2
    tensors = np.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], axis=1).reshape(-1, 3, 3)
    return np.maximum(np.linalg.eigvalsh(tensors), 0) / B_REFERENCE


def main_directions(
    signal: NDArray[np.float32], q: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Fractional anisotropy, and the direction of the largest diffusivity.

    The tensor D and the logarithm of S0 of :math:`S = S_0 e^{-b\, g^T D g}` are fitted to the
    logarithms by ordinary least squares, as by ``fit_method="LS"`` of dipy.

    Parameters
    ----------
    signal : (V, Q) float32 array
        At least 7 samples, including b0.
    q : (Q, 3) array
        Their q-vectors, see `DWI`.

    Returns
    -------
    fa : (V,) array
        Between 0 and 1.
    direction : (V, 3) array
        Unit vectors, in the axes of `q`.
    """
    x, y, z = q.T
    products = (x * x, 2 * x * y, 2 * x * z, y * y, 2 * y * z, z * z)
    design = -np.stack([*products, np.ones(len(q))], axis=1)
    logs = np.log(np.maximum(signal, _LEAST_SIGNAL))
    fitted = logs @ np.linalg.pinv(design).T
    values, vectors = np.linalg.eigh(fitted[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(-1, 3, 3))
    least = _LEAST_ATTENUATION / -design[:, :6].min()
    return anisotropy(np.maximum(values, least)), vectors[..., 2]


def anisotropy(values: NDArray[Any]) -> NDArray[Any]:
    """Fractional anisotropy of tensors with the eigenvalues (V, 3), which are not negative."""
    squares = (values**2).sum(axis=1)
    spread = ((values - values.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    return np.asarray(np.sqrt(1.5 * spread / np.where(squares > 0, squares, 1)))
