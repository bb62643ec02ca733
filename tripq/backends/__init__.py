"""Back ends: ways to evaluate the sum of a filter over the edges of a graph.

A back end is a function ``evaluate(x, edges, q, filter, budget)`` of features, p-edges, a q-space,
a filter and the bytes that its working arrays may take.  It owns nothing: the layer owns the
weights, the graph the geometry, the mathematics the coefficients.  On a `QSpace` it maps
(V, Q_in, dim_in) to (V, Q_out, dim_out), on a `NodeSpace` (N, dim_in) to (N_out, dim_out).  `edges`
defines the meaning; every other one is held to it.  `plan` chooses one.
"""

from __future__ import annotations

from collections.abc import Mapping

from tripq.backends import dense, edges, fourier, recoupled, triton
from tripq.backends.precision import Evaluate

#: The back ends by name.
BACKENDS: Mapping[str, Evaluate] = {
    "edges": edges.evaluate,
    "dense": dense.evaluate,
    "fourier": fourier.evaluate,
    "recoupled": recoupled.evaluate,
    "triton": triton.evaluate,
}
