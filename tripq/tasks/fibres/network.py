r"""The network: fibre orientations from a scan in units of its response.

Two constrained spherical deconvolutions (`tripq.so3.deconvolution`) that differ in their
regularisation give two distributions for every voxel.  The orientation distribution has the
coefficients

.. math::
    F_l = \sum_k a_{lk}\, X_{lk} + \sigma_l\, g_l(X),

where X are features of order l of the voxel: those of the deconvolutions, the harmonics of the
signal, and their products (`tripq.networks.shell`).  The first part is linear in them; its weights
are solved by least squares on the first batch (`FibreNetwork.solve`).  g is an equivariant network.
Layers on p-space collect the features up to the order of the fit from the neighbourhood, as some
functions on the sphere and invariants of every voxel; products of these functions and of the
deconvolutions (`tripq.nn.products`) reach the orders above.  The last weights start at 0, and
:math:`\sigma_l` is the error of the first part.  So training starts at a deconvolution, and typical
corrections are of size 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from tripq.domain.graph import PQGraph
from tripq.domain.quadrature import Quadrature
from tripq.domain.scan_graph import ScanGraph
from tripq.filters.radial import Radial
from tripq.infra.e3nn import o3
from tripq.networks.shell import (
    ShellNetwork,
    check_orders,
    shared_directions,
    shells,
)
from tripq.networks.signal import LARGEST_RATIO
from tripq.nn.products import SphericalProducts, per_order
from tripq.nn.residual import per_component, size_by_irrep
from tripq.so3.deconvolution import Deconvolution
from tripq.so3.fit import even_orders
from tripq.so3.mrtrix import ORTHONORMAL, n_coefficients

RIDGES = (1e-4, 2e-5)
"""Of the deconvolutions: the first is near the best one for b = 3000 s/mm2, the second for 1000."""

_SCALARS = 16
"""Invariants of every voxel that determine the gates of the products."""

_RIDGE = 1e-6  # of the mean square of the features, for the least squares


class FibreNetwork(ShellNetwork):
    """Rotation-equivariant network from a diffusion scan to fibre orientation distributions.

    Signal and q-vectors are those of a scan in units of its response
    (`tripq.scans.response.scale_by_response`), so that a fibre has the same signal in all scans.
    The directions of a scan are reduced at once to harmonics and to distributions, so that one set
    of weights serves every gradient table.  Of several shells that with most directions is used,
    and of shells of equal numbers that with the highest b-value.

    Parameters
    ----------
    p_radius : float
        Radius of a layer's neighbourhood in mm; with 0 every voxel is taken by itself.
    order : int
        Highest order of the output: 2, 4, 6 or 8.
    fit_order : int
        Highest order of the harmonics of the signal, and of what layers take from the
        neighbourhood: 2, 4, 6 or 8.
    channels, n_products : int
        Number of functions on the sphere in every voxel besides the deconvolutions, and of layers
        that multiply all of them.
    p_features, n_p_layers, smoothing, p_radial, quadrature
        As in `tripq.networks.shell.ShellNetwork`.

    Attributes
    ----------
    irreps_out : Irreps
        Of the output: even orders, one of each.

    Raises
    ------
    ValueError
        If a number is out of range, or no path leads to some of the features.

    Examples
    --------
    >>> import numpy as np
    >>> from tripq.simulate import GradientTable
    >>> q = GradientTable.from_shells([1000.0], [12]).directions
    >>> graph = PQGraph.from_grid(np.ones((4, 4, 4)), np.diag([2.0, 2, 2, 1]), q, 4.0)
    >>> network = FibreNetwork(p_features="4x0e + 2x2e")
    >>> network.irreps_out
    1x0e+1x2e+1x4e+1x6e+1x8e
    >>> network(torch.rand(64, 13), graph).shape
    torch.Size([64, 45])
    """

    encoder_kind = "FibreNetwork"
    encoder_arguments: ClassVar[Mapping[str, str]] = {
        **{name: name for name in ShellNetwork.encoder_arguments},
        "fit_order": "fit_order",
    }

    takes_scaled = True
    error: Tensor

    def __init__(
        self,
        *,
        p_radius: float = 4.0,
        p_features: o3.Irreps | str = "24x0e + 8x2e + 4x4e",
        n_p_layers: int = 2,
        order: int = 8,
        fit_order: int = 4,
        channels: int = 14,
        n_products: int = 3,
        smoothing: float = 0.004,
        p_radial: Radial = Radial("cosine", 2),
        quadrature: Quadrature = "integral",
    ) -> None:
        check_orders(order=order, fit_order=fit_order)
        if channels < 1 or n_products < 1:
            raise ValueError(
                f"channels and n_products must be 1 or more, not {channels} and {n_products}"
            )
        of_functions = [(channels, (l, 1)) for l in even_orders(fit_order)]
        distribution = o3.Irreps([(1, (l, 1)) for l in even_orders(order)])
        super().__init__(
            o3.Irreps([(_SCALARS, "0e"), *of_functions]).simplify(),
            product_order=order,
            head_on_neighbours=False,
            extra_features=distribution * len(RIDGES),
            p_radius=p_radius,
            p_features=p_features,
            n_p_layers=n_p_layers,
            order=fit_order,
            smoothing=smoothing,
            p_radial=p_radial,
            quadrature=quadrature,
        )
        if self.head.unreached:
            raise ValueError(f"no path leads to {self.head.unreached} of the functions")
        self.order = order
        self.fit_order = fit_order
        self.channels = channels
        self.n_products = n_products
        self.irreps_out = distribution
        n_functions = channels + len(RIDGES)
        self._functions_order = max(order, fit_order)
        self.products = nn.ModuleList(
            SphericalProducts(
                n_functions,
                order_in=order if number else self._functions_order,
                order_out=order,
                n_scalars=_SCALARS,
            )
            for number in range(n_products)
        )
        self.last = nn.Parameter(torch.zeros(len(self.irreps_out), n_functions, 1))
        self.isotropic = nn.Parameter(torch.zeros(_SCALARS))
        dims = [channels * (2 * l + 1) for l in even_orders(fit_order)]
        self._sizes = [_SCALARS, *dims]
        of_order = {l: self._columns(l) for l in even_orders(order)}
        self._columns_of = {l: columns for l, columns in of_order.items() if len(columns)}
        self.bias = nn.Parameter(torch.zeros(1))
        self.start = nn.ParameterList(
            nn.Parameter(torch.zeros(len(columns))) for columns in self._columns_of.values()
        )
        self.register_buffer("error", torch.ones(len(self.irreps_out)))

    def forward(self, signal: Tensor, graph: PQGraph) -> Tensor:
        """Coefficients of the orientation distributions.

        Parameters
        ----------
        signal : Tensor of shape (V, Q)
            In units of the response.
        graph : PQGraph
            The voxels, and their directions in these units.

        Returns
        -------
        Tensor of shape (V, irreps_out.dim)
            Of e3nn's harmonics in world axes, orthonormal; `tripq.so3.mrtrix.to_mrtrix` gives those
            of MRtrix.

        Raises
        ------
        ValueError
            If a scan has no diffusion-weighted direction, or its voxels do not share directions.
        """
        parts = graph.by_scan(signal)
        return torch.cat([self._on_scan(part, scan) for scan, part in parts])

    def _on_scan(self, signal: Tensor, scan: ScanGraph) -> Tensor:
        features = self._features_of(signal, scan)
        collected = self.on_voxels(features, PQGraph([scan]))
        n = len(RIDGES) * self.irreps_out.dim
        deconvolved = features[:, -n:].unflatten(1, (len(RIDGES), -1)).mT
        correction = self._correction(collected, deconvolved)
        return self._linear(features) + correction * per_component(self.error, self.irreps_out)

    def _correction(self, collected: Tensor, deconvolved: Tensor) -> Tensor:
        """The correction, (V, irreps_out.dim), from what was collected and the deconvolutions."""
        scalars, *rest = collected.split(self._sizes, dim=1)
        parts = [part.unflatten(1, (self.channels, -1)).mT for part in rest]
        functions = torch.cat(
            [_up_to_order(x, self._functions_order) for x in (torch.cat(parts, 1), deconvolved)], 2
        )
        for layer in self.products:
            functions = layer(functions, scalars)
        found = per_order(functions, self.last, self.order)[..., 0]
        return torch.cat([found[:, :1] + scalars @ self.isotropic[:, None], found[:, 1:]], dim=1)

    def _features_of(self, signal: Tensor, scan: ScanGraph) -> Tensor:
        """Features of the shell, and the deconvolutions, scaled so that order 0 is the integral."""
        q = shared_directions(scan)
        inputs = _largest(q.q_in, list(shells(q)))
        shell, q_in = signal[:, inputs].clamp(max=LARGEST_RATIO), q.q_in[inputs]
        deconvolved = [
            ORTHONORMAL * Deconvolution.of(q_in, self.order, ridge)(shell) for ridge in RIDGES
        ]
        return torch.cat([self.fit_shell(shell, q_in).features, *deconvolved], dim=1)

    def _linear(self, features: Tensor) -> Tensor:
        """The part that is linear in the features, (V, irreps_out.dim)."""
        output = features.new_zeros(len(features), self.irreps_out.dim)
        for (l, columns), weight in zip(self._columns_of.items(), self.start, strict=True):
            output[:, _components(l)] = torch.einsum("vkm,k->vm", features[:, columns], weight)
        return torch.cat([output[:, :1] + self.bias, output[:, 1:]], dim=1)

    def _columns(self, l: int) -> list[list[int]]:
        """Columns of each feature of an order, (features, 2 l + 1)."""
        described = zip(self.irreps_features, self.irreps_features.slices(), strict=True)
        return [
            list(range(columns.start, columns.stop))
            for (mul, ir), columns in described
            if ir.l == l and mul == 1  # the scalars that describe noise and table come together
        ]

    @torch.no_grad()
    def solve(self, signal: Tensor, graph: PQGraph, target: Tensor) -> None:
        """Solve the linear part by least squares on a first batch; `measure` the scales before.

        Parameters
        ----------
        signal, graph
            As for `forward`.
        target : Tensor of shape (V, irreps_out.dim)
            The wanted output.
        """
        parts = graph.by_scan(signal)
        features = torch.cat([self._features_of(part, scan) for scan, part in parts]).double()
        for (l, columns), weight in zip(self._columns_of.items(), self.start, strict=True):
            x, y = features[:, columns], target[:, _components(l)].double()
            if l == 0:
                x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
            gram = torch.einsum("vkm,vjm->kj", x, x)
            ridge = _RIDGE * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
            solved = torch.linalg.solve(gram + ridge, torch.einsum("vkm,vm->k", x, y))
            weight.copy_(solved[: len(weight)])
            if l == 0:
                self.bias.copy_(solved[-1:])
        residual = target - self._linear(features.to(signal))
        self.error.copy_(size_by_irrep(residual, self.irreps_out))


def _up_to_order(functions: Tensor, order: int) -> Tensor:
    """Functions (V, C, channels) with zeros for the orders that they lack."""
    return nn.functional.pad(functions, (0, 0, 0, n_coefficients(order) - functions.shape[1]))


def _components(l: int) -> slice:
    """Columns of an even order among the coefficients of all."""
    return slice(n_coefficients(l) - (2 * l + 1), n_coefficients(l))


def _largest(q: Tensor, inputs: list[Tensor]) -> Tensor:
    """Indices of the shell with most directions; of equal ones that with the highest b-value."""
    if not inputs:
        raise ValueError("no direction is diffusion-weighted")
    return max(inputs, key=lambda one: (len(one), float(q[one].norm(dim=-1).mean())))
