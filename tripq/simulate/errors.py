"""The error class of this subpackage."""

from __future__ import annotations


class SimulationError(ValueError):
    """A simulation has invalid arguments; the message names them."""
