"""A batch: boxes of scans, and the target of the network in their voxels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tripq.domain.graph import PQGraph


@dataclass(frozen=True, eq=False)
class Batch:
    """Boxes of one or several scans, with the target of their voxels.

    Attributes
    ----------
    signal : Tensor of shape (V, Q)
        Signal divided by b0.
    graph : PQGraph
        The voxels of all boxes.
    target : Tensor of shape (V, ...)
        Desired output of the network.
    """

    signal: Tensor
    graph: PQGraph
    target: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(self.signal.to(device), self.graph.to(device), self.target.to(device))
