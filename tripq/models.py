"""The networks under the names that version 0.1 gave them."""

from __future__ import annotations

from tripq.networks.conv import ConvSegmenter
from tripq.networks.paper import PaperSegmenter
from tripq.tasks.lesions.segmenter import LesionSegmenter

__all__ = ["ConvSegmenter", "LesionSegmenter", "PaperSegmenter"]
