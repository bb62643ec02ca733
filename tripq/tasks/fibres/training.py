"""Training of a `FibreNetwork` from settings and scans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from tripq.tasks.fibres.config import FibreConfig
from tripq.tasks.fibres.network import FibreNetwork
from tripq.tasks.fibres.task import FibreTask
from tripq.training.augment import Augmentation
from tripq.training.budget import Progress
from tripq.training.configured import build_network, train_configured
from tripq.training.run import TrainingRecord
from tripq.training.task import Scan


def train_fibres(
    config: FibreConfig,
    training: Sequence[Scan],
    validation: Sequence[Scan],
    folder: Path,
    *,
    device: str = "cpu",
    report: Callable[[Progress], None] | None = None,
) -> tuple[FibreNetwork, TrainingRecord]:
    """Train a network until the validation score no longer improves.

    Parameters
    ----------
    config : FibreConfig
        Training settings.
    training, validation : sequences of Scan
        Scans of different participants; see `tripq.tasks.fibres.task.KnownFibres`.
    folder : Path
        Folder of the checkpoints; see `tripq.training.train`.
    device : str
        ``"cpu"`` or ``"cuda"``.
    report : callable, optional
        Called with a `Progress` after every step.

    Returns
    -------
    network : FibreNetwork
        Network with the weights of the best validation, on the CPU.
    record : TrainingRecord

    Raises
    ------
    ConfigError
        If the network cannot be built, or training ended before the first validation.
    ValueError
        If the known distributions of a scan have a lower order than those of the network.
    FloatingPointError
        If the loss is NaN or infinite.
    """
    how = config.training
    torch.manual_seed(how.seed)
    network = build_network(FibreNetwork, asdict(config.network))
    record = train_configured(
        network,
        FibreTask(network.order),
        training,
        validation,
        how,
        folder,
        augment=fewer_directions(how.dropped),
        device=device,
        report=report,
    )
    return network, record


def fewer_directions(dropped: float) -> Augmentation:
    """Boxes with some of the directions, so that one network serves tables of other numbers."""
    return Augmentation(noise=0.0, bias=0.0, b0_error=0.0, dropped=dropped)
