"""Tables that are computed once and kept as ordinary tensors, in any context.

A table may first be computed under ``torch.inference_mode``, whose tensors training cannot use, or
while ``torch.compile`` or ``torch.export`` traces, whose tensors contain no numbers.  Kept tables
are computed outside of both: `ordinary_tensors`.  Inside a transform of `torch.func` tensors are
wrapped and invalid after it: tables computed there are not kept.  Autocast would round them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property, wraps
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch._guards import detect_fake_mode
from torch.utils._python_dispatch import _disable_current_modes

Make = TypeVar("Make", bound=Callable[..., Any])
Kept = TypeVar("Kept")


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Create tensors that later calls of any kind can use; also a decorator.

    Inside, neither inference mode nor ``torch.no_grad`` nor autocast nor a tracer is active.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if detect_fake_mode() is not None:
            stack.enter_context(_disable_current_modes())
        yield


def kept(make: Make) -> Make:
    """Call a function once for each set of arguments, which are hashable and given by position."""
    made: dict[Hashable, Any] = {}

    @wraps(make)
    def found_or_made(*args: Hashable) -> Any:
        return _found(made, args, lambda: make(*args))

    found_or_made.cache_clear = made.clear  # type: ignore[attr-defined]
    return cast(Make, found_or_made)


class kept_property(cached_property[Kept]):  # as functools names it
    """A property of an object that never changes, computed once."""

    def __init__(self, make: Callable[[Any], Kept]) -> None:
        super().__init__(ordinary_tensors()(make))

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
        """The kept value, or one for this transform alone."""
        if instance is None or self.attrname in instance.__dict__ or not _in_transform():
            return super().__get__(instance, owner)
        return self.func(instance)


def kept_with_owner(make: Make) -> Make:
    """Call a function once for each owner, its first argument, and each set of the others.

    The owner must never change: the paths of a filter, the voxels of a grid.  The others are
    hashable; all are given by position.  A copy of an owner is another owner.
    """
    made: WeakKeyDictionary[Any, dict[Hashable, Any]] = WeakKeyDictionary()

    @wraps(make)
    def found_or_made(owner: object, *args: Hashable) -> Any:
        return _found(made.setdefault(owner, {}), args, lambda: make(owner, *args))

    return cast(Make, found_or_made)


def kept_with_owners(make: Make) -> Make:
    """The same for two owners, the first two arguments: it goes when one of them does."""
    made: WeakKeyDictionary[Any, WeakKeyDictionary[Any, dict[Hashable, Any]]] = WeakKeyDictionary()

    @wraps(make)
    def found_or_made(owner: object, other: object, *args: Hashable) -> Any:
        of_owner = made.setdefault(owner, WeakKeyDictionary())
        return _found(of_owner.setdefault(other, {}), args, lambda: make(owner, other, *args))

    return cast(Make, found_or_made)


_of_owners: WeakKeyDictionary[Any, dict[Hashable, Any]] = WeakKeyDictionary()


def keep(owner: object, key: Hashable | None, make: Callable[[], Kept]) -> Kept:
    """What `make` returns, once for each key of an owner; without a key (None) in every call.

    The owner must never change, and the key holds all else that the value depends on.
    """
    if key is None:
        return make()
    value: Kept = _found(_of_owners.setdefault(owner, {}), key, make)
    return value


def _found(made: dict[Hashable, Any], key: Hashable, make: Callable[[], Any]) -> Any:
    if key in made:
        return made[key]
    with ordinary_tensors():
        value = make()
    if not _in_transform():
        made[key] = value
    return value


def _in_transform() -> bool:
    """Whether a transform of `torch.func` is active."""
    return bool(torch._C._are_functorch_transforms_active())
