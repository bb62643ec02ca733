"""Networks, their application to whole scans, and their files."""

from __future__ import annotations

from tripq.networks.checkpoint import CheckpointError, load_network, read_notes, save_network
from tripq.networks.conv import ConvSegmenter
from tripq.networks.encoder import Encoder, VoxelNetwork
from tripq.networks.paper import PaperSegmenter
from tripq.networks.registry import register_network
from tripq.networks.start import start_from

__all__ = [
    "CheckpointError",
    "ConvSegmenter",
    "Encoder",
    "PaperSegmenter",
    "VoxelNetwork",
    "load_network",
    "read_notes",
    "register_network",
    "save_network",
    "start_from",
]
