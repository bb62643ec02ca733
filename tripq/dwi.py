"""Diffusion scans under the names that version 0.1 gave them: see `tripq.scans`."""

from __future__ import annotations

from tripq.scans import *  # noqa: F403
from tripq.scans import __all__ as __all__
