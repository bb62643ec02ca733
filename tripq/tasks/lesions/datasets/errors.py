"""The error class of this subpackage."""

from __future__ import annotations


class DatasetError(ValueError):
    """A dataset cannot be downloaded, read or written; the message names file and reason."""
