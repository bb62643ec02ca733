"""The signal along any direction by spherical harmonics, without learned parameters.

This is the usual interpolation of a shell, and an estimate that a network can correct; see
`tripq.nn.Residual`.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from tripq.domain.batch import pad_rows
from tripq.domain.graph import PQGraph
from tripq.domain.scan_graph import ScanGraph
from tripq.networks.shell import shared_directions, split_shells
from tripq.networks.signal import LARGEST_RATIO
from tripq.nn.bound import Bindable
from tripq.so3.fit import ShellFit, check_smoothing


class HarmonicFit(Bindable):
    """Each shell fitted by spherical harmonics with Laplace-Beltrami regularisation.

    Parameters
    ----------
    order : int
        Highest order of the harmonics, even.
    smoothing : float
        Laplace-Beltrami weight of the fit, as in dipy; see `tripq.so3.fit`.

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> import numpy as np, torch
    >>> shown, wanted = np.random.default_rng(0).normal(size=(2, 12, 3))
    >>> shown, wanted = (q / np.linalg.norm(q, axis=1, keepdims=True) for q in (shown, wanted))
    >>> graph = PQGraph.from_grid(np.ones((2, 2, 2)), np.eye(4), shown, 0.0, q_out=wanted)
    >>> HarmonicFit()(torch.full((8, 12), 0.5), graph).round(decimals=3).unique()
    tensor([0.5000])
    """

    def __init__(self, order: int = 4, smoothing: float = 0.004) -> None:
        super().__init__()
        if order < 0 or order % 2:
            raise ValueError(f"order must be even, not {order}")
        self.order = order
        self.smoothing = check_smoothing(smoothing)

    def forward(self, signal: Tensor, graph: PQGraph) -> Tensor:
        """The signal (V, Q_out), divided by b0, from the signal (V, Q): `on_shells`."""
        return on_shells(self._along, signal, graph)

    def _along(self, q_out: Tensor, signal: Tensor, q: Tensor, graph: PQGraph) -> Tensor:
        fit = ShellFit.of(q, self.order, self.smoothing)
        return signal.clamp(max=LARGEST_RATIO) @ fit.along(q_out).T.to(signal)


class Along(Protocol):
    """The signal of one shell along some of its directions."""

    def __call__(self, q_out: Tensor, signal: Tensor, q: Tensor, graph: PQGraph) -> Tensor:
        """(V, Q_out), from what was measured: the signal (V, Q) at q-vectors (Q, 3)."""


def on_shells(along: Along, signal: Tensor, graph: PQGraph) -> Tensor:
    """The signal at the output directions of a graph, each shell from itself.

    Parameters
    ----------
    along : callable
        Predicts the signal of a shell.
    signal : Tensor of shape (V, Q)
        Signal divided by b0, at the input directions.
    graph : PQGraph
        The voxels and directions, of one scan or of several.  If it is made without ``q_out``, the
        output directions are those of the input, each predicted from all of them.

    Returns
    -------
    Tensor of shape (V, Q_out)
        1 at q = 0; rows of scans with fewer directions than others end in zeros.

    Raises
    ------
    DWIError
        If an output direction has another b-value than all input directions.
    """

    def on_scan(signal: Tensor, scan: ScanGraph) -> Tensor:
        q, graph = shared_directions(scan), PQGraph([scan])
        output = signal.new_ones(len(signal), len(q.q_out))
        for inputs, outputs in split_shells(q):
            values = along(q.q_out[outputs], signal[:, inputs], q.q_in[inputs], graph)
            output = output.index_copy(1, outputs, values)
        return output

    parts = graph.by_scan(signal)
    return pad_rows([on_scan(part, scan) for scan, part in parts])
