"""Computation in chunks that fit a memory limit."""

from __future__ import annotations


def chunks(number: int, size: int, budget: int) -> list[slice]:
    """Slices of ``range(number)``, as many at a time as fit, and at least one.

    Parameters
    ----------
    number : int
        Of rows, edges or frequencies.
    size, budget : int
        What one of them takes, and what a chunk may take: both in bytes, or in numbers.

    Examples
    --------
    >>> chunks(5, size=8, budget=20)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    >>> chunks(2, size=8, budget=1), chunks(0, size=8, budget=1)
    ([slice(0, 1, None), slice(1, 2, None)], [])
    """
    step = max(1, budget // max(1, size))
    return [slice(start, min(start + step, number)) for start in range(0, number, step)]
