r"""Products of functions on the sphere: an equivariant nonlinearity of high orders.

Features of even orders, one of each order in a channel, are the coefficients of a function on the
sphere for every channel.  New functions are products of linear combinations,

.. math::
    u \leftarrow u + \gamma \big[ (A u)(B u) + L u \big] ,

with matrices A, B over the channels, L over the channels of each order, and factors
:math:`\gamma` for every order and channel, from invariants of the voxel.  Products sharpen a
function, as the constraint of a deconvolution does that it is nowhere negative.  They are computed
at the points of a quadrature that integrates them against harmonics exactly, so that the result is
that of the Clebsch-Gordan coefficients of all orders, at a lower cost, and equivariant.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from tripq.so3.fit import even_orders, harmonics_at
from tripq.so3.mrtrix import ORTHONORMAL, n_coefficients
from tripq.so3.sphere import sphere_quadrature

_LEAST = 1e-6  # of a squared norm, for the derivative of the root


class SphericalProducts(nn.Module):
    """Functions on the sphere and their products, with gates.

    Parameters
    ----------
    channels : int
        Number of functions.
    order_in, order_out : int
        Highest orders of the functions; even.
    n_scalars : int
        Number of invariants that every voxel has besides.
    n_hidden : int
        Of the layer between invariants and gates.

    Examples
    --------
    >>> layer = SphericalProducts(4, order_in=2, order_out=4, n_scalars=3)
    >>> layer(torch.rand(10, 6, 4), torch.rand(10, 3)).shape
    torch.Size([10, 15, 4])
    """

    def __init__(
        self, channels: int, *, order_in: int, order_out: int, n_scalars: int, n_hidden: int = 32
    ) -> None:
        super().__init__()
        self.order_in = order_in
        self.order_out = order_out
        self.factors = nn.Parameter(torch.randn(channels, 2 * channels) / channels**0.5)
        orders = even_orders(order_out)
        linear = torch.randn(len(orders), channels, channels)
        self.linear = nn.Parameter(0.5 * linear / channels**0.5)
        self.gate = nn.Sequential(
            nn.Linear(n_scalars + len(orders) * channels, n_hidden),
            nn.SiLU(),
            nn.Linear(n_hidden, len(orders) * channels),
        )

    @property
    def n_points(self) -> int:
        """Points at which the functions are multiplied."""
        return len(_transforms(self.order_in, self.order_out)[0])

    def forward(self, functions: Tensor, scalars: Tensor) -> Tensor:
        """New functions.

        Parameters
        ----------
        functions : Tensor of shape (V, C_in, channels)
            Orthonormal coefficients up to `order_in`.
        scalars : Tensor of shape (V, n_scalars)
            Invariants.

        Returns
        -------
        Tensor of shape (V, C_out, channels)
            Coefficients up to `order_out`.
        """
        missing = n_coefficients(self.order_out) - functions.shape[1]
        padded = nn.functional.pad(functions, (0, 0, 0, missing))
        change = self.products(functions) + per_order(padded, self.linear, self.order_out)
        size = norms(change, self.order_out)
        scale = 1 / (1 + size.mean(dim=1, keepdim=True))  # a product must not grow without bound
        gates = self.gate(torch.cat([scalars, (size * scale).flatten(1)], dim=1))
        factor = (1 + torch.tanh(gates)).view_as(size) * scale
        return padded + change * factor[:, _order_of(self.order_out)]

    def products(self, functions: Tensor) -> Tensor:
        """Products of two combinations of the functions, (V, C_out, channels)."""
        to_points, to_coefficients = _transforms(self.order_in, self.order_out)
        one, other = (to_points.to(functions) @ (functions @ self.factors)).chunk(2, dim=-1)
        found: Tensor = to_coefficients.to(functions) @ (one * other)
        return found


def per_order(functions: Tensor, weights: Tensor, order: int) -> Tensor:
    """Combine channels, each order by itself: (V, C, channels) and (orders, channels, new)."""
    parts = functions.split([2 * l + 1 for l in even_orders(order)], dim=1)
    return torch.cat([part @ weight for part, weight in zip(parts, weights, strict=True)], dim=1)


def norms(functions: Tensor, order: int) -> Tensor:
    """Norms of the coefficients of every order, (V, orders, channels)."""
    parts = functions.split([2 * l + 1 for l in even_orders(order)], dim=1)
    return torch.stack([(part.square().sum(dim=1) + _LEAST).sqrt() for part in parts], dim=1)


@cache
def _order_of(order: int) -> Tensor:
    """Number of the order of every coefficient, (C,)."""
    dims = torch.tensor([2 * l + 1 for l in even_orders(order)])
    return torch.arange(len(dims)).repeat_interleave(dims)


@cache
def _transforms(order_in: int, order_out: int) -> tuple[Tensor, Tensor]:
    """From coefficients to values at points, and back from a product of two functions."""
    points, weights = sphere_quadrature(2 * order_in + order_out)
    at = harmonics_at(torch.from_numpy(points.copy()), max(order_in, order_out)) / ORTHONORMAL
    back = at[:, : n_coefficients(order_out)] * torch.from_numpy(weights.copy())[:, None]
    return at[:, : n_coefficients(order_in)], back.T.contiguous()
