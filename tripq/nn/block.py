"""A block of a network: layer, normalisation, gate, norms."""

from __future__ import annotations

import math
from typing import Any, get_args

from torch import Tensor

from tripq.domain.graph import PQGraph
from tripq.infra.e3nn import o3
from tripq.nn.batch_norm import WINDOW, BatchNorm, Normalization
from tripq.nn.bound import Bindable
from tripq.nn.gate import GatedNonlinearity
from tripq.nn.layer import PQTensorFieldLayer


class Block(Bindable):
    """A layer, normalisation and a gate; optionally, norms as further scalars.

    Parameters
    ----------
    irreps_in, irreps_out : Irreps or str
        Features in, and features after the gate.  The attribute `irreps_out` includes the further
        scalars.
    p_radius : float
        Of the layer, in mm.
    normalize : {"local", "scan", "batch", "none"}
        Whether the features of the layer are normalised over the surroundings of each voxel, over
        each scan or over a batch; see `BatchNorm`.  With ``"none"`` the layer has a bias.
    norms : bool
        Append the norms of features of order l > 0 as scalars; see `GatedNonlinearity`.
    **layer
        Further arguments of `PQTensorFieldLayer`.

    Raises
    ------
    ValueError
        If some features have no path: they would always be 0; if `normalize` is none of these.

    Examples
    --------
    >>> import numpy as np, torch
    >>> q = np.concatenate([np.zeros((1, 3)), np.eye(3)])
    >>> graph = PQGraph.from_grid(np.ones((5, 5, 5)), np.diag([2.0, 2, 2, 1]), q, radius=3.6)
    >>> first = Block("1x0e", "8x0e + 4x2e", 0.0, filter="q", q_out=None, norms=True)
    >>> second = Block(first.irreps_out, "8x0e + 2x1o", 3.6, q_in=None)
    >>> second(first(torch.rand(125, 4, 1), graph), graph).shape
    torch.Size([125, 14])
    """

    def __init__(
        self,
        irreps_in: o3.Irreps | str,
        irreps_out: o3.Irreps | str,
        p_radius: float,
        *,
        normalize: Normalization = "scan",
        norms: bool = False,
        **layer: Any,
    ) -> None:
        super().__init__()
        if normalize not in get_args(Normalization):
            raise ValueError(
                f"normalize must be one of {', '.join(get_args(Normalization))}, not {normalize!r}"
            )
        self.gate = GatedNonlinearity(irreps_out, norms=norms)
        self.layer = PQTensorFieldLayer(
            irreps_in, self.gate.irreps_in, p_radius, bias=normalize == "none", **layer
        )
        if self.layer.unreached:
            raise ValueError(f"no path leads to {self.layer.unreached} of {irreps_out}")
        self.norm = (
            None
            if normalize == "none"
            else BatchNorm(
                self.gate.irreps_in,
                instance=normalize in ("local", "scan"),
                window=WINDOW if normalize == "local" else math.inf,
            )
        )
        self.irreps_out = self.gate.irreps_out

    def forward(self, x: Tensor, graph: PQGraph) -> Tensor:
        """Features on a graph, with the shapes of the layer."""
        y = self.layer(x, graph)
        result: Tensor = self.gate(y) if self.norm is None else self.norm(y, graph, self.gate)
        return result
