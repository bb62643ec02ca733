r"""The network: harmonics of the measured directions, corrected from the neighbourhood.

On a shell the signal of a voxel is a function on the sphere, with the coefficients

.. math::
    c = F s + \sigma\, g(F s).

:math:`F` is the fit of `tripq.so3.fit`.  g is an equivariant network on p-space: it
takes the coefficients of the fit as features of order 0, 2, 4 of the voxel and of its neighbours.
Its last layer starts at 0, so that training starts at the fit, which includes the large isotropic
part.  :math:`\sigma` is the standard error of the coefficients, so that typical corrections are of
size 1.
"""

from __future__ import annotations

from torch import Tensor

from tripq.domain.graph import PQGraph
from tripq.domain.quadrature import Quadrature
from tripq.filters.radial import Radial
from tripq.infra.e3nn import o3
from tripq.networks.harmonics import on_shells
from tripq.networks.shell import ShellNetwork, check_orders
from tripq.nn.residual import start_at_zero
from tripq.so3.fit import even_orders, harmonics_at


class SignalPredictor(ShellNetwork):
    """Rotation-equivariant network that predicts the signal along any direction of a shell.

    Each shell is fitted by spherical harmonics, and a network on p-space corrects the coefficients
    from those of the neighbourhood.  One set of weights serves every shell and gradient table.
    With its initial weights the network gives the fit.

    Parameters
    ----------
    p_radius, p_features, n_p_layers, order, smoothing, p_radial, quadrature
        As in `tripq.networks.shell.ShellNetwork`.

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
    >>> import numpy as np, torch
    >>> from tripq.simulate import GradientTable
    >>> shown, wanted = (GradientTable.from_shells([1000.0], [n]).directions for n in (12, 30))
    >>> affine = np.diag([2.0, 2, 2, 1])
    >>> graph = PQGraph.from_grid(np.ones((5, 5, 5)), affine, shown, 4.0, q_out=wanted)
    >>> SignalPredictor()(torch.rand(125, len(shown)), graph).shape
    torch.Size([125, 31])
    """

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
        check_orders(order=order)
        super().__init__(
            o3.Irreps([(1, (l, 1)) for l in even_orders(order)]),
            product_order=order,
            p_radius=p_radius,
            p_features=p_features,
            n_p_layers=n_p_layers,
            order=order,
            smoothing=smoothing,
            p_radial=p_radial,
            quadrature=quadrature,
        )
        start_at_zero(self.head)
        self.order = order

    def forward(self, signal: Tensor, graph: PQGraph) -> Tensor:
        """The signal (V, Q_out), divided by b0, from the signal (V, Q).

        Arguments and errors are those of `tripq.networks.harmonics.on_shells`.
        """
        return on_shells(self.along, signal, graph)

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
            Of the harmonics of `tripq.so3.fit.harmonics_at`.
        """
        shell = self.fit_shell(signal, q)
        correction = self.on_voxels(shell.features, graph)
        return shell.coefficients + correction * self.standard_errors(shell.errors)
