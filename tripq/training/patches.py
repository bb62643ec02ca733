"""Boxes cut out of scans, as a stream of batches for Lightning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from itertools import count
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from tripq.domain.graph import PQGraph
from tripq.infra.rank import ALONE, Rank
from tripq.scans import DWI
from tripq.training.augment import Augment
from tripq.training.batch import Batch
from tripq.training.task import Scan, Task


def cut_box(
    scan: Scan,
    task: Task,
    centre: NDArray[np.int64],
    box_size: int,
    radius: float,
    change: Callable[[DWI], DWI] | None = None,
    hidden: NDArray[np.intp] | None = None,
    b0_contrast: bool = False,
) -> tuple[Tensor, PQGraph, Tensor]:
    """The masked voxels of a cubic box.

    Parameters
    ----------
    scan : Scan
        The scan.
    task : Task
        Task that defines the target.
    centre : (3,) int array
        Voxel at the centre; the box is shifted to stay inside the volume.
    box_size : int
        Edge of the box in voxels.
    radius : float
        Radius of the graph in mm.
    change : callable, optional
        Changes the signal of the box, or its directions.
    hidden : (n,) int array, optional
        Samples that are predicted; see `Task.hidden`.
    b0_contrast : bool
        Whether the network reads the contrast of b0; see `tripq.networks.encoder.Encoder`.

    Returns
    -------
    signal : Tensor of shape (V, Q)
        Signal of the V masked voxels in the box, without the hidden samples.
    graph : PQGraph
        Graph of these voxels; its output directions are those of the hidden samples, if any.
    target : Tensor of shape (V, ...), float32
        Target of these voxels; of the hidden samples, if any, as scanned.
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
    cut = replace(dwi, signal=dwi.signal[rows], mask=dwi.mask[box], affine=affine, b0=dwi.b0[rows])
    target, q_out = task.target(scan)[rows].astype(np.float32), None
    if hidden is not None:
        cut, target, q_out = hide(cut, target, hidden)
    if change is not None:
        cut = change(cut)
    if b0_contrast:
        cut.signal[:, 0] = cut.b0 / dwi.b0_median
    return (
        torch.from_numpy(cut.signal),
        PQGraph.from_grid(cut.mask, affine, cut.q, radius, q_out=q_out),
        torch.from_numpy(target),
    )


def hide(
    dwi: DWI, target: NDArray[Any], hidden: NDArray[np.intp]
) -> tuple[DWI, NDArray[Any], NDArray[np.float64] | None]:
    """Input and target of a network if some samples of q-space are hidden.

    Parameters
    ----------
    dwi : DWI
        A scan, V voxels.
    target : (V, ...) array
        Its target; with hidden samples a column for every sample.
    hidden : (n,) int array
        Columns of the samples; none leaves everything as it is.

    Returns
    -------
    dwi : DWI
        The scan with the other samples.
    target : (V, n) or (V, ...) array
        Target of the hidden samples.
    q_out : (n, 3) array or None
        Their q-vectors, for which the output is wanted.
    """
    if not len(hidden):
        return dwi, target, None
    shown = np.setdiff1d(np.arange(len(dwi.b_values)), hidden)
    return dwi.with_samples(shown), np.ascontiguousarray(target[:, hidden]), dwi.q[hidden]


def _join(targets: Sequence[Tensor]) -> Tensor:
    """Targets one below the other; rows that are shorter than others end in NaN."""
    if targets[0].ndim < 2:
        return torch.cat(list(targets))
    longest = max(target.shape[1] for target in targets)
    padded = [torch.full((len(x), longest, *x.shape[2:]), torch.nan) for x in targets]
    for whole, target in zip(padded, targets, strict=True):
        whole[:, : target.shape[1]] = target
    return torch.cat(padded)


class PatchDataset(IterableDataset[Batch]):
    """An endless stream of batches of random boxes; see `PatchDataModule`."""

    def __init__(
        self,
        scans: Sequence[Scan],
        task: Task,
        radius: float,
        box_size: int,
        n_boxes: int,
        focus_share: float,
        seed: int,
        augment: Augment | None = None,
        start: int = 0,
        rank: Rank = ALONE,
        b0_contrast: bool = False,
    ) -> None:
        super().__init__()
        self.scans = tuple(scans)
        self.task = task
        self.radius = radius
        self.box_size = box_size
        self.n_boxes = n_boxes
        self.focus_share = focus_share
        self.seed = seed
        self.augment = augment
        self.start = start
        self.rank = rank
        self.b0_contrast = b0_contrast

    def __iter__(self) -> Iterator[Batch]:
        for index in count(self.start):
            # Every batch has its own random numbers, so that the stream can resume at any batch.
            rng = np.random.default_rng((self.seed, index))
            # Sorted, so that boxes of one scan, which share their directions, merge into one graph.
            chosen = np.sort(rng.integers(len(self.scans), size=self.n_boxes))
            centres = [
                (i, self._centre(self.scans[i], rng), self._change(index, i, number))
                for number, i in enumerate(chosen)
            ]
            boxes = [
                cut_box(
                    self.scans[i],
                    self.task,
                    centre,
                    self.box_size,
                    self.radius,
                    change,
                    self._hidden(index, i),
                    self.b0_contrast,
                )
                for i, centre, change in self.rank.share(centres)
            ]
            signals, graphs, targets = zip(*boxes, strict=True)
            graph = PQGraph.merge(graphs)
            yield Batch(graph.stack(signals), graph, _join(targets))

    def starting_at(self, start: int) -> PatchDataset:
        """The same batches, starting at batch number `start`."""
        stream = copy(self)
        stream.start = start
        return stream

    def part_of(self, rank: Rank) -> PatchDataset:
        """The same batches, each with only the boxes assigned to one process."""
        stream = copy(self)
        stream.rank = rank
        return stream

    def anywhere(self) -> PatchDataset:
        """Other boxes of the same scans as scanned, at random positions in their masks."""
        stream = copy(self)
        stream.augment = None
        stream.focus_share = 0.0
        stream.seed = self.seed + 1
        return stream

    def _change(self, index: int, scan: int, number: int) -> Callable[[DWI], DWI] | None:
        """Augmentation of one box of a batch, whose random numbers do not depend on the rank."""
        if self.augment is None:
            return None
        of_scan, of_box = (
            np.random.default_rng((self.seed, index, kind, key))
            for kind, key in enumerate((scan, number))
        )
        augment = self.augment
        return lambda box: augment(box, of_scan, of_box)

    def _hidden(self, index: int, scan: int) -> NDArray[np.intp]:
        """Samples that all boxes of a scan in a batch hide."""
        return self.task.hidden(
            self.scans[scan], np.random.default_rng((self.seed, index, 2, scan))
        )

    def _centre(self, scan: Scan, rng: np.random.Generator) -> NDArray[np.int64]:
        """A random voxel near one of `Task.focus`, or any voxel of the mask."""
        # Searched each time, because stored lists of voxels would need more memory than a mask.
        focus = self.task.focus(scan)
        chosen = np.flatnonzero(focus) if focus is not None else np.empty(0, np.int64)
        if len(chosen) == 0 or rng.random() >= self.focus_share:
            return _voxel(scan.dwi.mask, int(rng.integers(len(scan.dwi.b0))))
        # Shifted, so that the position in the box carries no information about the target.
        shift = rng.integers(-(self.box_size // 3), self.box_size // 3 + 1, size=3)
        return _voxel(scan.dwi.mask, rng.choice(chosen)) + shift


def _voxel(mask: NDArray[np.bool_], number: int) -> NDArray[np.int64]:
    """Row ``number`` of ``np.argwhere(mask)``."""
    return np.array(np.unravel_index(np.flatnonzero(mask)[number], mask.shape))


class PatchDataModule(L.LightningDataModule):
    """Random boxes of training scans, and whole validation scans.

    Parameters
    ----------
    scans : sequence of Scan
        Training scans.
    task : Task
        Task of the network.
    radius : float
        Radius of the graphs in mm: the largest one that the network needs.
    box_size : int
        Edge of the boxes in voxels.
    n_boxes : int
        Number of boxes in a batch.
    focus_share : float
        Fraction of the boxes placed on voxels of `Task.focus`; the others are at random positions
        in the mask.
    seed : int
        Seed of the choice of boxes.
    augment : Augment, optional
        Changes every box, such as `tripq.training.Augmentation`; by default boxes are as scanned.
        Validation scans are never changed.
    validation : sequence of Scan
        Validation scans, which must differ from the training scans.
    b0_contrast : bool
        Whether the network reads the contrast of b0; see `tripq.networks.encoder.Encoder`.

    Raises
    ------
    ValueError
        If there is no training scan, `Task.check` rejects the scans, or a number is out of range.
    """

    def __init__(
        self,
        scans: Sequence[Scan],
        task: Task,
        *,
        radius: float,
        box_size: int = 24,
        n_boxes: int = 1,
        focus_share: float = 0.5,
        seed: int = 0,
        augment: Augment | None = None,
        validation: Sequence[Scan] = (),
        b0_contrast: bool = False,
    ) -> None:
        super().__init__()
        if not scans:
            raise ValueError("there is no training scan")
        task.check(scans, "training")
        if validation:
            task.check(validation, "validation")
        if box_size < 1 or n_boxes < 1 or not 0 <= focus_share <= 1:
            raise ValueError(
                "a batch needs boxes of one voxel or more and a focus_share from 0 to 1, not "
                f"box_size={box_size}, n_boxes={n_boxes}, focus_share={focus_share}"
            )
        self.patches = PatchDataset(
            scans,
            task,
            radius,
            box_size,
            n_boxes,
            focus_share,
            seed,
            augment,
            b0_contrast=b0_contrast,
        )
        self.validation = tuple(validation)

    @property
    def task(self) -> Task:
        """Task of the network."""
        return self.patches.task

    @property
    def n_boxes(self) -> int:
        """Number of boxes in a batch."""
        return self.patches.n_boxes

    @property
    def b0_contrast(self) -> bool:
        """Whether the boxes show the contrast of b0."""
        return self.patches.b0_contrast

    def first(self) -> Batch:
        """The whole first batch."""
        return next(iter(self.patches))

    def anywhere(self) -> Iterator[Batch]:
        """Endless batches at random positions in the masks, representative of whole scans."""
        return iter(self.patches.anywhere().part_of(self._rank))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Endless batches, starting at the current step of the trainer.

        Cutting one takes milliseconds, so no workers are started.
        """
        start = self.trainer.global_step if self.trainer is not None else 0
        return DataLoader(self.patches.starting_at(start).part_of(self._rank), batch_size=None)

    def val_dataloader(self) -> DataLoader[Scan] | list[Scan]:
        """The validation scans, one at a time."""
        return DataLoader(self.validation, batch_size=None) if self.validation else []  # type: ignore[arg-type]

    @property
    def _rank(self) -> Rank:
        trainer = self.trainer
        return ALONE if trainer is None else Rank(trainer.global_rank, trainer.world_size)

    def transfer_batch_to_device(
        self, batch: Batch | Scan, device: torch.device, dataloader_idx: int
    ) -> Batch | Scan:
        """Lightning's hook, needed because a batch is not a plain tensor."""
        return batch.to(device) if isinstance(batch, Batch) else batch
