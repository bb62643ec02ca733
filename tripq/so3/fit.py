r"""The signal of a shell as spherical harmonics, fitted with Laplace-Beltrami regularisation.

With :math:`B` the harmonics of even orders at the measured directions, the coefficients of a signal
:math:`s` on a shell minimise

.. math::
    |s - B c|^2 + \lambda \sum_{lm} l^2 (l + 1)^2\, c_{lm}^2

(Descoteaux et al., Magn Reson Med 58:497, 2007).  :math:`\lambda` is that of dipy, whose harmonics
are orthonormal; ours have the components of e3nn, so that coefficients are features of an
equivariant layer.  The fit is linear, and commutes with rotations of the directions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tripq.so3.harmonics import spherical_harmonics


def even_orders(highest: int) -> tuple[int, ...]:
    """0, 2, ..., up to the highest.

    >>> even_orders(4)
    (0, 2, 4)
    """
    return tuple(range(0, highest + 1, 2))


def check_smoothing(smoothing: float) -> float:
    """A Laplace-Beltrami weight.

    Raises
    ------
    ValueError
        If it is not positive and finite.
    """
    if not 0 < smoothing < math.inf:
        raise ValueError(f"smoothing must be positive, not {smoothing}")
    return smoothing


def harmonics_at(q: Tensor, order: int) -> Tensor:
    """Harmonics of even orders at q-vectors.

    Parameters
    ----------
    q : Tensor of shape (Q, 3)
        Of any length but 0.
    order : int
        The highest.

    Returns
    -------
    Tensor of shape (Q, C)
        The C coefficients of all orders, in the components of e3nn; see
        `tripq.so3.harmonics.spherical_harmonics`.

    Examples
    --------
    >>> harmonics_at(torch.eye(3), 4).shape
    torch.Size([3, 15])
    """
    by_order = spherical_harmonics(even_orders(order), q)
    return torch.cat([by_order[l] for l in even_orders(order)], dim=-1)


@dataclass(frozen=True, eq=False)
class ShellFit:
    r"""The fit of a shell with Q directions by C coefficients.

    Attributes
    ----------
    basis : Tensor of shape (Q, C)
        :math:`B`.
    matrix : Tensor of shape (C, Q)
        :math:`F = (B^T B + \lambda L)^{-1} B^T`, from a signal to its coefficients.
    errors : Tensor of shape (number of orders,)
        Standard errors of the coefficients for noise of size 1, root mean square over each order;
        from :math:`(B^T B + \lambda L)^{-1}`, the covariance if the penalty is taken as a prior.
    freedom : float
        Degrees of freedom of the residual.

    Examples
    --------
    A constant has only a coefficient of order 0, for any directions:

    >>> q = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], dtype=torch.float64)
    >>> fit = ShellFit.of(q, order=4, smoothing=0.006)
    >>> coefficients = fit.matrix @ torch.ones(4, dtype=torch.float64)
    >>> float(coefficients[0].round(decimals=6)), bool(coefficients[1:].abs().max() < 1e-6)
    (1.0, True)
    """

    basis: Tensor
    matrix: Tensor
    errors: Tensor
    freedom: float

    @classmethod
    def of(cls, q: Tensor, order: int, smoothing: float) -> ShellFit:
        r"""The fit for some directions.

        Parameters
        ----------
        q : Tensor of shape (Q, 3)
            Of any length but 0.
        order : int
            Highest order of the harmonics.
        smoothing : float
            :math:`\lambda`, positive.
        """
        basis = harmonics_at(q, order)
        dims = torch.tensor([2 * l + 1 for l in even_orders(order)], device=q.device)
        penalty = basis.new_tensor([float(l * (l + 1)) ** 2 for l in even_orders(order)])
        # e3nn's harmonics are sqrt(4 pi) times those that are orthonormal on the sphere
        weights = 4 * math.pi * smoothing * penalty.repeat_interleave(dims)
        inverse = torch.linalg.inv(basis.T @ basis + torch.diag(weights))
        matrix = inverse @ basis.T
        errors = torch.stack(
            [part.mean().sqrt() for part in inverse.diagonal().split(dims.tolist())]
        )
        return cls(basis, matrix, errors, len(q) - float((basis * matrix.T).sum()))

    def along(self, q: Tensor) -> Tensor:
        """The matrix (Q_out, Q) from a signal to its fit along q-vectors (Q_out, 3)."""
        return harmonics_at(q, 2 * (len(self.errors) - 1)) @ self.matrix
