"""Tables that are made once and go with what they were made of."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch

Make = TypeVar("Make", bound=Callable[..., Any])


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
            with torch.inference_mode(False):  # it may serve a backward pass later
                of_owner[args] = make(owner, *args)
        return of_owner[args]

    return cast(Make, found_or_made)
