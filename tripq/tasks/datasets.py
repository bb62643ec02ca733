"""Datasets as every task reads them: their description, and the participants for validation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tripq.infra.files import read_json

if TYPE_CHECKING:
    from tripq.training.config import SplitConfig

_log = logging.getLogger("tripq")


def describe_dataset(data: Path) -> tuple[str, bool]:
    """Name of a dataset, and whether its signal is simulated."""
    path = data / "dataset_description.json"
    if not path.is_file():
        return data.resolve().name, False
    try:
        about = read_json(path)
        return str(about.get("Name", data.resolve().name)), "Simulation" in about
    except ValueError:
        _log.warning("%s: cannot be read.", path)
        return data.resolve().name, False


def choose_validation(
    data: Path, participants: Sequence[str], split: SplitConfig
) -> tuple[str, ...]:
    """Labels of the participants for validation: those of the settings, or drawn.

    Parameters
    ----------
    data : Path
        The dataset, for messages.
    participants : sequence of str
        Labels of those with scans for training, without ``sub-``.
    split : SplitConfig
        Settings.

    Raises
    ------
    ConfigError
        If a label is unknown, or no participant is left for training.
    ValueError
        If there are fewer than two participants.
    """
    from tripq.training.config import ConfigError

    if split.validation is None:
        held_out = draw_validation(participants, split.share, split.seed)
    else:
        held_out = tuple(label.removeprefix("sub-") for label in split.validation)
        if missing := sorted(set(held_out) - set(participants)):
            raise ConfigError(f"[split] validation: {data} has no labelled {', '.join(missing)}.")
        if not set(participants) - set(held_out):
            raise ConfigError("[split] validation: no participant is left for training.")
    _log.info("validation participants: %s.", ", ".join(held_out))
    return held_out


def draw_validation(
    participants: Sequence[str], share: float = 0.2, seed: int = 0
) -> tuple[str, ...]:
    """Draw the participants for validation.

    Parameters
    ----------
    participants : sequence of str
        Labels.
    share : float
        Fraction for validation; at least one is drawn, and at least one remains for training.
    seed : int
        Seed of the draw.

    Raises
    ------
    ValueError
        If there are fewer than two.

    Examples
    --------
    >>> len(draw_validation(["01", "02", "03", "04", "05"], share=0.4))
    2
    """
    if len(participants) < 2:
        raise ValueError(
            f"labelled participants: {len(participants)}; one is needed for training and another "
            "for validation."
        )
    number = min(max(1, round(share * len(participants))), len(participants) - 1)
    drawn = np.random.default_rng(seed).permutation(sorted(participants))[:number]
    return tuple(sorted(map(str, drawn)))
