"""Back ends: ways to evaluate the sum of a filter over the edges of a graph.

A back end has a function ``evaluate(x, edges, q, filter, budget)`` of features, p-edges, a q-space,
a filter and the limit of its working arrays in bytes.  It has no state: the layer has the weights,
the graph the geometry, `tripq.so3` the coefficients.  On a `QSpace` it maps (V, Q_in, dim_in) to
(V, Q_out, dim_out), on a `NodeSpace` (N, dim_in) to (N_out, dim_out).  `edges` is the definition;
the tests compare every other back end with it.

Each is one file, which ends with its description (`tripq.backends.base.BackEnd`); `plan` ranks
them.
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
