"""How time and memory grow with the number of scans.

    python perf/many_scans.py                    # 100, 1,000 and 10,000 scans
    python perf/many_scans.py --scans 50 --out results   # and many_scans.json and many_scans.png

Three tables:

* `tripq segment-bids` called again on a dataset whose scans are all done: what it costs to find the
  scans, to see that their maps are there, and to write the summary and the page of the group.  The
  segmentation of a scan itself comes on top, and does not depend on the others.
* training: the memory of so many scans, held in memory or in files (see ``tripq train --memory``),
  and the time until a batch is drawn from them.  The scans are small, so that 10,000 fit on a disk.
  The arrays of real ones come on top where scans are in memory, and nothing if they are in files.
* `tripq segment-bids --devices` of new scans: what it costs to divide them among processes of one
  thread each, start included.  The numbers of processes take turns, so that what else the machine
  does hits them alike.

Every figure comes from a process of its own.  Times are of the CPU, all threads and child processes
together, which does not count what other programs take; the wall clock stands beside where it
matters.
"""

from __future__ import annotations

import last_on_path  # isort: split

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Annotated

import matplotlib as mpl
import nibabel as nib
import numpy as np
import typer
from matplotlib.figure import Figure
from measure import in_own_process, resident
from rich.console import Console
from rich.table import Table

from tripq.commands import app
from tripq.scans import DWI
from tripq.scans.bids import find_scans
from tripq.tasks.lesions.datasets import LabelledSubject
from tripq.tasks.lesions.task import LesionTask
from tripq.tasks.shelf import Shelf
from tripq.training import PatchDataModule

LIMIT = 3600.0  # seconds for one figure
SHAPE = (8, 8, 8)
N_DIRECTIONS = 12
N_BATCHES = 50
NEW_SHAPE = (32, 32, 32)  # of the scans that are divided


@dataclass(frozen=True)
class Dataset:
    """A call of ``segment-bids`` with nothing left to do."""

    scans: int
    find_cpu_seconds: float
    call_cpu_seconds: float
    call_wall_seconds: float
    call_bytes: float


@dataclass(frozen=True)
class Training:
    """Scans to train on."""

    scans: int
    in_files: bool
    bytes: float
    batch_cpu_seconds: float


@dataclass(frozen=True)
class Division:
    """A call of ``segment-bids`` with new scans, in some processes."""

    processes: int
    scans: int
    cpu_seconds: float
    wall_seconds: float


# -- a dataset that is done ----------------------------------------------------------------------


def write_dataset(folder: Path, number: int) -> None:
    """One scan and its results under as many names; the files are links to the same bytes."""
    raw, done = folder / "raw", folder / "done"
    _write_scan(raw / "sub-00000/dwi/sub-00000_dwi.nii.gz")
    _segment(raw, done)
    _repeat(folder, number)


def write_new(folder: Path, number: int) -> None:
    """One scan under as many names."""
    _write_scan(folder / "raw/sub-00000/dwi/sub-00000_dwi.nii.gz", NEW_SHAPE)
    _repeat(folder, number)


def _repeat(folder: Path, number: int) -> None:
    files = [
        path.relative_to(folder)
        for top in folder.iterdir()
        for path in sorted((top / "sub-00000").rglob("*"))
        if path.is_file()
    ]
    for n in range(1, number):
        for file in files:
            copy = folder / str(file).replace("sub-00000", f"sub-{n:05}")
            copy.parent.mkdir(parents=True, exist_ok=True)
            os.link(folder / file, copy)


def _write_scan(path: Path, shape: tuple[int, int, int] = SHAPE) -> None:
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True)
    data = rng.uniform(300, 1000, (*shape, N_DIRECTIONS + 1)).astype(np.float32)
    image = nib.Nifti1Image(data, np.diag([2.0, 2, 2, 1]))
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
    stem = path.name.removesuffix(".nii.gz")
    directions = rng.normal(size=(3, N_DIRECTIONS + 1))
    directions /= np.linalg.norm(directions, axis=0)
    np.savetxt(path.with_name(f"{stem}.bval"), [[0] + N_DIRECTIONS * [1000]], fmt="%g")
    np.savetxt(path.with_name(f"{stem}.bvec"), directions)


def _segment(raw: Path, done: Path) -> None:
    words = ["segment-bids", str(raw), str(done), "participant", "--quiet", "--nthreads", "1"]
    status = app(words, standalone_mode=False)
    if status:
        raise RuntimeError(f"segment-bids ended with {status}")


def measure_dataset(folder: Path, number: int) -> Dataset:
    """Find all scans, and call the command once more."""
    start = process_time()
    found = find_scans(folder / "raw")
    find_cpu_seconds = process_time() - start
    if len(found) != number:
        raise RuntimeError(f"{len(found)} scans found of {number}")
    start, wall = process_time(), perf_counter()
    _segment(folder / "raw", folder / "done")
    taken = process_time() - start, perf_counter() - wall
    return Dataset(number, find_cpu_seconds, *taken, resident(peak=True))


# -- scans to train on ---------------------------------------------------------------------------


def measure_training(folder: Path, number: int, in_files: bool) -> Training:
    """Memory of the scans, over what the process has without them, and time of a batch."""
    before = resident()
    shelf = Shelf(folder, 0 if in_files else np.inf, LabelledSubject)
    scans = [shelf.keep(f"{n:05}", lambda n=n: _subject(n)) for n in range(number)]
    patches = PatchDataModule(scans, LesionTask(), radius=3.6, box_size=6, n_boxes=2)
    batches = iter(patches.patches)
    next(batches)
    start = process_time()
    for _ in range(N_BATCHES):
        next(batches)
    seconds = (process_time() - start) / N_BATCHES
    return Training(number, in_files, resident() - before, seconds)


def _subject(number: int) -> LabelledSubject:
    rng = np.random.default_rng(number)
    n_voxels = int(np.prod(SHAPE))
    signal = rng.uniform(0.2, 0.9, (n_voxels, N_DIRECTIONS + 1)).astype(np.float32)
    signal[:, 0] = 1
    q = np.concatenate([np.zeros((1, 3)), np.random.default_rng(0).normal(size=(N_DIRECTIONS, 3))])
    q[1:] /= np.linalg.norm(q[1:], axis=1)[:, None]
    dwi = DWI(
        signal=signal,
        b_values=np.array([0.0] + N_DIRECTIONS * [1000.0]),
        q=q,
        mask=np.ones(SHAPE, dtype=bool),
        affine=np.diag([2.0, 2, 2, 1]),
        b0=np.ones(n_voxels, dtype=np.float32),
    )
    return LabelledSubject(f"sub-{number:05}", dwi, rng.random(n_voxels) < 0.1)


# -- new scans, divided --------------------------------------------------------------------------


def measure_division(folder: Path, number: int, processes: int) -> Division:
    """Segment all scans in so many processes, and forget the results."""
    import resource

    words = ["segment-bids", "raw", "out", "participant", "--quiet", "--nthreads", "1"]
    start = perf_counter()
    subprocess.run(
        [sys.executable, "-m", "tripq", *words, "--devices", str(processes)], cwd=folder, check=True
    )
    wall = perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(folder / "out")
    return Division(processes, number, used.ru_utime + used.ru_stime, wall)


# -- the command ---------------------------------------------------------------------------------


def show(
    datasets: list[Dataset],
    trainings: list[Training],
    divisions: list[Division],
    console: Console,
) -> None:
    """Print all tables."""
    table = Table(title="segment-bids, with nothing left to do (CPU time)")
    for name in ("scans", "found in", "call", "of it, a scan", "wall clock", "memory"):
        table.add_column(name, justify="right")
    for d in datasets:
        table.add_row(
            f"{d.scans:,}",
            f"{d.find_cpu_seconds:.2f} s",
            f"{d.call_cpu_seconds:.1f} s",
            f"{1e3 * d.call_cpu_seconds / d.scans:.1f} ms",
            f"{d.call_wall_seconds:.1f} s",
            f"{d.call_bytes / 1e6:,.0f} MB",
        )
    console.print(table)
    table = Table(title="Scans to train on")
    for name in ("scans", "where", "memory", "of it, a scan", "batch"):
        table.add_column(name, justify="right")
    for t in trainings:
        table.add_row(
            f"{t.scans:,}",
            "in files" if t.in_files else "in memory",
            f"{t.bytes / 1e6:,.1f} MB",
            f"{t.bytes / t.scans / 1e3:.1f} kB",
            f"{1e3 * t.batch_cpu_seconds:.1f} ms",
        )
    console.print(table)
    table = Table(title=f"segment-bids of new scans, on {_cores()} cores, in order")
    for name in ("processes", "scans", "CPU time", "of it, a scan", "wall clock"):
        table.add_column(name, justify="right")
    for each in divisions:
        table.add_row(
            str(each.processes),
            f"{each.scans:,}",
            f"{each.cpu_seconds:.1f} s",
            f"{each.cpu_seconds / each.scans:.2f} s",
            f"{each.wall_seconds:.1f} s",
        )
    console.print(table)


def plot(datasets: list[Dataset], trainings: list[Training], file: Path) -> None:
    """Time of a call, and memory of the scans to train on, over their number.

    Dotted: what is proportional to it.
    """
    calls = [(d.scans, d.call_cpu_seconds) for d in datasets]
    held = {
        name: [(t.scans, t.bytes / 1e6) for t in trainings if t.in_files is in_files]
        for name, in_files in (("in memory", False), ("in files", True))
    }
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(6.4, 2.8), layout="constrained")
        panels = figure.subplots(1, 2)
        for panel, name, curves in (
            (panels[0], "a call, s of the CPU", {"": calls}),
            (panels[1], "scans to train on, MB", held),
        ):
            for (label, points), color in zip(curves.items(), ("#0072b2", "#d55e00"), strict=False):
                panel.plot(*zip(*points, strict=True), "o-", color=color, markersize=4, label=label)
            scans, last = zip(*next(iter(curves.values())), strict=True)
            proportional = [last[-1] * n / scans[-1] for n in scans]
            panel.plot(scans, proportional, ":", color="0.5", zorder=0)
            panel.set(xlabel="scans", ylabel=name, xscale="log", yscale="log")
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_major_formatter("{x:,g}")
                axis.set_minor_formatter("")
            panel.grid(alpha=0.3)
        panels[1].legend(frameon=False)
        figure.savefig(file, dpi=150, metadata={"Software": None})


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(
    scans: Annotated[
        list[int] | None,
        typer.Option(min=1, help="How many. 100, 1,000 and 10,000, if not given."),
    ] = None,
    processes: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Among which new scans are divided. 1 and 2, if not given."),
    ] = None,
    new_scans: Annotated[int, typer.Option(min=1, help="How many are divided.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="How often each number of them.")] = 2,
    out: Annotated[
        Path | None, typer.Option(help="Folder for many_scans.json and many_scans.png.")
    ] = None,
) -> None:
    """Measure what grows with the number of scans, and what falls with that of processes."""
    datasets, trainings, divisions = [], [], []
    for number in scans or (100, 1000, 10_000):
        with TemporaryDirectory() as folder:
            write_dataset(Path(folder), number)
            datasets.append(in_own_process(measure_dataset, Path(folder), number, limit=LIMIT))
        for in_files in (False, True):
            with TemporaryDirectory() as folder:
                trainings.append(
                    in_own_process(measure_training, Path(folder), number, in_files, limit=LIMIT)
                )
    with TemporaryDirectory() as folder:
        write_new(Path(folder), new_scans)
        for count in rounds * (processes or [1, 2]):
            call = (measure_division, Path(folder), new_scans, count)
            divisions.append(in_own_process(*call, limit=LIMIT))
    console = Console(width=None if sys.stdout.isatty() else 100)
    show(datasets, trainings, divisions, console)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        content = {
            "cores": _cores(),
            "datasets": [asdict(d) for d in datasets],
            "trainings": [asdict(t) for t in trainings],
            "divisions": [asdict(d) for d in divisions],
        }
        (out / "many_scans.json").write_text(json.dumps(content, indent=1) + "\n")
        plot(datasets, trainings, out / "many_scans.png")


if __name__ == "__main__":
    typer.run(main)
