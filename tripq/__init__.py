"""Rotation-equivariant deep learning for diffusion MRI."""

from __future__ import annotations

from tripq.graph import PQGraph
from tripq.layer import PQTensorFieldLayer
from tripq.paths import Path
from tripq.radial import Radial

__version__ = "0.1.0"

__all__ = ["PQGraph", "PQTensorFieldLayer", "Path", "Radial", "__version__"]
