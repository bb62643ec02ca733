"""Back ends: ways to evaluate the sum of a filter over the edges of a graph.

A back end has a function ``evaluate(x, edges, q, filter, budget)`` of features, p-edges, a q-space,
a filter and the bytes that its working arrays may take.  It owns nothing: the layer owns the
weights, the graph the geometry, the mathematics the coefficients.  On a `QSpace` it maps
(V, Q_in, dim_in) to (V, Q_out, dim_out), on a `NodeSpace` (N, dim_in) to (N_out, dim_out).  `edges`
defines the meaning; every other one is held to it.

Each is one file, which ends with what it says of itself (`tripq.backends.base.BackEnd`); `plan`
ranks them.
"""

from __future__ import annotations

from collections.abc import Mapping

from tripq.backends import dense, edges, fourier, recoupled, triton
from tripq.backends.base import BackEnd

#: The back ends by name.
BACKENDS: Mapping[str, BackEnd] = {
    back_end.name: back_end
    for back_end in (
        edges.BACK_END,
        dense.BACK_END,
        fourier.BACK_END,
        recoupled.BACK_END,
        triton.BACK_END,
    )
}
