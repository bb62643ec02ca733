"""Training of a `SignalPredictor` from settings and scans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from tripq.tasks.signal.config import SignalConfig
from tripq.tasks.signal.network import SignalPredictor
from tripq.tasks.signal.task import SignalTask
from tripq.training.budget import Progress
from tripq.training.configured import build_network, train_configured
from tripq.training.run import TrainingRecord
from tripq.training.task import Scan


def train_predictor(
    config: SignalConfig,
    training: Sequence[Scan],
    validation: Sequence[Scan],
    folder: Path,
    *,
    device: str = "cpu",
    report: Callable[[Progress], None] | None = None,
) -> tuple[SignalPredictor, TrainingRecord]:
    """Train a network until the validation score no longer improves.

    Parameters
    ----------
    config : SignalConfig
        Training settings.
    training, validation : sequences of Scan
        Scans of different participants.
    folder : Path
        Folder of the checkpoints; see `tripq.training.train`.
    device : str
        ``"cpu"`` or ``"cuda"``.
    report : callable, optional
        Called with a `Progress` after every step.

    Returns
    -------
    network : SignalPredictor
        Network with the weights of the best validation, on the CPU.
    record : TrainingRecord

    Raises
    ------
    ConfigError
        If the network cannot be built, or training ended before the first validation.
    ValueError
        If a scan has too few directions to hide some.
    FloatingPointError
        If the loss is NaN or infinite.
    """
    how = config.training
    torch.manual_seed(how.seed)
    network = build_network(SignalPredictor, asdict(config.network))
    record = train_configured(
        network,
        SignalTask(),
        training,
        validation,
        how,
        folder,
        device=device,
        report=report,
    )
    return network, record
