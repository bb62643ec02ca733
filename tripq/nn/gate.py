"""The gate: an equivariant nonlinearity."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tripq.filters.activation import factor_of_size_one
from tripq.infra.e3nn import o3
from tripq.kernels.gates import Gates, gate


class GatedNonlinearity(nn.Module):
    """Swish on scalars; every other feature is multiplied by the sigmoid of its own scalar.

    Parameters
    ----------
    irreps_out : Irreps or str
        Output features.  The attribute `irreps_in` has one further scalar ("gate") for each feature
        of order l > 0.
    norms : bool
        Append the norms of features of order l > 0 as scalars, as `NormsAsScalars` does; the
        attribute `irreps_out` includes them.

    Raises
    ------
    ValueError
        If a scalar is odd: a swish of it would be neither even nor odd.

    Examples
    --------
    >>> GatedNonlinearity("4x0e + 2x1o").irreps_in
    6x0e+2x1o
    """

    def __init__(self, irreps_out: o3.Irreps | str, *, norms: bool = False) -> None:
        super().__init__()
        features = o3.Irreps(irreps_out).sort().irreps.simplify()
        scalars = o3.Irreps([(mul, ir) for mul, ir in features if ir.l == 0])
        gated = o3.Irreps([(mul, ir) for mul, ir in features if ir.l > 0])
        if any(ir.p == -1 for _, ir in scalars):
            raise ValueError(f"odd scalars cannot pass a swish: {features}")
        number = o3.Irreps([(gated.num_irreps, "0e")] if len(gated) else [])
        self.irreps_in = (scalars + number + gated).simplify()
        self.irreps_out = features + number if norms else features
        self._gates = Gates(
            scalars.dim,
            tuple(mul for mul, _ in gated),
            tuple(ir.dim for _, ir in gated),
            norms,
            factor_of_size_one(torch.nn.functional.silu),
            factor_of_size_one(torch.sigmoid),
        )

    def forward(
        self,
        x: Tensor,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        sizes: Sequence[int] = (),
    ) -> Tensor:
        """(..., irreps_in.dim) -> (..., irreps_out.dim); see `tripq.kernels.gates.gate`."""
        return gate(x, self._gates, scale, shift, sizes)
