"""Training on boxes cut out of labelled scans, for a given time or a given number of steps.

The parts are those of Lightning, so that they can be used with a trainer of one's own:
`PatchDataModule` cuts the boxes, `SegmentationModule` has the loss and the optimiser, and
`BudgetCallback` lets the learning rate follow the time that is spent.  `train` puts them together:

>>> from tripq.models import LesionSegmenter
>>> from tripq.simulate import default_anatomy, simulate_cohort
>>> anatomy = default_anatomy(5.0).within((-40, -60, 0), (40, 40, 30))
>>> scans = list(simulate_cohort(1, seed=0, anatomy=anatomy))
>>> network = LesionSegmenter(p_radius=6.0, n_p_layers=1)
>>> patches = PatchDataModule(scans, radius=6.0, box_size=6)
>>> train(network, patches, Budget(steps=2)).steps
2
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from tripq.dwi import DWI
from tripq.graph import PQGraph
from tripq.nn import BatchNorm, scale_initial_weights

#: Share of the budget in which the learning rate rises; it falls like a cosine in the rest.
WARM_UP = 0.1

#: Batches over which the statistics of batch norms are taken at the end.
N_SETTLING = 32

#: Gradients are clipped to this norm: a few boxes are dominated by a single large lesion.
CLIP_NORM = 1.0


class LabelledScan(Protocol):
    """A scan with known lesions, such as `tripq.simulate.Subject`."""

    @property
    def dwi(self) -> DWI:
        """The scan."""

    @property
    def lesion(self) -> NDArray[np.bool_]:
        """Lesion voxels, shape (V,), in the order of ``np.argwhere(dwi.mask)``."""


# -- data ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Batch:
    """Boxes of one or several scans, and what is known of their voxels.

    Attributes
    ----------
    signal : Tensor of shape (V, Q)
        Signal divided by b0.
    graph : PQGraph
        The voxels of all boxes.
    lesion : Tensor of shape (V,)
        1 in lesions, 0 elsewhere.
    """

    signal: Tensor
    graph: PQGraph
    lesion: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(self.signal.to(device), self.graph.to(device), self.lesion.to(device))


def cut_box(
    scan: LabelledScan, centre: NDArray[np.int64], box_size: int, radius: float
) -> tuple[Tensor, PQGraph, Tensor]:
    """The masked voxels of a cubic box.

    Parameters
    ----------
    scan : LabelledScan
        Where to cut.
    centre : (3,) int array
        Voxel in the middle; the box is moved where it would leave the volume.
    box_size : int
        Edge of the box in voxels.
    radius : float
        Of the graph, in mm.

    Returns
    -------
    signal : Tensor of shape (V, Q)
        Of the V masked voxels in the box.
    graph : PQGraph
        Of the same voxels.
    lesion : Tensor of shape (V,)
        1 in lesions, 0 elsewhere.
    """
    dwi = scan.dwi
    box = tuple(
        slice(start, start + box_size)
        for start in (
            max(0, min(middle - box_size // 2, length - box_size))
            for middle, length in zip(centre, dwi.mask.shape, strict=True)
        )
    )
    inside = np.zeros_like(dwi.mask)
    inside[box] = True
    rows = np.flatnonzero(inside[dwi.mask])
    affine = dwi.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [axis.start for axis in box]
    return (
        torch.from_numpy(dwi.signal[rows]),
        PQGraph.from_grid(dwi.mask[box], affine, dwi.q, radius),
        torch.from_numpy(scan.lesion[rows].astype(np.float32)),
    )


class PatchDataset(IterableDataset[Batch]):
    """An endless stream of batches of random boxes; see `PatchDataModule`."""

    def __init__(
        self,
        scans: Sequence[LabelledScan],
        radius: float,
        box_size: int,
        n_boxes: int,
        lesion_share: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.scans = tuple(scans)
        self.radius = radius
        self.box_size = box_size
        self.n_boxes = n_boxes
        self.lesion_share = lesion_share
        self.seed = seed
        self._voxels = [np.argwhere(scan.dwi.mask) for scan in self.scans]
        self._lesions = [np.flatnonzero(scan.lesion) for scan in self.scans]

    def __iter__(self) -> Iterator[Batch]:
        rng = np.random.default_rng(self.seed)
        while True:
            # Boxes of one scan side by side: they share their directions and fuse into one graph.
            chosen = np.sort(rng.integers(len(self.scans), size=self.n_boxes))
            boxes = [
                cut_box(self.scans[i], self._centre(i, rng), self.box_size, self.radius)
                for i in chosen
            ]
            signals, graphs, lesions = zip(*boxes, strict=True)
            graph = PQGraph.merge(graphs)
            yield Batch(graph.stack(signals), graph, torch.cat(lesions))

    def _centre(self, scan: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """A voxel near a lesion, or any voxel of the mask."""
        voxels, lesions = self._voxels[scan], self._lesions[scan]
        if len(lesions) == 0 or rng.random() >= self.lesion_share:
            return voxels[rng.integers(len(voxels))]
        # Off the middle of the box, so that place in the box tells nothing of lesions.
        shift = rng.integers(-(self.box_size // 3), self.box_size // 3 + 1, size=3)
        return voxels[rng.choice(lesions)] + shift


class PatchDataModule(L.LightningDataModule):
    """Random boxes of labelled scans.

    Parameters
    ----------
    scans : sequence of LabelledScan
        To train on.
    radius : float
        Of the graphs, in mm: the largest that the network asks for.
    box_size : int
        Edge of the boxes in voxels.
    n_boxes : int
        Boxes in a batch.
    lesion_share : float
        Share of the boxes that are placed on a lesion; the others lie anywhere in the mask.
    seed : int
        Of the choice of boxes.

    Raises
    ------
    ValueError
        If there is no scan or no lesion to learn from, or a number makes no sense.
    """

    def __init__(
        self,
        scans: Sequence[LabelledScan],
        *,
        radius: float,
        box_size: int = 24,
        n_boxes: int = 1,
        lesion_share: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not any(scan.lesion.any() for scan in scans):
            raise ValueError(f"none of the {len(scans)} training scans has a lesion voxel")
        if box_size < 1 or n_boxes < 1 or not 0 <= lesion_share <= 1:
            raise ValueError(
                "a batch needs boxes of one voxel or more and a lesion_share from 0 to 1, not "
                f"box_size={box_size}, n_boxes={n_boxes}, lesion_share={lesion_share}"
            )
        self.patches = PatchDataset(scans, radius, box_size, n_boxes, lesion_share, seed)

    def anywhere(self) -> Iterator[Batch]:
        """Batches without end, from anywhere in the masks, as a whole scan is seen."""
        p = self.patches
        return iter(PatchDataset(p.scans, p.radius, p.box_size, p.n_boxes, 0.0, p.seed + 1))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches without end; cutting one takes milliseconds, so no workers are started."""
        return DataLoader(self.patches, batch_size=None)

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Lightning's hook, for a batch that is not a plain tensor."""
        return batch.to(device)


# -- the task ------------------------------------------------------------------------------------


class SegmentationModule(L.LightningModule):
    """Binary segmentation: cross-entropy of the logits of all voxels of a batch, AdamW.

    Parameters
    ----------
    network : Module
        ``network(signal, graph)`` gives one logit for every voxel.
    learning_rate : float
        The highest of the schedule.
    weight_decay : float
        Of AdamW.
    positive_weight : float
        How many healthy voxels a lesion voxel counts for.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        learning_rate: float = 1e-2,
        weight_decay: float = 1e-2,
        positive_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.network = network
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.positive_weight = positive_weight

    def forward(self, signal: Tensor, graph: PQGraph) -> Tensor:
        """Logits of shape (V,)."""
        logits: Tensor = self.network(signal, graph)
        return logits

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy over the voxels of a batch."""
        return F.binary_cross_entropy_with_logits(
            self(batch.signal, batch.graph),
            batch.lesion,
            pos_weight=batch.lesion.new_tensor(self.positive_weight),
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Lightning's hook; the loss of a batch."""
        if self.global_step == 0:
            initialise(self.network, batch)
        return self.loss(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; the learning rate is set by `BudgetCallback`."""
        return torch.optim.AdamW(
            self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )


@torch.no_grad()
def initialise(network: nn.Module, batch: Batch) -> None:
    """Scale the weights on a first batch, and let the network start from the share of lesions.

    Parameters
    ----------
    network : Module
        Changed in place; its last bias is taken for that of the logit.
    batch : Batch
        With the share of lesion voxels that is expected in training.
    """
    scale_initial_weights(network, batch.signal, batch.graph)
    biases = [p for name, p in network.named_parameters() if name.endswith("bias")]
    if biases and biases[-1].numel() == 1:
        # Half a voxel more of each kind: the log-odds stay finite.
        share = (batch.lesion.sum() + 0.5) / (len(batch.lesion) + 1)
        biases[-1].fill_(float(torch.logit(share)))


@torch.no_grad()
def settle_batch_norm(network: nn.Module, batches: Iterable[Batch]) -> None:
    """Set the statistics of batch norms to their mean over some batches.

    While training they follow the last few boxes, which may all have been ventricle; a whole scan
    is then normalised wrongly.  The mean over many boxes from anywhere is what a scan looks like
    (Wu and Johnson, arXiv:2105.07576, "precise" batch norm).

    Parameters
    ----------
    network : Module
        Changed in place, and left in training mode.
    batches : iterable of Batch
        To take the mean over.
    """
    norms = [m for m in network.modules() if isinstance(m, (BatchNorm, nn.BatchNorm3d))]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    network.train()
    device = next(network.parameters()).device
    for i, batch in enumerate(batches):
        for norm in norms:
            norm.momentum = 1 / (i + 1)  # a running mean of all so far
        placed = batch.to(device)
        network(placed.signal, placed.graph)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


# -- the budget ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """How long to train: until either is spent.

    Parameters
    ----------
    seconds : float
        Of training, without what comes before the first step.
    steps : int, optional
        Of the optimiser.  With steps alone training can be repeated exactly.

    Raises
    ------
    ValueError
        If neither is given, or one is not above 0.
    """

    seconds: float = math.inf
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.steps is None and math.isinf(self.seconds):
            raise ValueError("a budget needs seconds or steps")
        if not self.seconds > 0 or (self.steps is not None and self.steps < 1):
            raise ValueError(f"a budget is above 0, not {self}")

    def spent(self, seconds: float, steps: float) -> float:
        """Share of the budget that is spent, from 0 to 1.

        Examples
        --------
        >>> Budget(seconds=60, steps=100).spent(seconds=15, steps=50)
        0.5
        """
        by_steps = steps / self.steps if self.steps is not None else 0.0
        return min(1.0, max(seconds / self.seconds, by_steps))


def learning_rate_factor(spent: float) -> float:
    """Share of the highest learning rate: a rise, then half a cosine to 0.

    Examples
    --------
    >>> [round(learning_rate_factor(spent), 3) for spent in (0.05, 0.1, 0.55, 1.0)]
    [0.5, 1.0, 0.5, 0.0]
    """
    if spent < WARM_UP:
        return spent / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (spent - WARM_UP) / (1 - WARM_UP)))


@dataclass(frozen=True)
class Progress:
    """Where training stands: share of the budget spent, steps done, loss of the last batch."""

    spent: float
    steps: int
    loss: float


class BudgetCallback(L.Callback):
    """Ends training with the budget, and lets the learning rate follow what is spent of it.

    A schedule in steps would need to know how many steps the time allows; this one ends low on any
    machine.

    Parameters
    ----------
    budget : Budget
        To keep to.
    report : callable, optional
        Called with a `Progress` after every step.
    """

    def __init__(self, budget: Budget, report: Callable[[Progress], None] | None = None) -> None:
        self.budget = budget
        self.report = report
        self.losses: list[float] = []
        self.seconds = 0.0
        self._start = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the learning rate for the middle of the step to come."""
        assert isinstance(pl_module, SegmentationModule)
        steps = len(self.losses)
        elapsed = self._elapsed()
        half = 0.5 * (elapsed / steps if steps else 0.0)
        factor = learning_rate_factor(self.budget.spent(elapsed + half, steps + 0.5))
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = factor * pl_module.learning_rate

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note the loss, report, and stop when the budget is spent."""
        self.losses.append(float(outputs["loss"]))
        self.seconds = self._elapsed()
        spent = self.budget.spent(self.seconds, len(self.losses))
        if self.report is not None:
            self.report(Progress(spent, len(self.losses), self.losses[-1]))
        if spent >= 1:
            trainer.should_stop = True

    def _elapsed(self) -> float:
        return time.perf_counter() - self._start


@dataclass(frozen=True)
class TrainingRecord:
    """What training did: loss of every step, and seconds that all took."""

    losses: tuple[float, ...]
    seconds: float

    @property
    def steps(self) -> int:
        """Steps of the optimiser."""
        return len(self.losses)


def train(
    network: nn.Module,
    patches: PatchDataModule,
    budget: Budget,
    *,
    learning_rate: float = 1e-2,
    weight_decay: float = 1e-2,
    positive_weight: float = 1.0,
    settle: bool = True,
    device: str = "cpu",
    report: Callable[[Progress], None] | None = None,
) -> TrainingRecord:
    """Train a network in place.

    Parameters
    ----------
    network : Module
        ``network(signal, graph)`` gives one logit for every voxel.  Left in evaluation mode.
    patches : PatchDataModule
        What to train on.
    budget : Budget
        For how long.
    learning_rate, weight_decay, positive_weight : float
        See `SegmentationModule`.
    settle : bool
        Whether to end with `settle_batch_norm`.
    device : str
        ``"cpu"``, ``"cuda"`` or another accelerator of Lightning.
    report : callable, optional
        Called with a `Progress` after every step.

    Returns
    -------
    TrainingRecord

    Raises
    ------
    FloatingPointError
        If the loss is no number any more.
    """
    module = SegmentationModule(
        network,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        positive_weight=positive_weight,
    )
    keeper = BudgetCallback(budget, report)
    with _quiet_lightning():
        trainer = L.Trainer(
            accelerator=device,
            devices=1,
            max_epochs=-1,
            gradient_clip_val=CLIP_NORM,
            callbacks=[keeper],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        trainer.fit(module, patches)
        if settle:
            settle_batch_norm(network, islice(patches.anywhere(), N_SETTLING))
    network.eval()
    if not math.isfinite(keeper.losses[-1]):
        raise FloatingPointError(
            f"the loss is {keeper.losses[-1]} after {len(keeper.losses)} steps: try a learning "
            f"rate below {learning_rate:g}"
        )
    return TrainingRecord(tuple(keeper.losses), keeper.seconds)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep back what Lightning tells of unused devices, workers, and its own use of torch."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not have many workers.*")
            warnings.filterwarnings("ignore", ".*isinstance\\(treespec, LeafSpec\\).*")
            yield
    finally:
        logger.setLevel(level)
