"""The one error of this subpackage."""

from __future__ import annotations


class DatasetError(ValueError):
    """A dataset cannot be downloaded, read or written; the message says why, and for which file."""
