"""The one error of this subpackage."""

from __future__ import annotations


class DatasetError(ValueError):
    """A dataset cannot be fetched, read or written; the message says why and names the file."""
