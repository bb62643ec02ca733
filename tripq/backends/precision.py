"""Back ends that compute in the precision of their features also under autocast."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

from tripq.filter import PQFilter
from tripq.graph import NodeSpace, PEdges, QSpace

Evaluate = Callable[[Tensor, PEdges, QSpace | NodeSpace, PQFilter, int], Tensor]


def full_precision(evaluate: Evaluate) -> Evaluate:
    """A back end of many small sums, from which half precision would take more than it saves."""

    @wraps(evaluate)
    def without_autocast(
        x: Tensor, edges: PEdges, q: QSpace | NodeSpace, filter: PQFilter, budget: int
    ) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            return evaluate(x, edges, q, filter, budget)
        halved = x.dtype in (torch.bfloat16, torch.float16)  # by the layer before
        with torch.autocast(x.device.type, enabled=False):
            return evaluate(x.float() if halved else x, edges, q, filter, budget)

    return without_autocast
