"""Functions marked for Dynamo, created on first access; see `tripq.infra.tracing`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import _dynamo

from tripq.infra.tracing import to_mark


def __getattr__(name: str) -> Callable[..., Any]:
    """Mark a function of `tripq.infra.tracing` and keep it, so that it is marked once."""
    if name not in to_mark:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    mark, function = to_mark[name]
    globals()[name] = marked = getattr(_dynamo, mark)(function)
    return marked
