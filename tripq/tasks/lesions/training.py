"""Training of a `LesionSegmenter` from settings and labelled scans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tripq.networks.blocks import check_b_values
from tripq.tasks.lesions.config import LesionConfig, SegmenterConfig
from tripq.tasks.lesions.segmenter import LesionSegmenter
from tripq.tasks.lesions.task import LabelledScan, LesionTask
from tripq.training.budget import Progress
from tripq.training.configured import build_encoder, train_configured
from tripq.training.run import TrainingRecord


def build_segmenter(config: SegmenterConfig, voxel_sizes: tuple[float, float]) -> LesionSegmenter:
    """Build a network with random weights.

    Parameters
    ----------
    config : SegmenterConfig
        Arguments of the network.
    voxel_sizes : (float, float)
        Shortest and longest edge of the voxels in mm; see
        `tripq.training.configured.build_encoder`.

    Raises
    ------
    ConfigError
        If an argument is invalid, such as features that e3nn cannot parse.

    Examples
    --------
    >>> build_segmenter(SegmenterConfig(n_p_layers=1), (2.0, 2.0)).p_radius
    3.0
    """
    return build_encoder(LesionSegmenter, config, voxel_sizes)


def train_segmenter(
    config: LesionConfig,
    training: Sequence[LabelledScan],
    validation: Sequence[LabelledScan],
    voxel_sizes: tuple[float, float],
    folder: Path,
    *,
    device: str = "cpu",
    report: Callable[[Progress], None] | None = None,
) -> tuple[LesionSegmenter, TrainingRecord]:
    """Train a network until the validation score no longer improves.

    Parameters
    ----------
    config : LesionConfig
        Training settings.
    training, validation : sequences of LabelledScan
        Scans of different participants.
    voxel_sizes : (float, float)
        Shortest and longest edge of their voxels in mm.
    folder : Path
        Folder of the checkpoints, from which an interrupted training resumes; see
        `tripq.training.train`.
    device : str
        ``"cpu"`` or ``"cuda"``.
    report : callable, optional
        Called with a `Progress` after every step.

    Returns
    -------
    network : LesionSegmenter
        Network with the weights of the best validation, on the CPU.
    record : TrainingRecord

    Raises
    ------
    ConfigError
        If the network cannot be built, or training ended before the first validation.
    tripq.scans.DWIError
        If the b-values of a scan exceed the range of the network.
    ValueError
        If the training or the validation scans have no lesion.
    FloatingPointError
        If the loss is NaN or infinite.
    """
    how = config.training
    torch.manual_seed(how.seed)
    network = build_segmenter(config.network, voxel_sizes)
    for scan in (*training, *validation):
        check_b_values(network, scan.dwi)
    record = train_configured(
        network,
        LesionTask(how.positive_weight),
        training,
        validation,
        how,
        folder,
        focus_share=how.lesion_share,
        device=device,
        report=report,
    )
    return network, record
