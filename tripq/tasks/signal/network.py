r"""The network: harmonics of the measured directions, corrected from the neighbourhood.

On a shell the signal of a voxel is a function on the sphere, with the coefficients

.. math::
    c = F s + \sigma\, g(F s).

:math:`F` is the fit of `tripq.tasks.signal.harmonics`.  g is an equivariant network on p-space: it
takes the coefficients of the fit as features of order 0, 2, 4 of the voxel and of its neighbours.
Its last layer starts at 0, so that training starts at the fit, and :math:`\sigma` is the standard
error of the coefficients, so that first corrections have the size of the errors: both the large
isotropic part and the initial scale are solved by this.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations_with_replacement

import torch
from torch import Tensor, nn

from tripq.domain.batch import pad_rows
from tripq.domain.graph import PQGraph
from tripq.domain.qspace import QSpace, same_shell
from tripq.domain.quadrature import Quadrature
from tripq.domain.scan_graph import ScanGraph
from tripq.filters.filter import coupling_tensor
from tripq.filters.radial import Radial
from tripq.infra.e3nn import o3
from tripq.networks.signal import LARGEST_RATIO
from tripq.nn.block import Block
from tripq.nn.bound import Bindable
from tripq.nn.layer import PQTensorFieldLayer
from tripq.scans import B_REFERENCE, DWIError
from tripq.tasks.signal.harmonics import ShellFit, even_orders, harmonics_at

HIGHEST_ORDER = 8
"""Of the harmonics: more coefficients than any table has directions."""

_LEAST_NOISE = 0.05  # relative to the usual noise, for the logarithm
_LEAST_FREEDOM = 0.1


class SignalPredictor(Bindable):
    """Rotation-equivariant network that predicts the signal along any direction of a shell.

    Each shell is fitted by spherical harmonics, and a network on p-space corrects the coefficients
    from those of the neighbourhood.  One set of weights serves every shell and gradient table.
    With its initial weights the network gives the fit.

    Parameters
    ----------
    p_radius : float
        Radius of a layer's neighbourhood in mm.
    p_features : Irreps or str
        Features of each layer on p-space.
    n_p_layers : int
        Number of these layers, without the last.
    order : int
        Highest order of the harmonics: 2, 4, 6 or 8.
    smoothing : float
        Laplace-Beltrami weight of the fit, as in dipy; see `tripq.tasks.signal.harmonics`.
    p_radial : Radial
        Radial functions of every layer, of the distance of two voxels.
    quadrature : {"integral", "sum"}
        Of every layer; see `PQTensorFieldLayer`.

    Attributes
    ----------
    irreps_shell : Irreps
        Of the coefficients of a shell; see `coefficients`.

    Raises
    ------
    ValueError
        If a number is out of range, or no path leads to some of the features.

    Examples
    --------
    >>> import numpy as np
    >>> from tripq.simulate import GradientTable
    >>> shown, wanted = (GradientTable.from_shells([1000.0], [n]).directions for n in (12, 30))
    >>> affine = np.diag([2.0, 2, 2, 1])
    >>> graph = PQGraph.from_grid(np.ones((5, 5, 5)), affine, shown, 4.0, q_out=wanted)
    >>> SignalPredictor()(torch.rand(125, len(shown)), graph).shape
    torch.Size([125, 31])
    """

    mean: Tensor
    size: Tensor
    noise: Tensor

    def __init__(
        self,
        *,
        p_radius: float = 4.0,
        p_features: o3.Irreps | str = "24x0e + 8x2e + 4x4e",
        n_p_layers: int = 1,
        order: int = 4,
        smoothing: float = 0.004,
        p_radial: Radial = Radial("cosine", 2),
        quadrature: Quadrature = "integral",
    ) -> None:
        super().__init__()
        if order not in range(2, HIGHEST_ORDER + 1, 2):
            raise ValueError(f"order must be 2, 4, 6 or 8, not {order}")
        if n_p_layers < 1:
            raise ValueError(f"n_p_layers must be 1 or more, not {n_p_layers}")
        if not 0 < smoothing < float("inf"):
            raise ValueError(f"smoothing must be positive, not {smoothing}")
        self.p_radius = p_radius
        self.p_features = str(p_features)
        self.n_p_layers = n_p_layers
        self.order = order
        self.smoothing = smoothing
        self.p_radial = p_radial
        self.quadrature = quadrature
        orders = even_orders(order)
        self.irreps_shell = o3.Irreps([(1, (l, 1)) for l in orders])
        self._products = [
            (a, b, l)
            for a, b in combinations_with_replacement(orders[1:], 2)
            for l in orders
            if abs(a - b) <= l <= a + b
        ]
        # in the order of `_features`; the scalars are noise, |q| and the errors of the orders
        given = o3.Irreps([(1, (l, 1)) for _, _, l in self._products])
        given = given + o3.Irreps([(2 + len(orders), "0e")]) + self.irreps_shell
        blocks: list[Block] = []
        for _ in range(n_p_layers):
            blocks.append(
                Block(
                    blocks[-1].irreps_out if blocks else given,
                    p_features,
                    p_radius,
                    norms=True,
                    batch_norm=False,
                    q_in=None,
                    lmax_p=2,
                    p_radial=p_radial,
                    quadrature=quadrature,
                )
            )
        self.blocks = nn.ModuleList(blocks)
        self.head = PQTensorFieldLayer(
            blocks[-1].irreps_out + given,
            self.irreps_shell,
            p_radius,
            q_in=None,
            lmax_p=2,
            bias=True,
            p_radial=p_radial,
            quadrature=quadrature,
        )
        for weight in self.head.parameters():
            nn.init.zeros_(weight)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("size", torch.ones(len(orders)))
        self.register_buffer("noise", torch.ones(()))

    def forward(self, signal: Tensor, graph: PQGraph) -> Tensor:
        """The signal, divided by b0, at the output directions of a graph.

        Parameters
        ----------
        signal : Tensor of shape (V, Q)
            Signal divided by b0, at the input directions.
        graph : PQGraph
            Made with ``q_out``.  Without it the output directions are those of the input; each is
            predicted from all of them.

        Returns
        -------
        Tensor of shape (V, Q_out)
            1 at q = 0.

        Raises
        ------
        DWIError
            If an output direction has another b-value than all input directions.
        """
        parts = graph.by_scan(signal, [scan.n_voxels for scan in graph.scans])
        return pad_rows([self._on_scan(part, scan) for scan, part in parts])

    def _on_scan(self, signal: Tensor, scan: ScanGraph) -> Tensor:
        q, graph = shared_directions(scan), PQGraph([scan])
        output = signal.new_ones(len(signal), len(q.q_out))
        for inputs, outputs in split_shells(q):
            values = self.along(q.q_out[outputs], signal[:, inputs], q.q_in[inputs], graph)
            output = output.index_copy(1, outputs, values)
        return output

    def along(self, q_out: Tensor, signal: Tensor, q: Tensor, graph: PQGraph) -> Tensor:
        """The signal of one shell along some of its directions.

        Parameters
        ----------
        q_out : Tensor of shape (Q_out, 3)
            Their q-vectors.
        signal, q, graph
            What was measured on the shell; see `coefficients`.

        Returns
        -------
        Tensor of shape (V, Q_out)
        """
        at = harmonics_at(q_out, self.order).to(signal)
        return self.coefficients(signal, q, graph) @ at.T

    def coefficients(self, signal: Tensor, q: Tensor, graph: PQGraph) -> Tensor:
        """Coefficients of the signal of one shell.

        Parameters
        ----------
        signal : Tensor of shape (V, Q)
            Signal divided by b0, of the directions of the shell.
        q : Tensor of shape (Q, 3)
            Their q-vectors.
        graph : PQGraph
            The voxels.

        Returns
        -------
        Tensor of shape (V, irreps_shell.dim)
            Of the harmonics of `tripq.tasks.signal.harmonics.harmonics_at`.
        """
        signal = signal.clamp(max=LARGEST_RATIO)
        fit = ShellFit.of(q, self.order, self.smoothing)
        fitted = signal @ fit.matrix.T.to(signal)
        given = self._features(fitted, signal, q, fit)
        x = given
        for block in self.blocks:
            x = block(x, graph)
        correction: Tensor = self.head(torch.cat([x, given], dim=-1), graph)
        return fitted + correction * self._each(self.noise * fit.errors.to(signal))

    def _features(self, fitted: Tensor, signal: Tensor, q: Tensor, fit: ShellFit) -> Tensor:
        """What g takes of every voxel: products, noise, the table, and the coefficients."""
        orders = even_orders(self.order)
        isotropic, *rest = (fitted / self._each(self.size)).split([2 * l + 1 for l in orders], -1)
        parts = dict(zip(orders, [isotropic - self.mean / self.size[0], *rest], strict=True))
        products = [
            torch.einsum("va,vb,abc->vc", parts[a], parts[b], coupling_tensor(a, b, l, signal))
            for a, b, l in self._products
        ]
        noise = (_noise(fitted, signal, fit) / self.noise + _LEAST_NOISE).log()[:, None]
        table = torch.cat([q.norm(dim=-1).mean()[None], fit.errors.log()]).to(signal)
        return torch.cat([*products, noise, table.expand(len(signal), -1), *parts.values()], dim=-1)

    def _each(self, of_orders: Tensor) -> Tensor:
        """A value for every coefficient, from one for every order."""
        dims = [2 * l + 1 for l in even_orders(self.order)]
        return of_orders.repeat_interleave(torch.tensor(dims, device=of_orders.device))

    @torch.no_grad()
    def measure(self, signal: Tensor, graph: PQGraph) -> None:
        """Set the scales of features and corrections to those of a first batch.

        Parameters
        ----------
        signal, graph
            As for `forward`; anatomy and noise should be typical.
        """
        found, noise = [], []
        for scan, part in graph.by_scan(signal, [scan.n_voxels for scan in graph.scans]):
            q = shared_directions(scan)
            for inputs, _ in split_shells(q):
                fit = ShellFit.of(q.q_in[inputs], self.order, self.smoothing)
                shell = part[:, inputs].clamp(max=LARGEST_RATIO)
                found.append(shell @ fit.matrix.T.to(shell))
                noise.append(_noise(found[-1], shell, fit))
        coefficients = torch.cat(found)
        self.mean.copy_(coefficients[:, 0].mean())
        coefficients[:, 0] -= self.mean
        parts = coefficients.split([2 * l + 1 for l in even_orders(self.order)], dim=-1)
        self.size.copy_(torch.stack([_root_mean_square(part) for part in parts]))
        self.noise.copy_(_root_mean_square(torch.cat(noise)))


def _noise(fitted: Tensor, signal: Tensor, fit: ShellFit) -> Tensor:
    """Noise of every voxel, (V,), from the residual of its fit."""
    residual = signal - fitted @ fit.basis.T.to(signal)
    return (residual.square().sum(dim=-1) / max(fit.freedom, _LEAST_FREEDOM)).sqrt()


def _root_mean_square(x: Tensor) -> Tensor:
    """Of all values; positive, because it divides."""
    return x.square().mean().sqrt().clamp(min=1e-6)


def shared_directions(scan: ScanGraph) -> QSpace:
    """The directions of all voxels of a scan; `ValueError` if its nodes have their own."""
    if not isinstance(scan.q, QSpace):
        raise ValueError("the signal is predicted on graphs whose voxels share their directions")
    return scan.q


def split_shells(q: QSpace) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices of the input and the output directions of each shell; b0 is none.

    Raises
    ------
    DWIError
        If an output direction is on no shell of the input.
    """
    without = q.q_out.norm(dim=-1) > 0
    for member in q.shells.member:
        inputs = member.nonzero()[:, 0]
        if not q.q_in[inputs].any():
            continue
        outputs = same_shell(q.q_out[:, None], q.q_in[inputs]).any(dim=1) & without
        without &= ~outputs
        yield inputs, outputs.nonzero()[:, 0]
    if without.any():
        b_values = sorted({round(B_REFERENCE * float(v @ v)) for v in q.q_out[without]})
        raise DWIError(f"no direction was measured at b = {b_values} s/mm2.")
