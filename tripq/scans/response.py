r"""The response of a scan: the signal of a voxel in which all fibres are parallel.

The diffusivities along and across fibres differ between people, tissues, b-values and scanners.  A
network that recognises fibres by their signal would have to learn all of them.  In a scan that is
scaled by its response, a fibre along u always has the signal :math:`e^{-|q|^2 (g \cdot u)^2}` in
the direction g: with the diffusivities :math:`\lambda_\parallel` and :math:`\lambda_\perp` of
the response

.. math::
    |q|^2 = b\, (\lambda_\parallel - \lambda_\perp), \qquad
    s(q) = \frac{S(b)}{S(0)}\, e^{b \lambda_\perp} .
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tripq.scans.errors import DWIError
from tripq.scans.scan import B_REFERENCE, DWI
from tripq.scans.shells import count_directions
from tripq.scans.tensor import anisotropy, tensor_values

FEWEST_DIRECTIONS = 6
"""Of a shell: a tensor has six numbers."""

RESPONSE_VOXELS = 300
"""The response is that of so many voxels with the highest FA, as in MRtrix' ``dwi2response fa``."""

RESPONSE_SHARE = 0.03
"""Of the voxels of a small scan, at most."""

FLUID = 1.1e-3
"""Mean diffusivity in mm2/s above which a voxel is none of the response: noise of fluid has FA."""

_LEAST_DIFFERENCE = 2e-4
"""Of both diffusivities, in mm2/s: a scan without fibres must not be scaled to nothing."""


@dataclass(frozen=True)
class Response:
    """Diffusivities of a fibre in mm2/s.

    Parameters
    ----------
    axial, radial : float
        Along and across it.
    """

    axial: float
    radial: float

    @property
    def difference(self) -> float:
        """By how much more water diffuses along the fibre, in mm2/s."""
        return max(self.axial - self.radial, _LEAST_DIFFERENCE)


def estimate_response(dwi: DWI) -> Response:
    """The response of a scan, from the tensors of its most anisotropic voxels.

    Parameters
    ----------
    dwi : DWI
        The scan, of one shell with at least 6 directions.

    Returns
    -------
    Response
        Mean eigenvalues of the `RESPONSE_VOXELS` voxels with the highest FA that are no `FLUID`.
        In a small scan they are `RESPONSE_SHARE` of the voxels.

    Examples
    --------
    >>> axes = [[1, 1, 0], [1, -1, 0], [1, 0, 1], [1, 0, -1], [0, 1, 1], [0, 1, -1]]
    >>> q = np.array([[0, 0, 0], *axes]) / np.sqrt(2)
    >>> dwi = DWI(
    ...     signal=np.exp(-(q**2) @ [1.5, 0.3, 0.3])[None].astype(np.float32),
    ...     b_values=1000 * (q**2).sum(axis=1),
    ...     q=q,
    ...     mask=np.ones((1, 1, 1), dtype=bool),
    ...     affine=np.eye(4),
    ...     b0=np.ones(1, dtype=np.float32),
    ... )
    >>> found = estimate_response(dwi)
    >>> f"{found.axial:.2e}, {found.radial:.2e}"
    '1.50e-03, 3.00e-04'
    """
    values = tensor_values(dwi)
    fa = np.where(values.mean(axis=1) > FLUID, 0, anisotropy(values))
    number = max(1, min(RESPONSE_VOXELS, int(RESPONSE_SHARE * len(fa))))
    chosen = values[np.argsort(-fa, kind="stable")[:number]].mean(axis=0)
    return Response(float(chosen[2]), float(chosen[:2].mean()))


def scale_by_response(dwi: DWI) -> DWI:
    """A scan in units of its response, of the shell with most directions.

    Parameters
    ----------
    dwi : DWI
        A scan.  Of several shells that with most directions is kept, and of shells of equal numbers
        that with the highest b-value.

    Returns
    -------
    DWI
        b0 and the shell; its b-values are those of the scan, signal and q-vectors are scaled.

    Raises
    ------
    DWIError
        If no shell has `FEWEST_DIRECTIONS`.
    """
    shell = max(dwi.shells, key=lambda one: (len(one), one.b_value), default=None)
    if shell is None or (number := count_directions(dwi.q[shell.indices])) < FEWEST_DIRECTIONS:
        found = "no shell" if shell is None else f"{number} directions in the largest shell"
        raise DWIError(
            f"{dwi.path or 'scan'}: {found}: the response of a scan is that of its tensors, which "
            f"need {FEWEST_DIRECTIONS} directions."
        )
    one = dwi.with_samples(np.concatenate([[0], shell.indices]))
    response = estimate_response(one)
    attenuation = np.exp(one.b_values * response.radial).astype(np.float32)
    return replace(
        one,
        signal=one.signal * attenuation,
        q=one.q * np.sqrt(B_REFERENCE * response.difference),
        response=response,
    )
