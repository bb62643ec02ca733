"""The trained network included in the package, and the header of its model card."""

from __future__ import annotations

from collections.abc import Mapping

from tripq.networks.card import card_header


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
