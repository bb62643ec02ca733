"""Training of a `SignalPredictor` from settings and scans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from math import inf
from pathlib import Path

import torch

from tripq.networks.blocks import graph_radius
from tripq.tasks.signal.config import PredictorConfig, SignalConfig
from tripq.tasks.signal.network import SignalPredictor
from tripq.tasks.signal.task import SignalTask
from tripq.training.budget import Budget, Progress
from tripq.training.config import ConfigError
from tripq.training.patches import PatchDataModule
from tripq.training.run import Stopping, TrainingRecord, train
from tripq.training.task import Scan


def build_predictor(config: PredictorConfig) -> SignalPredictor:
    """Build a network with random weights.

    Raises
    ------
    ConfigError
        If an argument is invalid, such as features that e3nn cannot parse.
    """
    try:
        return SignalPredictor(**asdict(config))
    except (ValueError, TypeError, AssertionError) as error:
        raise ConfigError(f"[network]: {' '.join(str(error).split())}") from error


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
    network = build_predictor(config.network)
    patches = PatchDataModule(
        training,
        SignalTask(),
        radius=graph_radius(network),
        box_size=how.box_size,
        n_boxes=how.n_boxes,
        seed=how.seed,
        validation=validation,
    )
    record = train(
        network,
        patches,
        Budget(inf if how.hours is None else 3600 * how.hours, how.steps),
        stopping=Stopping(how.every, how.patience, how.rise, how.decay, how.warm_up, how.falling),
        folder=folder,
        learning_rate=how.learning_rate,
        weight_decay=how.weight_decay,
        device=device,
        precision=how.precision,
        report=report,
    )
    if not record.scores:
        raise ConfigError(
            f"[training]: ended after {record.steps} steps, before the first validation: allow "
            "more hours, or validate more often (every)."
        )
    return network.cpu(), record
