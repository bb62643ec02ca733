"""Complete training: budget, validation, weight averaging, checkpoints."""

from __future__ import annotations

import json
import logging
import math
import pickle
import signal
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, WeightAveraging
from torch import Tensor, nn

from tripq.backends.precision import has_bfloat16
from tripq.infra.distributed import connected
from tripq.infra.files import read_json, write_text
from tripq.infra.rank import Rank
from tripq.networks.blocks import reads_b0_contrast
from tripq.training.budget import Budget, BudgetCallback, Progress
from tripq.training.module import TaskModule, settle_batch_norm
from tripq.training.patches import PatchDataModule
from tripq.training.task import Mode, Task

Precision = Literal["auto", "32-true", "bf16-mixed"]

#: Gradients are clipped to this norm, because one large structure dominates in a few boxes.
CLIP_NORM = 1.0


# Files in the folder of a training.
_BEST, _LAST, _RECORD = "best.ckpt", "last.ckpt", "training.json"
_MAX_RECORD_BYTES = 2**28  # the record has about 25 bytes per step


@dataclass(frozen=True)
class Stopping:
    """Validation during training, and early stopping.

    A running average of the weights is updated during training (Polyak and Juditsky, SIAM J Control
    Optim 30:838-855, 1992).  The average is validated, and that of the best validation is returned.
    The learning rate therefore need not fall, and the length of the training need not be known in
    advance.  If it is known, a falling rate reaches the same scores in fewer steps.

    A score over scans of many kinds can fall although each of them is segmented better, because one
    threshold no longer suits all.  With a falling rate, the last weights can then be better than
    the best.

    Parameters
    ----------
    every : int
        Steps between two validations.
    patience : int
        Consecutive validations without a rise of the score after which training stops.
    rise : float
        Minimum gain of the score that counts as a rise.  The weights of the best validation are
        kept regardless of it.
    decay : float
        Decay of the running average per step, below 1.  It is lower at first, so that the first
        steps have little influence.
    warm_up : int
        Steps in which the learning rate rises; then it is constant.
    falling : bool
        Whether the learning rate rises and falls with the budget instead, as without a `Stopping`.
    returned : {"best", "last"}
        The validation whose weights are returned.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    every: int = 100
    patience: int = 5
    rise: float = 0.0
    decay: float = 0.99
    warm_up: int = 100
    falling: bool = False
    returned: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        if (
            min(self.every, self.patience, self.warm_up) < 1
            or not 0 <= self.rise < 1
            or not 0 <= self.decay < 1
        ):
            raise ValueError(
                "stopping needs every, patience and warm_up of 1 or more, and a rise and a decay "
                f"from 0 to below 1, not {self}"
            )


@dataclass(frozen=True)
class TrainingRecord:
    """Record of a training.

    Attributes
    ----------
    losses : tuple of float
        Loss of every step.
    seconds : float
        Total time, including validation.
    scores : tuple of (int, float)
        Step and score of every validation.
    precision : {"32-true", "bf16-mixed"}
        Precision of the computation.
    mode : {"max", "min"}
        Whether a higher or a lower score is better.
    """

    losses: tuple[float, ...]
    seconds: float
    scores: tuple[tuple[int, float], ...] = ()
    precision: str = "32-true"
    mode: Mode = "max"

    @property
    def steps(self) -> int:
        """Steps of the optimiser."""
        return len(self.losses)

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and score of the best validation; None without a validation."""
        if not self.scores:
            return None
        return (max if self.mode == "max" else min)(self.scores, key=lambda item: item[1])


def choose_precision(precision: Precision, device: str) -> Literal["32-true", "bf16-mixed"]:
    """Replace ``"auto"`` by bfloat16 if the device has instructions for it, otherwise by float32.

    Without instructions torch emulates bfloat16: a convolution takes thirty times as long as in
    float32.

    Parameters
    ----------
    precision : {"auto", "32-true", "bf16-mixed"}
        Any value except ``"auto"`` is returned unchanged.
    device : str
        Device such as ``"cpu"`` or ``"cuda"``.

    Examples
    --------
    >>> choose_precision("32-true", "cuda")
    '32-true'
    """
    if precision != "auto":
        return precision
    return "bf16-mixed" if has_bfloat16(device) else "32-true"


def training_state(folder: str | PathLike[str]) -> Literal["new", "interrupted", "finished"]:
    """State of the training in a folder of checkpoints: `train` starts, resumes or skips it."""
    if (Path(folder) / _RECORD).is_file():
        return "finished"
    return "interrupted" if (Path(folder) / _LAST).is_file() else "new"


def train(
    network: nn.Module,
    patches: PatchDataModule,
    budget: Budget,
    *,
    stopping: Stopping | None = None,
    folder: str | PathLike[str] | None = None,
    learning_rate: float = 1e-2,
    weight_decay: float = 1e-2,
    settle: bool = True,
    kept: Collection[nn.Module] = (),
    device: str = "cpu",
    precision: Precision = "32-true",
    report: Callable[[Progress], None] | None = None,
) -> TrainingRecord:
    """Train a network in place.

    Without `stopping` the learning rate falls to 0 with the budget, and the last weights are kept.
    With `stopping` the weights of the best validation are kept, and the rate falls only if
    `Stopping.falling` is set.

    Parameters
    ----------
    network : Module
        ``network(signal, graph)`` returns the output of every voxel.  In evaluation mode
        afterwards.
    patches : PatchDataModule
        Task, training data, and validation scans, which `stopping` needs.
    budget : Budget
        Maximum length of the training.
    stopping : Stopping, optional
        Validation, and early stopping when the validation score no longer improves.
    folder : path, optional
        Folder of the checkpoints, which are written at every validation with `stopping`.  An
        interrupted training resumes from the last checkpoint in this folder, with the same result;
        a finished training is not repeated.
    learning_rate, weight_decay : float
        See `TaskModule`.
    settle : bool
        Whether to set batch norms by `settle_batch_norm` at each validation and at the end.
    kept : collection of Module
        Parts of the network that were trained before, such as `Taken.modules` of
        `tripq.networks.start.start_from`; ``(network,)`` for all of it.  `Task.initialise` sets the
        initial weights of the other parts.
    device : str
        ``"cpu"``, ``"cuda"`` or another accelerator of Lightning.  Processes started by torchrun
        divide each batch and the validation scans; the weights equal those of one process, to
        rounding.
    precision : {"auto", "32-true", "bf16-mixed"}
        Precision as in Lightning.  With ``"bf16-mixed"`` convolutions and matrix products are in
        bfloat16, which is twice as fast on a processor with instructions for it and many times
        slower on others.  ``"auto"`` uses it on the former; the record has the precision used.
    report : callable, optional
        Called with a `Progress` after every step.

    Returns
    -------
    TrainingRecord

    Raises
    ------
    ValueError
        If `stopping` is given without validation scans, or `folder` without `stopping`; if network
        and boxes disagree on `b0_contrast`; if a file in the folder cannot be used; if several
        processes cannot divide the boxes of a batch evenly, or have no shared `folder`.
    FloatingPointError
        If the loss is NaN or infinite.
    """
    if stopping is not None and not patches.validation:
        raise ValueError("stopping needs validation scans: PatchDataModule(validation=...)")
    if stopping is None and folder is not None:
        raise ValueError("checkpoints are written at validations: folder needs stopping")
    if patches.b0_contrast != reads_b0_contrast(network):
        raise ValueError(
            f"the network has b0_contrast={reads_b0_contrast(network)}, and the boxes "
            f"{patches.b0_contrast}: PatchDataModule(..., b0_contrast=reads_b0_contrast(network))"
        )
    chosen = choose_precision(precision, device)
    rank = Rank.here()
    if patches.n_boxes % rank.count:
        raise ValueError(
            f"n_boxes must be a multiple of {rank.count}, for {rank.count} processes to divide a "
            f"batch evenly, not {patches.n_boxes}"
        )
    if stopping is not None and folder is None and rank.count > 1:
        raise ValueError("several processes need a folder that all of them can access")
    task = patches.task
    module = TaskModule(
        network, task, learning_rate=learning_rate, weight_decay=weight_decay, settle=settle
    )
    if folder is not None and (finished := read_record(folder, task.mode)) is not None:
        _take(module, Path(folder), stopping)
        network.eval()
        return finished
    steady = stopping.warm_up if stopping is not None and not stopping.falling else None
    keeper = BudgetCallback(budget, report, warm_up=steady)
    with _quiet_lightning(), connected(rank), _folder(folder) as checkpoints:
        last = checkpoints / _LAST
        goes_on = stopping is not None and last.is_file()
        if not goes_on:
            network.train()
            if network not in kept:
                task.initialise(network, patches.first(), kept)
        trainer = L.Trainer(
            accelerator=device,
            devices=rank.local_count,
            num_nodes=rank.machines,
            strategy="ddp" if rank.count > 1 else "auto",
            use_distributed_sampler=False,
            precision=chosen,
            max_epochs=-1,
            gradient_clip_val=CLIP_NORM,
            callbacks=[keeper, *(_callbacks(stopping, task, checkpoints) if stopping else [])],
            check_val_every_n_epoch=None,
            val_check_interval=stopping.every if stopping else None,
            limit_val_batches=1.0 if stopping else 0,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=stopping is not None,
            enable_model_summary=False,
            enable_progress_bar=False,
            default_root_dir=checkpoints,
        )
        if goes_on:
            _load(last)  # raises a clear error before Lightning reads the file
        with _interruptible(), _named(checkpoints):
            trainer.fit(
                module,
                datamodule=patches,
                ckpt_path=last if goes_on else None,
                weights_only=True,
            )
        network.eval()
        if not math.isfinite(keeper.losses[-1]):
            raise FloatingPointError(
                f"the loss is {keeper.losses[-1]} after {len(keeper.losses)} steps: try a learning "
                f"rate below {learning_rate:g}"
            )
        record = TrainingRecord(
            tuple(keeper.losses), keeper.seconds, tuple(keeper.scores), chosen, task.mode
        )
        if keeper.scores:
            _take(module, checkpoints, stopping)
            if rank.leads:
                _write_record(record, checkpoints)
        elif settle:
            settle_batch_norm(network, patches.anywhere())
            network.eval()
    return record


def _take(module: TaskModule, folder: Path, stopping: Stopping | None) -> None:
    """Load the weights of the best or of the last validation."""
    last = stopping is not None and stopping.returned == "last"
    path = folder / (_LAST if last else _BEST)
    content = _load(path)
    try:
        module.load_state_dict(content["state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise _unusable(path, "not of this network") from error


def _load(path: Path) -> dict[str, Any]:
    """Read a Lightning checkpoint: tensors, numbers and strings; nothing else is unpickled.

    Raises
    ------
    ValueError
        If it is missing or damaged, or contains anything else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise _unusable(path, "no such file") from error
    except (
        *(pickle.UnpicklingError, RuntimeError, OSError, EOFError),
        *(ValueError, LookupError, TypeError, AttributeError),
    ) as error:
        raise _unusable(path, "damaged, or written by another program; it was not used") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise _unusable(path, "not a checkpoint of a training")
    return content


def _unusable(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{path}: {reason}. To start again, remove {path.parent} (tripq train: --overwrite)."
    )


def _write_record(record: TrainingRecord, folder: Path) -> None:
    """Write the record, after all other files, because it marks a training as finished."""
    write_text(folder / _RECORD, json.dumps(asdict(record)) + "\n")


def read_record(folder: str | PathLike[str], mode: Mode) -> TrainingRecord | None:
    """Record of the training in a folder of checkpoints.

    Parameters
    ----------
    folder : path
        The folder that was given to `train`.
    mode : {"max", "min"}
        `Task.mode` of its task.

    Returns
    -------
    TrainingRecord or None
        None if the training is not finished.

    Raises
    ------
    ValueError
        If the file is not a record of a training.
    """
    path = Path(folder) / _RECORD
    if not path.is_file():
        return None
    try:
        content = read_json(path, _MAX_RECORD_BYTES)
        scores = tuple((int(step), float(score)) for step, score in content["scores"])
        losses = tuple(map(float, content["losses"]))
        precision = str(content.get("precision", "32-true"))
        return TrainingRecord(losses, float(content["seconds"]), scores, precision, mode)
    except (ValueError, LookupError, TypeError) as error:
        raise _unusable(path, "not a record of a training") from error


def _callbacks(stopping: Stopping, task: Task, folder: Path) -> list[L.Callback]:
    return [
        WeightAveraging(avg_fn=_running_average(stopping.decay)),
        EarlyStopping(
            task.score,
            mode=task.mode,
            patience=stopping.patience,
            min_delta=stopping.rise,
        ),
        ModelCheckpoint(
            folder,
            filename=Path(_BEST).stem,
            monitor=task.score,
            mode=task.mode,
            enable_version_counter=False,
        ),
        # Of every validation, and after the best one, whose score it contains.  Lightning's
        # `save_last` is written only when the score rises.
        ModelCheckpoint(folder, filename=Path(_LAST).stem, enable_version_counter=False),
    ]


def _running_average(decay: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A running mean over all steps at first, later over about the last 1 / (1 - decay) steps."""

    def average(mean: Tensor, value: Tensor, n_averaged: Tensor) -> Tensor:
        steps = float(n_averaged)
        kept = min(decay, (1 + steps) / (10 + steps))
        return torch.lerp(value, mean, kept) if mean.is_floating_point() else value

    return average


@contextmanager
def _folder(folder: str | PathLike[str] | None) -> Iterator[Path]:
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        yield Path(folder)
        return
    with TemporaryDirectory(prefix="tripq-") as temporary:
        yield Path(temporary)


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Add the folder to errors while a checkpoint is written; those of Lightning name no file."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(folder)) from error


@contextmanager
def _interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt after Ctrl-C; Lightning would exit and ignore further Ctrl-C."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from error
        raise


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Suppress messages of Lightning on unused devices, workers, folders, and its use of torch."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not have many workers.*")
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
            # torchmetrics has already combined the scores of the processes.
            warnings.filterwarnings("ignore", ".*`sync_dist=True`.*", UserWarning)
            warnings.filterwarnings("ignore", ".*isinstance\\(treespec, LeafSpec\\).*")
            yield
    finally:
        logger.setLevel(level)
