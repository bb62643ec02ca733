"""Tables that are made once and kept, as ordinary tensors whatever asked for them first.

A table may first be wanted under ``torch.inference_mode``, whose tensors no training can use, or
while ``torch.compile`` or ``torch.export`` traces, whose tensors have no numbers in them.  What is
kept is made outside of both: `ordinary_tensors`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, cached_property, wraps
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch._guards import detect_fake_mode
from torch.utils._python_dispatch import _disable_current_modes

Make = TypeVar("Make", bound=Callable[..., Any])
Kept = TypeVar("Kept")


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Make tensors that serve later calls of any kind; also a decorator.

    Inside, neither inference mode nor ``torch.no_grad`` nor a tracer is active.
    """
    tracing = detect_fake_mode() is not None
    with torch.inference_mode(False), _disable_current_modes() if tracing else nullcontext():
        yield


def kept(make: Make) -> Make:
    """Call a function once for each set of arguments, which are hashable."""
    return cast(Make, cache(ordinary_tensors()(make)))


class kept_property(cached_property[Kept]):  # as functools names it
    """A property of an object that never changes, computed once."""

    def __init__(self, make: Callable[[Any], Kept]) -> None:
        super().__init__(ordinary_tensors()(make))


def kept_with_owner(make: Make) -> Make:
    """Call a function once for each owner, its first argument, and each set of the others.

    The owner must never change: the paths of a filter, the voxels of a grid.  The others are
    hashable; all are given by position.  A copy of an owner is another owner.
    """
    made: WeakKeyDictionary[Any, dict[Hashable, Any]] = WeakKeyDictionary()

    @wraps(make)
    def found_or_made(owner: object, *args: Hashable) -> Any:
        of_owner = made.setdefault(owner, {})
        if args not in of_owner:
            with ordinary_tensors():
                of_owner[args] = make(owner, *args)
        return of_owner[args]

    return cast(Make, found_or_made)
