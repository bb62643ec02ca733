"""Norms of features as additional scalars."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tripq.infra.e3nn import o3
from tripq.kernels.features import norm_of


class NormsAsScalars(nn.Module):
    """Append the norm of every feature of order l > 0 as a further scalar.

    Examples
    --------
    >>> NormsAsScalars("2x0e + 3x2e").irreps_out
    2x0e+3x2e+3x0e
    """

    def __init__(self, irreps_in: o3.Irreps | str) -> None:
        super().__init__()
        self.irreps_in = o3.Irreps(irreps_in)
        higher = [(mul, ir) for mul, ir in self.irreps_in if ir.l > 0]
        count = sum(mul for mul, _ in higher)
        self.irreps_out = self.irreps_in + o3.Irreps([(count, "0e")] if count else [])
        self._shapes = [(mul, ir.dim) for mul, ir in self.irreps_in]

    def forward(self, x: Tensor) -> Tensor:
        """(..., irreps_in.dim) -> (..., irreps_out.dim)."""
        parts = x.split([mul * dim for mul, dim in self._shapes], dim=-1)
        squares = [
            part.unflatten(-1, shape).square().sum(dim=-1)
            for part, shape in zip(parts, self._shapes, strict=True)
            if shape[1] > 1
        ]
        if not squares:
            return x
        squared = torch.cat(squares, dim=-1)
        return torch.cat([x, norm_of(squared)], dim=-1)
