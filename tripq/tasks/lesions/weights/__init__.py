"""The trained network included in the package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tripq.networks.card import card_header
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


def weights_header(notes: Mapping[str, str]) -> str:
    """Header of the model card of a network that was trained on the open cohort.

    Parameters
    ----------
    notes : mapping of str to str
        Notes of its checkpoint; see `tripq.networks.card.card_header`.
    """
    return card_header(
        notes, datasets=["lesjak-2017-open-ms", "hcp1065-template"], tags=["image-segmentation"]
    )
