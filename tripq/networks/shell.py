"""Networks on the spherical harmonics of a shell, for several tasks.

The signal of a shell is fitted by spherical harmonics (`tripq.so3.fit`), whose coefficients are
features of order 0, 2, 4, ... of every voxel.  Layers on p-space follow.  The input of the layers
does not depend on the number of directions, so that one network serves all gradient tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import ClassVar

import torch
from torch import Tensor, nn

from tripq.domain.graph import PQGraph
from tripq.domain.qspace import QSpace, same_shell
from tripq.domain.quadrature import Quadrature
from tripq.domain.scan_graph import ScanGraph
from tripq.filters.filter import coupling_tensor
from tripq.filters.radial import Radial
from tripq.infra.e3nn import o3
from tripq.networks.encoding import Encoding
from tripq.networks.signal import LARGEST_RATIO
from tripq.nn.block import Block
from tripq.nn.layer import PQTensorFieldLayer
from tripq.nn.residual import per_component, root_mean_square, size_by_irrep
from tripq.scans import B_REFERENCE, DWIError
from tripq.so3.fit import ShellFit, check_smoothing, even_orders

HIGHEST_ORDER = 8
"""Of the harmonics: more coefficients than any table has directions."""

_ROUGH = 0.05
"""Smoothing of the second fit, relative to that of the first."""

_LEAST_NOISE = 0.05  # relative to the usual noise, for the logarithm
_LEAST_FREEDOM = 0.1


@dataclass(frozen=True, eq=False)
class FittedShell:
    """The harmonics of the signal of a shell, in V voxels.

    Parameters
    ----------
    coefficients : Tensor of shape (V, C)
        Of the fit.
    features : Tensor of shape (V, C')
        What the layers take: products of the coefficients in the voxel, the logarithm of its noise,
        |q|, the logarithms of `errors`, and the coefficients, scaled; and what the smoothing took
        from them, in units of their standard errors.
    errors : Tensor of shape (number of orders,)
        Standard errors of the coefficients for noise of size 1; see `tripq.so3.fit.ShellFit`.
    """

    coefficients: Tensor
    features: Tensor
    errors: Tensor


class ShellNetwork(Encoding):
    """Base of networks that take the harmonics of a shell: scales, layers on p-space, and a head.

    Parameters
    ----------
    irreps_head : Irreps or str
        Output of the last layer.
    product_order : int
        Highest order of the products of coefficients among the features of a shell; the layers take
        those up to `order`.
    head_on_neighbours : bool
        Whether the last layer takes the neighbours of a voxel, too.
    extra_features : Irreps or str
        Further features of a voxel, which a subclass appends to those of the shell.
    p_radius : float
        Radius of a layer's neighbourhood in mm.
    p_features : Irreps or str
        Features of each layer on p-space.
    n_p_layers : int
        Number of these layers, without the last.
    order : int
        Highest order of the harmonics: 2, 4, 6 or 8.
    smoothing : float
        Laplace-Beltrami weight of the fit, as in dipy; see `tripq.so3.fit`.
    p_radial : Radial
        Radial functions of every layer, of the distance of two voxels.
    quadrature : {"integral", "sum"}
        Of every layer; see `PQTensorFieldLayer`.

    Attributes
    ----------
    irreps_shell, irreps_features : Irreps
        Of the coefficients, and of the features of a `FittedShell` with the extra ones.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    encoder_kind = "ShellNetwork"
    encoder_parts = ("blocks", "mean", "size", "noise")
    encoder_arguments: ClassVar[Mapping[str, str]] = {
        name: name
        for name in (
            *("p_radius", "p_features", "n_p_layers", "order", "smoothing"),
            *("p_radial", "quadrature"),
        )
    }

    mean: Tensor
    size: Tensor
    noise: Tensor

    def __init__(
        self,
        irreps_head: o3.Irreps | str,
        *,
        product_order: int,
        head_on_neighbours: bool = True,
        extra_features: o3.Irreps | str = "",
        p_radius: float = 4.0,
        p_features: o3.Irreps | str = "24x0e + 8x2e + 4x4e",
        n_p_layers: int = 1,
        order: int = 4,
        smoothing: float = 0.004,
        p_radial: Radial = Radial("cosine", 2),
        quadrature: Quadrature = "integral",
    ) -> None:
        super().__init__()
        if n_p_layers < 1:
            raise ValueError(f"n_p_layers must be 1 or more, not {n_p_layers}")

        self.p_radius = p_radius
        self.p_features = str(p_features)
        self.n_p_layers = n_p_layers
        self.smoothing = check_smoothing(smoothing)
        self.p_radial = p_radial
        self.quadrature = quadrature
        self._orders = orders = even_orders(order)
        self._products = [
            (a, b, l)
            for a, b in combinations_with_replacement(orders[1:], 2)
            for l in even_orders(product_order)
            if abs(a - b) <= l <= a + b
        ]
        # in the order of `_features`; the scalars are noise, |q| and the errors of the orders
        self.irreps_shell = o3.Irreps([(1, (l, 1)) for l in orders])
        given = o3.Irreps([(1, (l, 1)) for _, _, l in self._products])
        given = given + o3.Irreps([(2 + len(orders), "0e")])
        given = given + self.irreps_shell + self.irreps_shell
        self.irreps_features = given + o3.Irreps(extra_features)
        self._taken, given = _up_to(order, self.irreps_features)
        blocks: list[Block] = []
        for _ in range(n_p_layers):
            blocks.append(
                Block(
                    blocks[-1].irreps_out if blocks else given,
                    p_features,
                    p_radius,
                    norms=True,
                    normalize="none",
                    q_in=None,
                    lmax_p=2,
                    p_radial=p_radial,
                    quadrature=quadrature,
                )
            )
        self.blocks = nn.ModuleList(blocks)
        self.head = PQTensorFieldLayer(
            blocks[-1].irreps_out + given,
            irreps_head,
            p_radius if head_on_neighbours else 0.0,
            q_in=None,
            lmax_p=2,
            bias=True,
            p_radial=p_radial,
            quadrature=quadrature if head_on_neighbours else "sum",
        )
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("size", torch.ones(len(orders)))
        self.register_buffer("noise", torch.ones(()))

    def fit_shell(self, signal: Tensor, q: Tensor) -> FittedShell:
        """Fit the signal of one shell.

        Parameters
        ----------
        signal : Tensor of shape (V, Q)
            Signal of the directions of the shell: divided by b0, or in units of the response.
        q : Tensor of shape (Q, 3)
            Their q-vectors.
        """
        signal = signal.clamp(max=LARGEST_RATIO)
        fit = ShellFit.of(q, self._orders[-1], self.smoothing)
        fitted = signal @ fit.matrix.T.to(signal)
        features = self._features(fitted, signal, q, fit)
        return FittedShell(fitted, features, fit.errors.to(signal))

    def on_voxels(self, features: Tensor, graph: PQGraph) -> Tensor:
        """The output of the last layer, (V, irreps_head.dim), from the features of a shell."""
        given = x = features[:, self._taken]
        for block in self.blocks:
            x = block(x, graph)
        output: Tensor = self.head(torch.cat([x, given], dim=-1), graph)
        return output

    def _features(self, fitted: Tensor, signal: Tensor, q: Tensor, fit: ShellFit) -> Tensor:
        """Inputs of the layers in every voxel: products, noise, the table, and the coefficients."""
        scaled = fitted / per_component(self.size, self.irreps_shell)
        isotropic, *rest = (scaled[:, columns] for columns in self.irreps_shell.slices())
        isotropic = isotropic - self.mean / self.size[0]
        parts = dict(zip(self._orders, [isotropic, *rest], strict=True))
        products = [
            torch.einsum("va,vb,abc->vc", parts[a], parts[b], coupling_tensor(a, b, l, signal))
            for a, b, l in self._products
        ]
        noise = (_noise(fitted, signal, fit) / self.noise + _LEAST_NOISE).log()[:, None]
        table = torch.cat([q.norm(dim=-1).mean()[None], fit.errors.log()]).to(signal)
        scalars = [noise, table.expand(len(signal), -1)]
        removed = self._removed(fitted, signal, q, fit)
        return torch.cat([*products, *scalars, *parts.values(), removed], dim=-1)

    def _removed(self, fitted: Tensor, signal: Tensor, q: Tensor, fit: ShellFit) -> Tensor:
        """Coefficients of a fit that is hardly smoothed, minus those of the fit.

        The right smoothing depends on the noise and on the directions.  Added with a weight from 0
        to 1, in the unit of a correction of the coefficients, this gives every smoothing between.
        """
        rough = ShellFit.of(q, self._orders[-1], _ROUGH * self.smoothing)
        removed = signal @ rough.matrix.T.to(signal) - fitted
        return removed / self.standard_errors(fit.errors.to(signal))

    def standard_errors(self, errors: Tensor) -> Tensor:
        """Those of all coefficients for the usual noise, from the `FittedShell.errors`."""
        return per_component(self.noise * errors, self.irreps_shell)

    @torch.no_grad()
    def measure(self, signal: Tensor, graph: PQGraph) -> None:
        """Set the scales of features and noise to those of a first batch.

        Parameters
        ----------
        signal, graph
            As for `forward`; anatomy and noise should be typical.
        """
        found, noise = [], []
        for scan, part in graph.by_scan(signal):
            q = shared_directions(scan)
            for inputs in shells(q):
                fit = ShellFit.of(q.q_in[inputs], self._orders[-1], self.smoothing)
                shell = part[:, inputs].clamp(max=LARGEST_RATIO)
                found.append(shell @ fit.matrix.T.to(shell))
                noise.append(_noise(found[-1], shell, fit))
        coefficients = torch.cat(found)
        self.mean.copy_(coefficients[:, 0].mean())
        coefficients[:, 0] -= self.mean
        self.size.copy_(size_by_irrep(coefficients, self.irreps_shell))
        self.noise.copy_(root_mean_square(torch.cat(noise)))


def _up_to(order: int, irreps: o3.Irreps) -> tuple[Tensor, o3.Irreps]:
    """Columns of the features up to an order, and their irreps."""
    some = [
        (torch.arange(columns.start, columns.stop), one)
        for one, columns in zip(irreps, irreps.slices(), strict=True)
        if one.ir.l <= order
    ]
    return torch.cat([columns for columns, _ in some]), o3.Irreps([one for _, one in some])


def check_orders(**orders: int) -> None:
    """Check highest orders of harmonics.

    Raises
    ------
    ValueError
        If one is not 2, 4, 6 or 8; the message has its name.
    """
    for name, order in orders.items():
        if order not in range(2, HIGHEST_ORDER + 1, 2):
            raise ValueError(f"{name} must be 2, 4, 6 or 8, not {order}")


def shared_directions(scan: ScanGraph) -> QSpace:
    """The directions of a scan, which its voxels share.

    Raises
    ------
    ValueError
        If every voxel has directions of its own.
    """
    if not isinstance(scan.q, QSpace):
        raise ValueError("harmonics need graphs whose voxels share their directions")
    return scan.q


def shells(q: QSpace) -> Iterator[Tensor]:
    """Indices of the input directions of each shell; b0 is none."""
    for member in q.shells.member:
        inputs = member.nonzero()[:, 0]
        if q.q_in[inputs].any():
            yield inputs


def split_shells(q: QSpace) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices of the input and the output directions of each shell; b0 is none.

    Raises
    ------
    DWIError
        If an output direction is on no shell of the input.
    """
    without = q.q_out.norm(dim=-1) > 0
    for inputs in shells(q):
        outputs = same_shell(q.q_out[:, None], q.q_in[inputs]).any(dim=1) & without
        without &= ~outputs
        yield inputs, outputs.nonzero()[:, 0]
    if without.any():
        b_values = sorted({round(B_REFERENCE * float(v @ v)) for v in q.q_out[without]})
        raise DWIError(f"no direction was measured at b = {b_values} s/mm2.")


def _noise(fitted: Tensor, signal: Tensor, fit: ShellFit) -> Tensor:
    """Noise of every voxel, (V,), from the residual of its fit."""
    residual = signal - fitted @ fit.basis.T.to(signal)
    return (residual.square().sum(dim=-1) / max(fit.freedom, _LEAST_FREEDOM)).sqrt()
