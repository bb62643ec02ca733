"""The trained network that comes with the package."""

from __future__ import annotations

from pathlib import Path

from tripq.networks.checkpoint import CheckpointError

_FILE = Path(__file__).with_name("lesion-segmenter.safetensors")


def default_weights() -> Path:
    """File of the trained network, for `tripq.networks.checkpoint.load_network`.

    Raises
    ------
    CheckpointError
        If this installation has none.
    """
    if not _FILE.is_file():
        raise CheckpointError(
            f"{_FILE}: this installation of tripq comes without trained weights. "
            "Name a checkpoint of your own: --weights FILE."
        )
    return _FILE
