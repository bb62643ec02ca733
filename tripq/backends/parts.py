"""Work in parts that fit a budget, each computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tripq.infra.chunks import chunks
from tripq.kernels.launch import needs_twin

Result = TypeVar("Result")


def parts_of(number: int, size: int, x: Tensor, budget: int) -> tuple[Tensor, ...]:
    """Indices below `number`, as many at a time as the budget allows; each makes `size` numbers."""
    every = torch.arange(number, device=x.device)
    return tuple(every[part] for part in chunks(number, x.element_size() * size, budget))


def recomputed(function: Callable[..., Result], *args: Tensor | None) -> Result:
    """Evaluate a part so that the backward pass recomputes it instead of keeping it.

    In forward mode and in `torch.func` it is kept: they know of no second evaluation.

    Raises
    ------
    RuntimeError
        In the backward pass, if forward mode has begun since: what is recomputed would differ.
    """
    if needs_twin():
        return function(*args)

    def as_before(*args: Tensor | None) -> Result:
        if needs_twin():
            raise RuntimeError(
                "this backward pass computes parts of a layer again under forward-mode AD, but the "
                "layer was evaluated outside: evaluate the layer inside dual_level() too"
            )
        return function(*args)

    # Nothing is drawn at random, and the state of a generator cannot be traced.
    result: Result = checkpoint(as_before, *args, use_reentrant=False, preserve_rng_state=False)
    return result


def by_directions(
    function: Callable[..., Tensor], number: int, size: int, budget: int, *args: Tensor
) -> Tensor:
    """Evaluate ``function(part, *args)``, (V, directions, dim), for all slices of directions.

    As many at a time as the budget allows, if one makes `size` numbers of the type of ``args[0]``;
    all at once are kept for the backward pass, parts are recomputed in it.
    """
    parts = chunks(number, args[0].element_size() * size, budget)
    if len(parts) < 2:
        return function(slice(0, number), *args)
    return torch.cat([recomputed(partial(function, part), *args) for part in parts], dim=1)
