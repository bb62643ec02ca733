"""Maps of the diffusion tensor, of any number of shells."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tripq.scans.scan import B_REFERENCE, DWI

_LOWEST = 0.01  # of b0: lower signals are noise, and their logarithms would dominate


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
    x, y, z = dwi.q.T
    products = np.stack([x * x, y * y, z * z, x * y, x * z, y * z])
    logs = -np.log(np.maximum(dwi.signal, _LOWEST))
    xx, yy, zz, xy, xz, yz = (logs @ np.linalg.pinv(products).astype(np.float32)).T
    xy, xz, yz = xy / 2, xz / 2, yz / 2
    tensors = np.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], axis=1).reshape(-1, 3, 3)
    values = np.maximum(np.linalg.eigvalsh(tensors), 0)
    mean = values.mean(axis=1)
    squares = (values**2).sum(axis=1)
    spread = ((values - mean[:, None]) ** 2).sum(axis=1)
    fa = np.sqrt(1.5 * spread / np.where(squares > 0, squares, 1))
    return fa.astype(np.float32), (mean / B_REFERENCE).astype(np.float32)
