"""Time, memory, and processes: how a figure is taken, whatever it is of."""

from __future__ import annotations

import signal
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TypeVar

T = TypeVar("T")

#: No more calls are repeated once they took so many seconds together.
ENOUGH = 60.0

#: Seconds that a process gets to end by itself after it handed over its result.
FAREWELL = 10.0


class NotMeasured(Exception):
    """Why there is no figure, in words for a table."""


# -- processes -----------------------------------------------------------------------------------


def in_own_process(function: Callable[..., T], *args: object, limit: float) -> T:
    """Call a function in a new process, so that its memory and its end are its own.

    Raises
    ------
    NotMeasured
        If it fails, dies, or takes more than `limit` seconds.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, args))
    process.start()
    sender.close()
    try:
        if not receiver.poll(limit):
            raise NotMeasured(f"not finished after {limit:g} s")
        value: T | NotMeasured = receiver.recv()
        process.join(FAREWELL)
    except EOFError:
        process.join()
        raise NotMeasured(_cause_of_death(process.exitcode)) from None
    finally:
        process.kill()
        process.join()
    if isinstance(value, NotMeasured):
        raise value
    return value


def _send(sender: Connection, function: Callable[..., object], args: tuple[object, ...]) -> None:
    try:
        sender.send(function(*args))
    except Exception as error:  # whatever it is, it is a line in a table
        sender.send(error if isinstance(error, NotMeasured) else NotMeasured(_in_words(error)))


def _in_words(error: Exception) -> str:
    first = (str(error).strip() or "no message").splitlines()[0]
    for sign in ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc"):
        if isinstance(error, MemoryError) or sign in str(error):
            return "out of memory"
    return f"{type(error).__name__}: {first}"


def _cause_of_death(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "killed by the system, as when memory runs out"
    return f"the process ended with {code}"


# -- memory --------------------------------------------------------------------------------------


def limit_memory() -> None:
    """Let this process have what is free now: beyond it, allocations fail instead of swapping.

    Otherwise the system would kill a process, and not always the one that asks for too much.
    """
    available = _kilobytes("/proc/meminfo", "MemAvailable")
    if available is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (1024 * available, 1024 * available))


class Memory:
    """The peak of memory over what this process has now, on one device."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        if self._cuda:
            import torch

            torch.zeros(1, device=device)  # the start of CUDA is no part of any set-up
        self._start = self._peak(now=True)

    def peak(self) -> float:
        """Bytes."""
        return self._peak() - self._start

    def _peak(self, now: bool = False) -> float:
        if self._cuda:
            import torch

            return torch.cuda.memory_allocated() if now else torch.cuda.max_memory_allocated()
        return resident(peak=not now)


def resident(*, peak: bool = False) -> float:
    """Bytes of memory that this process has now, or had at most.

    Where the system does not tell what it has now, it is what it had at most.
    """
    # Linux hands ru_maxrss on to children, so that it would start at the peak of the parent.
    status = _kilobytes("/proc/self/status", "VmHWM" if peak else "VmRSS")
    if status is not None:
        return 1024 * status
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _kilobytes(file: str, entry: str) -> int | None:
    """A number of a file under /proc; None where there is none."""
    try:
        with open(file) as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith(entry + ":"))
    except (OSError, StopIteration):
        return None


# -- time ----------------------------------------------------------------------------------------


def timed(function: Callable[[], T], device: str) -> tuple[float, T]:
    """Seconds until the device has done it, and its value."""
    _synchronize(device)
    start = time.perf_counter()
    value = function()
    _synchronize(device)
    return time.perf_counter() - start, value


def repeated(
    function: Callable[[], T],
    device: str,
    repeats: int,
    before: Callable[[], object] = lambda: None,
) -> tuple[float, T]:
    """Median of the seconds of several calls, and the last value; `before` is not timed."""
    before()
    seconds, value = timed(function, device)
    times = [seconds]
    while len(times) < repeats and sum(times) < ENOUGH:
        del value  # two results at once would count as memory of the method
        before()
        seconds, value = timed(function, device)
        times.append(seconds)
    return statistics.median(times), value


def _synchronize(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
