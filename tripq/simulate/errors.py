"""The one error of this subpackage."""

from __future__ import annotations


class SimulationError(ValueError):
    """A simulation was asked for with values that make no sense; the message says which."""
