"""How time and memory grow with the number of scans.

    python perf/many_scans.py                    # 100, 1,000 and 10,000 scans
    python perf/many_scans.py --scans 50 --out results   # and many_scans.json

Two tables:

* `tripq segment-bids` called again on a dataset whose scans are all done: what it costs to find the
  scans, to see that their maps are there, and to write the summary and the page of the group.  The
  segmentation of a scan itself comes on top, and does not depend on the others.
* training: the memory of so many scans, held in memory or in files (see ``tripq train --memory``),
  and the time until a batch is drawn from them.  The scans are small, so that 10,000 fit on a disk.
  The arrays of real ones come on top where scans are in memory, and nothing if they are in files.

Every figure comes from a process of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Torch imports the standard library's `profile`, which a file of this folder would hide.
_HERE = Path(__file__).parent.resolve()
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != _HERE] + [str(_HERE)]

import json
import os
from dataclasses import asdict, dataclass
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated

import nibabel as nib
import numpy as np
import typer
from measure import in_own_process, resident
from rich.console import Console
from rich.table import Table

from tripq.bids import find_scans
from tripq.commands import app
from tripq.datasets import LabelledSubject
from tripq.datasets.shelf import Shelf
from tripq.dwi import DWI
from tripq.training import PatchDataModule

LIMIT = 3600.0  # seconds for one figure
SHAPE = (8, 8, 8)
N_DIRECTIONS = 12
N_BATCHES = 50


@dataclass(frozen=True)
class Dataset:
    """A call of ``segment-bids`` with nothing left to do."""

    scans: int
    find_seconds: float
    call_seconds: float
    call_bytes: float


@dataclass(frozen=True)
class Training:
    """Scans to train on."""

    scans: int
    in_files: bool
    bytes: float
    batch_seconds: float


# -- a dataset that is done ----------------------------------------------------------------------


def write_dataset(folder: Path, number: int) -> None:
    """One scan and its results under as many names; the files are links to the same bytes."""
    raw, done = folder / "raw", folder / "done"
    _write_scan(raw / "sub-00000/dwi/sub-00000_dwi.nii.gz")
    _segment(raw, done)
    files = [
        path.relative_to(folder)
        for top in (raw, done)
        for path in sorted((top / "sub-00000").rglob("*"))
        if path.is_file()
    ]
    for n in range(1, number):
        for file in files:
            copy = folder / str(file).replace("sub-00000", f"sub-{n:05}")
            copy.parent.mkdir(parents=True, exist_ok=True)
            os.link(folder / file, copy)


def _write_scan(path: Path) -> None:
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True)
    data = rng.uniform(300, 1000, (*SHAPE, N_DIRECTIONS + 1)).astype(np.float32)
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
    start = perf_counter()
    found = find_scans(folder / "raw")
    find_seconds = perf_counter() - start
    if len(found) != number:
        raise RuntimeError(f"{len(found)} scans found of {number}")
    start = perf_counter()
    _segment(folder / "raw", folder / "done")
    return Dataset(number, find_seconds, perf_counter() - start, resident(peak=True))


# -- scans to train on ---------------------------------------------------------------------------


def measure_training(folder: Path, number: int, in_files: bool) -> Training:
    """Memory of the scans, over what the process has without them, and time of a batch."""
    before = resident()
    shelf = Shelf(folder, memory=0 if in_files else np.inf)
    scans = [shelf.keep(f"{n:05}", lambda n=n: _subject(n)) for n in range(number)]
    patches = PatchDataModule(scans, radius=3.6, box_size=6, n_boxes=2)
    batches = iter(patches.patches)
    next(batches)
    start = perf_counter()
    for _ in range(N_BATCHES):
        next(batches)
    seconds = (perf_counter() - start) / N_BATCHES
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


# -- the command ---------------------------------------------------------------------------------


def show(datasets: list[Dataset], trainings: list[Training], console: Console) -> None:
    """Print both tables."""
    table = Table(title="segment-bids, with nothing left to do")
    for name in ("scans", "found in", "call", "of it, a scan", "memory"):
        table.add_column(name, justify="right")
    for d in datasets:
        each = f"{1e3 * d.call_seconds / d.scans:.1f} ms"
        memory = f"{d.call_bytes / 1e6:,.0f} MB"
        table.add_row(
            f"{d.scans:,}", f"{d.find_seconds:.2f} s", f"{d.call_seconds:.1f} s", each, memory
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
            f"{1e3 * t.batch_seconds:.1f} ms",
        )
    console.print(table)


def main(
    scans: Annotated[
        list[int] | None,
        typer.Option(min=1, help="How many. 100, 1,000 and 10,000, if not given."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for many_scans.json.")] = None,
) -> None:
    """Measure what grows with the number of scans."""
    datasets, trainings = [], []
    for number in scans or (100, 1000, 10_000):
        with TemporaryDirectory() as folder:
            write_dataset(Path(folder), number)
            datasets.append(in_own_process(measure_dataset, Path(folder), number, limit=LIMIT))
        for in_files in (False, True):
            with TemporaryDirectory() as folder:
                trainings.append(
                    in_own_process(measure_training, Path(folder), number, in_files, limit=LIMIT)
                )
    show(datasets, trainings, Console(width=None if sys.stdout.isatty() else 100))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        content = {
            "datasets": [asdict(d) for d in datasets],
            "trainings": [asdict(t) for t in trainings],
        }
        (out / "many_scans.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
