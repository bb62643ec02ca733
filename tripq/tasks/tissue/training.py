"""Training of a network for several classes, from settings and labelled scans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from tripq.networks.blocks import check_b_values
from tripq.networks.encoder import VoxelNetwork
from tripq.tasks.tissue.config import TissueConfig
from tripq.tasks.tissue.scans import LabelledScan
from tripq.tasks.tissue.task import TissueTask
from tripq.training.budget import Progress
from tripq.training.configured import build_encoder, train_configured
from tripq.training.run import TrainingRecord


def train_tissue(
    config: TissueConfig,
    training: Sequence[LabelledScan],
    validation: Sequence[LabelledScan],
    voxel_sizes: tuple[float, float],
    folder: Path,
    *,
    device: str = "cpu",
    report: Callable[[Progress], None] | None = None,
) -> tuple[VoxelNetwork, TrainingRecord]:
    """Train a network until the validation score no longer improves.

    Parameters
    ----------
    config : TissueConfig
        Training settings.
    training, validation : sequences of LabelledScan
        Scans of different participants, with the same classes.
    voxel_sizes : (float, float)
        Shortest and longest edge of their voxels in mm.
    folder : Path
        Folder of the checkpoints; see `tripq.training.train`.
    device : str
        ``"cpu"`` or ``"cuda"``.
    report : callable, optional
        Called with a `Progress` after every step.

    Returns
    -------
    network : VoxelNetwork
        Network with one scalar per class and the weights of the best validation, on the CPU.
    record : TrainingRecord

    Raises
    ------
    ConfigError
        If the network cannot be built, or training ended before the first validation.
    tripq.scans.DWIError
        If the b-values of a scan exceed the range of the network.
    FloatingPointError
        If the loss is NaN or infinite.
    """
    how, n_classes = config.training, len(training[0].classes.names)
    torch.manual_seed(how.seed)
    network = build_encoder(partial(VoxelNetwork, f"{n_classes}x0e"), config.network, voxel_sizes)
    for scan in (*training, *validation):
        check_b_values(network, scan.dwi)
    record = train_configured(
        network,
        TissueTask.of(training, n_classes, how.balance),
        training,
        validation,
        how,
        folder,
        focus_share=how.rare_share,
        device=device,
        report=report,
    )
    return network, record
