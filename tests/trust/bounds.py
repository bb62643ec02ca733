"""What one file may cost: seconds, and memory of numpy, of Python and of torch."""

from __future__ import annotations

import signal
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class _Largest(TorchDispatchMode):
    """Remembers the largest tensor that is made; those of torch are not Python's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not made.is_meta:
            self.nbytes = max(self.nbytes, made.nbytes)
        return made


@contextmanager
def bounded(seconds: int, megabytes: float, *, with_torch: bool = False) -> Iterator[None]:
    """Fail if what happens inside takes longer or more."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    largest = _Largest()
    tracemalloc.start()
    try:
        if with_torch:
            with largest:
                yield
        else:
            yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert max(peak, largest.nbytes) < 1e6 * megabytes, f"{peak} and {largest.nbytes} bytes"
