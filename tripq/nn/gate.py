"""The gate: an equivariant nonlinearity."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tripq.filters.activation import of_size_one
from tripq.infra.e3nn import o3


class GatedNonlinearity(nn.Module):
    """Swish on scalars; every other feature is multiplied by the sigmoid of its own scalar.

    Parameters
    ----------
    irreps_out : Irreps or str
        Output features.  The attribute `irreps_in` has one further scalar ("gate") for each feature
        of order l > 0.

    Examples
    --------
    >>> GatedNonlinearity("4x0e + 2x1o").irreps_in
    6x0e+2x1o
    """

    def __init__(self, irreps_out: o3.Irreps | str) -> None:
        super().__init__()
        self.irreps_out = o3.Irreps(irreps_out).sort().irreps.simplify()
        scalars = o3.Irreps([(mul, ir) for mul, ir in self.irreps_out if ir.l == 0])
        gated = o3.Irreps([(mul, ir) for mul, ir in self.irreps_out if ir.l > 0])
        if any(ir.p == -1 for _, ir in scalars):
            raise ValueError(f"odd scalars cannot pass a swish: {self.irreps_out}")
        gates = o3.Irreps([(mul, "0e") for mul, _ in gated])
        gates = sum(mul for mul, _ in gated)
        self.irreps_in = (scalars + o3.Irreps([(gates, "0e")]) + gated).simplify()
        self.swish = of_size_one(torch.nn.functional.silu)
        self.sigmoid = of_size_one(torch.sigmoid)
        self._shapes = [(mul, ir.dim) for mul, ir in gated]
        self._sizes = [
            scalars.dim,
            *(mul for mul, _ in gated),
            *(mul * ir.dim for mul, ir in gated),
        ]

    def forward(self, x: Tensor) -> Tensor:
        """(..., irreps_in.dim) -> (..., irreps_out.dim)."""
        # e3nn's gate uses slices, and the gradient of each slice fills a whole tensor.
        scalars, *rest = x.split(self._sizes, dim=-1)
        number = len(self._shapes)
        parts = [self.swish(scalars)]
        for gate, part, shape in zip(rest[:number], rest[number:], self._shapes, strict=True):
            product = part.unflatten(-1, shape) * self.sigmoid(gate)[..., None]
            parts.append(product.flatten(-2))
        return torch.cat(parts, dim=-1)
