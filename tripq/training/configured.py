"""Networks and trainings from checked settings, for every task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from math import inf, prod, sqrt
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from tripq.networks.blocks import graph_radius, reads_b0_contrast
from tripq.training.budget import Budget, Progress
from tripq.training.config import ConfigError, EncoderConfig, OptimisationConfig
from tripq.training.patches import PatchDataModule
from tripq.training.run import Stopping, TrainingRecord, train
from tripq.training.task import Scan, Task

Network = TypeVar("Network", bound=nn.Module)

#: Default radius in voxels: integrals include the 26 that share a face, an edge or a corner.  For
#: voxels of 2 mm it equals the default of `tripq.networks.encoder.Encoder`.
RADIUS = 1.5


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


def build_encoder(
    constructor: Callable[..., Network], config: EncoderConfig, voxel_sizes: tuple[float, float]
) -> Network:
    """Build a network that begins with an encoder, with random weights.

    Parameters
    ----------
    constructor : callable
        Of the network; it takes the arguments of `tripq.networks.encoder.Encoder`.
    config : EncoderConfig
        These arguments.
    voxel_sizes : (float, float)
        Shortest and longest edge of the voxels in mm; the default radius is `RADIUS` times their
        geometric mean.

    Raises
    ------
    ConfigError
        If an argument is invalid, such as features that e3nn cannot parse.
    """
    arguments = asdict(config)
    if config.p_radius is None:
        arguments["p_radius"] = RADIUS * sqrt(prod(voxel_sizes))
    return build_network(constructor, arguments)


def train_configured(
    network: nn.Module,
    task: Task,
    training: Sequence[Scan],
    validation: Sequence[Scan],
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
    task : Task
        Target, loss and score.
    training, validation : sequences of Scan
        Scans of different participants.
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
        As by `tripq.training.PatchDataModule` and `tripq.training.train`.
    """
    patches = PatchDataModule(
        training,
        task,
        radius=graph_radius(network),
        box_size=config.box_size,
        n_boxes=config.n_boxes,
        focus_share=config.focus_share,
        seed=config.seed,
        augment=config.augment,
        validation=validation,
        b0_contrast=reads_b0_contrast(network),
    )
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
