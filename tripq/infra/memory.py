"""Amounts of memory in messages, and out-of-memory errors."""

from __future__ import annotations

PROGRAM_BYTES = 0.6e9
"""Interpreter, libraries and small tables: 0.46 GB measured on the CPU, and some room."""

_NO_MEMORY = (
    *("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED"),
    "Cannot allocate memory",
)
"""In messages of errors that are no `MemoryError`: of torch on Linux, on Windows, of CUDA and its
libraries, and of the system (ENOMEM)."""

_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def spell_bytes(number: float) -> str:
    """An amount of memory in words.

    >>> spell_bytes(2.25e9), spell_bytes(600e6), spell_bytes(500)
    ('2.25 GB', '600 MB', '500 bytes')
    """
    for unit, size in _UNITS:
        if number >= size:
            return f"{number / size:,.{0 if number >= 100 * size else 2}f} {unit}"
    return f"{number:.0f} bytes"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, numpy or the system ran out of memory; torch has no class of its own for it.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    True
    """
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)
