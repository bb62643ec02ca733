r"""The network of pretraining: an encoder that predicts signal, for the networks of other tasks.

`tripq.tasks.signal.network.SignalPredictor` predicts better, but its layers take the harmonics of
one shell, and no other task but fibres does.  Here the encoder of `tripq.networks.encoder`, of
which the networks of lesions and of tissue consist, corrects the harmonics:

.. math::
    s(q) = h(q) + \sigma\, g(q).

h is the fit of a shell (`tripq.networks.harmonics.HarmonicFit`), and g expands the features of the
encoder in a voxel along q.  The last layer starts at 0, and :math:`\sigma` is the error of the fit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tripq.domain.batch import pad_rows
from tripq.domain.graph import PQGraph
from tripq.domain.quadrature import Quadrature
from tripq.filters.radial import Radial
from tripq.infra.e3nn import o3
from tripq.networks.encoder import Encoder
from tripq.networks.harmonics import HarmonicFit
from tripq.networks.shell import shared_directions
from tripq.nn.batch_norm import Normalization
from tripq.nn.layer import Group, PQTensorFieldLayer
from tripq.nn.residual import root_mean_square, start_at_zero
from tripq.so3.paths import Selection


class SignalEncoder(Encoder):
    """An encoder, and the signal along any direction of a shell from its features.

    With its initial weights the network gives the fit by harmonics.

    Parameters
    ----------
    order, smoothing : int, float
        Of the harmonics; see `HarmonicFit`.
    p_radius, q_features, p_features, n_p_layers, normalize, q_max, filter, selection, group, \
antipodal, p_radial, q_radial, quadrature, b0_contrast
        Of the encoder; see `tripq.networks.encoder.Encoder`.

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
    >>> graph = PQGraph.from_grid(np.ones((5, 5, 5)), affine, shown, 3.0, q_out=wanted)
    >>> network = SignalEncoder(q_features="4x0e + 2x2e", p_features="4x0e + 2x2e", n_p_layers=1)
    >>> network(torch.rand(125, len(shown)), graph).shape
    torch.Size([125, 31])
    """

    size: Tensor

    def __init__(
        self,
        *,
        order: int = 4,
        smoothing: float = 0.004,
        p_radius: float = 3.0,
        q_features: o3.Irreps | str = "24x0e + 8x2e + 4x4e",
        p_features: o3.Irreps | str = "24x0e + 6x1o + 8x2e",
        n_p_layers: int = 3,
        normalize: Normalization = "scan",
        q_max: float = 2.0,
        filter: str = "q",
        selection: Selection = "all",
        group: Group = "SO3",
        antipodal: bool = True,
        p_radial: Radial = Radial("cosine", 2),
        q_radial: Radial = Radial(),
        quadrature: Quadrature = "integral",
        b0_contrast: bool = False,
    ) -> None:
        super().__init__(
            p_radius=p_radius,
            q_features=q_features,
            p_features=p_features,
            n_p_layers=n_p_layers,
            normalize=normalize,
            q_max=q_max,
            filter=filter,
            selection=selection,
            group=group,
            antipodal=antipodal,
            p_radial=p_radial,
            q_radial=q_radial,
            quadrature=quadrature,
            b0_contrast=b0_contrast,
        )
        self.order = order
        self.smoothing = smoothing
        self.fit = HarmonicFit(order, smoothing)
        self.head = PQTensorFieldLayer(
            self.irreps_out,
            "1x0e",
            0.0,
            q_in=None,
            q_out="graph",
            q_max=q_max,
            filter="q",
            group=group,
            antipodal=True,  # of the signal, whatever the encoder does
            lmax_q=order,
            q_radial=q_radial,
        )
        start_at_zero(self.head)
        del self.irreps_out  # of the features; the output is a number for each direction
        self.register_buffer("size", torch.ones(()))

    def forward(self, signal: Tensor, graph: PQGraph) -> Tensor:
        """The signal (V, Q_out), divided by b0, from the signal (V, Q).

        Arguments and errors are those of `tripq.networks.harmonics.on_shells`.
        """
        correction = self.head(super().forward(signal, graph), graph)[..., 0]
        fitted: Tensor = self.fit(signal, graph)
        return fitted + self.size * correction * _weighted(graph).to(signal)

    @torch.no_grad()
    def measure(self, signal: Tensor, graph: PQGraph, target: Tensor) -> None:
        """Set the size of the corrections to the error of the fit on a first batch.

        Parameters
        ----------
        signal, graph
            As for `forward`.
        target : Tensor of shape (V, Q_out)
            The wanted output; NaN where it is unknown.
        """
        error = target - self.fit(signal, graph)
        self.size.copy_(root_mean_square(error[~error.isnan()]))


def _weighted(graph: PQGraph) -> Tensor:
    """Whether each output direction of each voxel has a b-value above 0, (V, Q_out)."""
    rows = [
        (shared_directions(scan).q_out.norm(dim=-1) > 0).expand(scan.n_voxels, -1)
        for scan in graph.scans
    ]
    return pad_rows(rows)
