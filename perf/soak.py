"""Long use of one process: memory stays flat, and the last result is the first.

    python perf/soak.py                                              # 2,000 steps, 200 scans
    python perf/soak.py --steps 100 --segmentations 20 --out results # and soak.json, soak.png

In one process a network is trained and scans are segmented by the whole command, pages included:

1. a short training and a segmentation, which are kept;
2. a long training with validations and checkpoints;
3. all other segmentations;
4. the short training once more.

After every segmentation, and a hundred times in the long training, the memory of the process is
taken, once garbage was collected and the allocator has given back what is free.  It is flat if, in
the last three quarters of each of both phases,

* the line through it rises by no more than `ROOM` from end to end, where its slope is the median of
  the slopes of all pairs of points (Theil and Sen), which single peaks do not move;
* and its maximum is no further than `PEAK` above its median.

The first quarter is left out, in which caches fill.  Maps and their JSON files must be the same
after the last segmentation as after the first (the page tells when it was written), and the weights
of both short trainings equal, bit by bit.  The exit status is 1 if anything is not so.
"""

from __future__ import annotations

import last_on_path  # isort: split

import ctypes
import gc
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import matplotlib as mpl
import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from measure import resident
from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import TaskID
from scipy.stats import theilslopes
from torch import nn

from tripq.commands import app
from tripq.infra.files import sha256
from tripq.simulate import GradientTable, default_anatomy
from tripq.tasks.lesions.segmenter import LesionSegmenter
from tripq.tasks.lesions.simulate import Subject, simulate_subject, write_subject
from tripq.tasks.lesions.task import LesionTask
from tripq.training import Budget, PatchDataModule, Progress, Stopping, train

ROOM = 4e6
"""Bytes of a rise that are no leak: free memory lies between what is used, and not all of it can be
given back.  In the last three quarters of 2,000 steps it is 2.7 kB for each."""

PEAK = 32e6
"""Bytes by which the memory may once be above its median, for the same reason."""

CACHE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
"""oneDNN, which torch convolves by, keeps a program for each of the last 1,024 shapes that it met.

Boxes of a masked scan have hundreds of shapes, so that this fills for a thousand steps: by 7 MB in
300 steps on boxes of 10 voxels.  It has a bound and is no leak, but would hide one; the command
keeps it at 16."""

SAMPLES = 100
VOXEL = 4.0  # mm
RADIUS = 1.45 * VOXEL

#: Made once, as in a process that segments: making it is no part of a segmentation.
COMMAND = typer.main.get_command(app)


@dataclass(frozen=True)
class Phase:
    """Memory of the process in the course of many equal calls.

    Attributes
    ----------
    name : str
        Of the calls.
    every : int
        Calls between two measurements.
    memory : tuple of float
        Bytes.
    """

    name: str
    every: int
    memory: tuple[float, ...]

    @property
    def settled(self) -> np.ndarray:
        """What counts: the last three quarters."""
        return np.array(self.memory[len(self.memory) // 4 :])

    @cached_property
    def slope(self) -> float:
        """Bytes by which the memory rises with each call."""
        return float(theilslopes(self.settled).slope) / self.every

    @property
    def rise(self) -> float:
        """Bytes from end to end."""
        return self.slope * self.every * (len(self.settled) - 1)

    @property
    def peak(self) -> float:
        """Bytes of the maximum over the median."""
        return float(self.settled.max() - np.median(self.settled))

    @property
    def is_flat(self) -> bool:
        """Whether nothing leaks."""
        return self.rise <= ROOM and self.peak <= PEAK

    def __str__(self) -> str:
        verdict = "flat" if self.is_flat else "NOT FLAT"
        return (
            f"{self.every * len(self.memory):,} {self.name}: "
            f"{np.median(self.settled) / 1e6:,.0f} MB, {verdict}: "
            f"{self.slope / 1e3:+.2f} kB each, {self.rise / 1e6:+.2f} MB in the last three "
            f"quarters (at most {ROOM / 1e6:g}), peak {self.peak / 1e6:.2f} MB above the median "
            f"(at most {PEAK / 1e6:g})"
        )


@dataclass(frozen=True)
class Soak:
    """What a run showed.

    Attributes
    ----------
    phases : tuple of Phase
        Training and segmentation.
    same_weights : bool
        Of the short trainings at both ends.
    same_files : bool
        Of the first and the last segmentation.
    """

    phases: tuple[Phase, ...]
    same_weights: bool
    same_files: bool

    @property
    def is_good(self) -> bool:
        """Whether all is as it should be."""
        return self.same_weights and self.same_files and all(p.is_flat for p in self.phases)

    def __str__(self) -> str:
        lines = [str(phase) for phase in self.phases]
        for what, same in (
            ("weights of two trainings from one seed", self.same_weights),
            ("maps of the first and the last segmentation", self.same_files),
        ):
            lines.append(f"{what}: {'identical' if same else 'THEY DIFFER'}")
        return "\n".join(lines)


def make_network() -> nn.Module:
    """A small network, always with the same weights."""
    torch.manual_seed(0)
    return LesionSegmenter(
        p_radius=RADIUS, q_features="8x0e + 4x2e", p_features="8x0e + 2x1o + 2x2e", n_p_layers=1
    )


def soak(
    steps: int,
    segmentations: int,
    folder: Path,
    *,
    make: Callable[[], nn.Module] = make_network,
    report: Callable[[str, int, int], object] = lambda phase, done, total: None,
) -> Soak:
    """Train and segment for long in this process.

    Parameters
    ----------
    steps, segmentations : int
        How many.
    folder : Path
        For scans, checkpoints and maps.
    make : callable
        Makes the network that is trained.
    report : callable
        Called with the phase, what is done and the number of all.
    """
    table = GradientTable.from_shells([1000.0], [12])
    anatomy = default_anatomy(VOXEL).within((-32, -48, 0), (32, 24, 20))
    distance = np.linalg.norm(anatomy.grid.points() - (-10, -20, 10), axis=1)
    lesion = (distance < 9.0).reshape(anatomy.mask.shape).astype(np.float32)
    subjects = [simulate_subject(anatomy, table, seed, lesion_coverage=lesion) for seed in range(3)]
    write_subject(subjects[0], folder / "scan")

    gc.freeze()  # what is there by now is no garbage, and takes most of the time to look through

    def short() -> dict[str, torch.Tensor]:
        network = make()
        few = max(3, steps // 100)
        train(network, _boxes(subjects), Budget(steps=few), stopping=Stopping(every=few))
        return network.state_dict()

    first_weights = short()
    first_files = _segment(folder / "scan", folder / "map")

    every = max(1, steps // SAMPLES)
    training, segmenting = [], []

    def after_step(progress: Progress) -> None:
        if progress.steps % every == 0:
            training.append(held())
        report("training steps", progress.steps, steps)

    train(
        make(),
        _boxes(subjects),
        Budget(steps=steps),
        stopping=Stopping(every=max(10, steps // 10), patience=steps),
        folder=folder / "checkpoints",
        report=after_step,
    )
    files = first_files
    for number in range(1, segmentations):
        files = _segment(folder / "scan", folder / "map")
        segmenting.append(held())
        report("segmentations", number, segmentations - 1)

    last_weights = short()
    gc.unfreeze()
    return Soak(
        (
            Phase("training steps", every, tuple(training)),
            Phase("segmentations", 1, tuple(segmenting)),
        ),
        all(torch.equal(value, last_weights[key]) for key, value in first_weights.items()),
        files == first_files,
    )


def _boxes(subjects: list[Subject]) -> PatchDataModule:
    return PatchDataModule(
        subjects[:2], LesionTask(), radius=RADIUS, box_size=8, n_boxes=2, validation=subjects[2:]
    )


def _segment(scan: Path, out: Path) -> dict[str, str]:
    """Run ``tripq segment``; the SHA-256 of each file that it writes, without the page."""
    files = ("--mask", scan / "mask.nii.gz", "-o", out, "--overwrite", "--device", "cpu", "--quiet")
    arguments = ["segment", scan / "dwi.nii.gz", *files]
    if status := COMMAND.main([str(argument) for argument in arguments], standalone_mode=False):
        raise RuntimeError(f"tripq segment ended with status {status}")
    return {path.name: sha256(path) for path in sorted(out.iterdir()) if path.suffix != ".html"}


def held() -> float:
    """Bytes that this process needs: without garbage, and without what the allocator keeps."""
    gc.collect()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)
    return resident()


# -- what is shown -------------------------------------------------------------------------------


def write(result: Soak, folder: Path) -> None:
    """Write ``soak.json`` and ``soak.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    phases = [
        {**asdict(p), "slope": p.slope, "rise": p.rise, "peak": p.peak, "is_flat": p.is_flat}
        for p in result.phases
    ]
    content = {**asdict(result), "phases": phases, "room": ROOM, "peak": PEAK}
    (folder / "soak.json").write_text(json.dumps(content, indent=1) + "\n")
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(6.4, 2.8), layout="constrained")
        for panel, phase in zip(figure.subplots(1, 2, sharey=True), result.phases, strict=True):
            memory = np.array(phase.memory) / 1e6
            start = len(memory) - len(phase.settled)
            calls = phase.every * np.arange(1, len(memory) + 1)
            x = calls[start:]
            line = np.median(phase.settled) + phase.slope * (x - x.mean())
            panel.plot(calls, memory, color="#0072b2", linewidth=0.8)
            panel.plot(x, line / 1e6, color="#d55e00", linestyle="--")
            panel.set_xlabel(phase.name)
            panel.set_title(f"{phase.slope / 1e3:+.2f} kB each", fontsize=9)
            panel.set_ylim(0, 1.2e-6 * max(max(p.memory) for p in result.phases))
            panel.grid(alpha=0.3)
        figure.axes[0].set_ylabel("memory, MB")
        figure.savefig(folder / "soak.png", dpi=150, metadata={"Software": None})


def main(
    steps: Annotated[int, typer.Option(min=8, help="Of training.")] = 2000,
    segmentations: Annotated[int, typer.Option(min=9)] = 200,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for soak.json and soak.png.")] = None,
) -> None:
    """Train and segment for long in one process; status 1 if memory grows or results change."""
    os.environ.setdefault(CACHE, "16")  # read when torch convolves for the first time
    if threads is not None:
        torch.set_num_threads(threads)
    console = Console(stderr=True)
    with TemporaryDirectory(prefix="tripq-") as folder, Bars(console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def report(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=done)

        result = soak(steps, segmentations, Path(folder), report=report)
    print(result)
    if out is not None:
        write(result, out)
    raise typer.Exit(0 if result.is_good else 1)


if __name__ == "__main__":
    typer.run(main)
