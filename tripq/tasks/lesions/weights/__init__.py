"""The trained network included in the package."""

from __future__ import annotations

from pathlib import Path

from tripq.networks.checkpoint import CheckpointError

_FILE = Path(__file__).with_name("lesion-segmenter.safetensors")


def default_weights() -> Path:
    """File of the trained network, for `tripq.networks.checkpoint.load_network`.

    Raises
    ------
    CheckpointError
        If this installation has no weights.
    """
    if not _FILE.is_file():
        raise CheckpointError(
            f"{_FILE}: this installation of tripq has no trained weights. "
            "Give a checkpoint: --weights FILE."
        )
    return _FILE
