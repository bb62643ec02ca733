"""Rotation-equivariant deep learning for diffusion MRI."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tripq.domain.graph import PQGraph
    from tripq.filters.radial import Radial
    from tripq.nn.layer import PQTensorFieldLayer
    from tripq.so3.paths import Path

__version__ = version("tripq")

__all__ = ["PQGraph", "PQTensorFieldLayer", "Path", "Radial", "__version__"]

_HOMES = {
    "PQGraph": "domain.graph",
    "PQTensorFieldLayer": "nn.layer",
    "Path": "so3.paths",
    "Radial": "filters.radial",
}


def __getattr__(name: str) -> Any:
    """Import a class when it is asked for: the help of a command needs no torch, which is slow."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
