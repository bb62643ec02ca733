"""Networks and trainings from checked settings, for every task."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, fields, replace
from math import inf, prod, sqrt
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from tripq.networks.blocks import graph_radius, reads_b0_contrast
from tripq.networks.checkpoint import arguments_of, load_network
from tripq.networks.start import encoder_arguments, same_argument
from tripq.training.budget import Budget, Progress
from tripq.training.config import Config, ConfigError, EncoderConfig, OptimisationConfig
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


def started_config(settings: Config, path: Path, given: Collection[str] = ()) -> Config:
    """Settings whose network can start from that of a file; see `tripq.networks.start`.

    Parameters
    ----------
    settings : TrainingConfig
        Of the training.
    path : Path
        File of the network.
    given : collection of str
        Arguments of the network that were chosen; the others become those of the file.

    Raises
    ------
    ConfigError
        If a chosen argument differs from that of the file.
    tripq.networks.checkpoint.CheckpointError
        If the file is no network, or its encoder is of another kind.
    """
    config, source = settings.network, load_network(path)
    if config.encoding is None:
        return settings
    found = encoder_arguments(config.encoding, source, path)
    if isinstance(source, config.encoding):
        found = {**arguments_of(source), **found}
    names = [one.name for one in fields(config) if one.name in found]
    others = {n: found[n] for n in names if not same_argument(getattr(config, n), found[n])}
    for name, value in others.items():
        chosen = getattr(config, name)
        if name in given:
            raise ConfigError(
                f"[network] {name} = {chosen!r}, but the network of {path} has {value!r}: omit "
                "this key, or start from another network."
            )
    return replace(settings, network=replace(config, **others))


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
    kept: Collection[nn.Module] = (),
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
    kept : collection of Module
        Parts of the network that were trained before; see `tripq.training.train`.

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
        augment=config.augmentation,
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
        kept=kept,
    )
    if not record.scores:
        raise ConfigError(
            f"[training]: ended after {record.steps} steps, before the first validation: allow "
            "more hours, or validate more often (every)."
        )
    network.cpu()
    return record
