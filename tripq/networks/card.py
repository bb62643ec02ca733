"""Model cards in the form of model hubs: a header in YAML, then text in Markdown.

The header follows https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

_TAGS = ("diffusion-mri", "equivariance", "e3nn", "research-only")


def card_header(
    notes: Mapping[str, str],
    *,
    licence: str = "mit",
    datasets: Sequence[str] = (),
    tags: Sequence[str] = (),
) -> str:
    """Header of the card of a checkpoint.

    Parameters
    ----------
    notes : mapping of str to str
        Notes of the checkpoint, from `tripq.networks.checkpoint.read_notes`: its network becomes a
        tag, its task too, and what it says of data, caution and range is listed.
    licence : str, optional
        Identifier of the licence of the weights.
    datasets : sequence of str, optional
        Names of the data sets of the training.
    tags : sequence of str, optional
        Further tags.

    Returns
    -------
    str
        From ``---`` to ``---``, with a newline at the end.

    Examples
    --------
    >>> notes = {"network": "VoxelNetwork", "data": "simulated signal", "b_values": "1000"}
    >>> print(card_header(notes, datasets=["a-cohort"]))
    ---
    library_name: tripq
    license: "mit"
    tags: ["diffusion-mri", "equivariance", "e3nn", "research-only", "VoxelNetwork"]
    datasets: ["a-cohort"]
    tripq: {"b_values": "1000", "data": "simulated signal"}
    ---
    <BLANKLINE>
    """
    named = [notes[key] for key in ("network", "task") if key in notes]
    about = {key: notes[key] for key in sorted(notes) if key not in ("arguments", "network")}
    lines = {
        "license": licence,
        "tags": list(dict.fromkeys([*_TAGS, *named, *tags])),
        "datasets": list(datasets),
        "tripq": about,
    }
    body = "\n".join(f"{key}: {json.dumps(value)}" for key, value in lines.items() if value)
    return f"---\nlibrary_name: tripq\n{body}\n---\n"
