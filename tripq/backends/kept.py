"""Tables that are made once and go with what they were made of."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch

Owner = TypeVar("Owner")
Given = ParamSpec("Given")
Made = TypeVar("Made")


def kept_with_owner(
    make: Callable[Concatenate[Owner, Given], Made],
) -> Callable[Concatenate[Owner, Given], Made]:
    """Call a function once for each owner, its first argument, and each set of the others.

    The owner must never change: the paths of a filter, the voxels of a grid.  The others are
    hashable and given by position.
    """
    made: WeakKeyDictionary[Any, dict[Hashable, Made]] = WeakKeyDictionary()

    @wraps(make)
    def found_or_made(owner: Owner, /, *args: Given.args, **kwargs: Given.kwargs) -> Made:
        of_owner = made.setdefault(owner, {})
        if args not in of_owner:
            with torch.inference_mode(False):  # it may serve a backward pass later
                of_owner[args] = make(owner, *args, **kwargs)
        return of_owner[args]

    return found_or_made
