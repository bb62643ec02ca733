"""The error class of this subpackage, and the file name in its messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class DWIError(ValueError):
    """A diffusion scan, its gradient table or its mask cannot be used; the message says why."""


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Put the name of a file in front of every `DWIError` raised inside.

    >>> with about(Path("dwi.bval")):
    ...     raise DWIError("the file is empty.")
    Traceback (most recent call last):
    ...
    tripq.scans.errors.DWIError: dwi.bval: the file is empty.
    """
    try:
        yield
    except DWIError as error:
        error.args = (f"{path}: {error}",)
        raise


def name_volumes(indices: Sequence[int]) -> str:
    """Volumes in words, for messages; no more than four of them are spelled out.

    >>> name_volumes([3])
    'volume 3 (counted from 0)'
    >>> name_volumes([3, 4, 8, 9, 11, 12])
    'volumes 3, 4, 8, 9 and 2 more (counted from 0)'
    """
    shown = ", ".join(str(index) for index in indices[:4])
    more = f" and {len(indices) - 4} more" if len(indices) > 4 else ""
    return f"volume{'s' if len(indices) > 1 else ''} {shown}{more} (counted from 0)"
