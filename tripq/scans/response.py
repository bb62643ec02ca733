r"""The response of a scan: the signal of a voxel in which all fibres are parallel.

The diffusivities along and across fibres differ between people, tissues, b-values and scanners.  A
network that recognises fibres by their signal would have to learn all of them.  In a scan that is
scaled by its response, a fibre along u always has the signal :math:`e^{-|q|^2 (g \cdot u)^2}` in
the direction g: with the diffusivities :math:`\lambda_\parallel` and :math:`\lambda_\perp` of
the response

.. math::
    |q|^2 = b\, (\lambda_\parallel - \lambda_\perp), \qquad
    s(q) = \frac{S(b)}{S(0)}\, e^{b \lambda_\perp} .

The difference of the diffusivities is at least 0.2e-3 mm2/s, so that a scan without fibres keeps
its directions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tripq.scans.errors import DWIError
from tripq.scans.scan import B_REFERENCE, DWI
from tripq.scans.shells import TENSOR_DIRECTIONS, count_directions
from tripq.scans.tensor import anisotropy, tensor_values

RESPONSE_VOXELS = 300
"""The response is that of so many voxels with the highest FA, as in MRtrix' ``dwi2response fa``."""

RESPONSE_SHARE = 0.03
"""Of the voxels of a small scan, at most."""

FLUID = 1.1e-3
"""Mean diffusivity in mm2/s above which a voxel is excluded: noise of fluid has a high FA."""

_LEAST_DIFFERENCE = 2e-4
"""Of both diffusivities, in mm2/s."""

_CHUNK = 50_000
"""Voxels whose tensors are fitted at once."""


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
        """The difference that scales q-vectors: of both diffusivities, or 0.2e-3 mm2/s."""
        return max(self.axial - self.radial, _LEAST_DIFFERENCE)

    def attenuation(self, b_values: NDArray[np.floating]) -> NDArray[np.float32]:
        """The factors that scale the signal at b-values in s/mm2."""
        return np.exp(b_values * self.radial).astype(np.float32)


def estimate_response(dwi: DWI) -> Response:
    """The response of a scan, from the tensors of its most anisotropic voxels.

    Parameters
    ----------
    dwi : DWI
        The scan, of one shell with at least 6 directions.

    Returns
    -------
    Response
        Mean eigenvalues of the `RESPONSE_VOXELS` voxels with the highest FA that are no `FLUID`; in
        a small scan, of at most `RESPONSE_SHARE` of them, and at least one.

    Raises
    ------
    DWIError
        If a shell has too few directions for a tensor, or all voxels are fluid.

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
    name, given = dwi.path or "scan", count_directions(dwi.q)
    if given < TENSOR_DIRECTIONS:
        raise DWIError(
            f"{name}: {given} directions: the response of a scan is that of its tensors, which "
            f"need {TENSOR_DIRECTIONS}."
        )
    starts = range(0, len(dwi.b0), _CHUNK)
    parts = [tensor_values(dwi.signal[one : one + _CHUNK], dwi.q) for one in starts]
    values = np.concatenate(parts) if parts else np.empty((0, 3))
    values = values[values.mean(axis=1) <= FLUID]
    if not len(values):
        raise DWIError(
            f"{name}: no voxel has a mean diffusivity below {FLUID:.1e} mm2/s, so no white matter "
            "shows the response. Is the mask that of the brain?"
        )
    number = max(1, min(RESPONSE_VOXELS, int(RESPONSE_SHARE * len(values))))
    chosen = values[np.argsort(-anisotropy(values), kind="stable")[:number]].mean(axis=0)
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
        b0 and the shell; its b-values are those of the scan, signal and q-vectors are scaled.  A
        scan that is scaled already is returned as it is.

    Raises
    ------
    DWIError
        If the response cannot be estimated; see `estimate_response`.
    """
    if dwi.response is not None:
        return dwi
    largest = max(dwi.shells, key=lambda shell: (len(shell), shell.b_value), default=None)
    if largest is None:
        raise DWIError(f"{dwi.path or 'scan'}: no direction is diffusion-weighted.")
    one = dwi.with_samples(np.concatenate([[0], largest.indices]))
    response = estimate_response(one)
    signal = one.signal * response.attenuation(one.b_values)
    q = one.q * np.sqrt(B_REFERENCE * response.difference)
    return replace(one, signal=signal, q=q, response=response)
