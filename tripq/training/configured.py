"""Networks and trainings from checked settings, for every task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from tripq.training.budget import Budget, Progress
from tripq.training.config import ConfigError, OptimisationConfig
from tripq.training.patches import PatchDataModule
from tripq.training.run import Stopping, TrainingRecord, train

Network = TypeVar("Network", bound=nn.Module)


def build_network(constructor: Callable[..., Network], arguments: Mapping[str, Any]) -> Network:
    """Build a network with random weights.

    Raises
    ------
    ConfigError
        If an argument is invalid, such as features that e3nn cannot parse.
    """
    try:
        return constructor(**arguments)
    except (ValueError, TypeError, AssertionError) as error:
        raise ConfigError(f"[network]: {' '.join(str(error).split())}") from error


def train_configured(
    network: nn.Module,
    patches: PatchDataModule,
    config: OptimisationConfig,
    folder: Path,
    *,
    device: str = "cpu",
    report: Callable[[Progress], None] | None = None,
) -> TrainingRecord:
    """Train a network in place until the validation score no longer improves.

    Parameters
    ----------
    network : Module
        On the CPU afterwards, with the weights of the best validation.
    patches : PatchDataModule
        Task, training and validation scans.
    config : OptimisationConfig
        Settings.
    folder : Path
        Folder of the checkpoints, from which an interrupted training resumes; see
        `tripq.training.train`.
    device : str
        ``"cpu"`` or ``"cuda"``.
    report : callable, optional
        Called with a `Progress` after every step.

    Raises
    ------
    ConfigError
        If training ended before the first validation.
    ValueError, FloatingPointError
        As by `tripq.training.train`.
    """
    record = train(
        network,
        patches,
        Budget(inf if config.hours is None else 3600 * config.hours, config.steps),
        stopping=Stopping(
            config.every,
            config.patience,
            config.rise,
            config.decay,
            config.warm_up,
            config.falling,
        ),
        folder=folder,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        device=device,
        precision=config.precision,
        report=report,
    )
    if not record.scores:
        raise ConfigError(
            f"[training]: ended after {record.steps} steps, before the first validation: allow "
            "more hours, or validate more often (every)."
        )
    network.cpu()
    return record
