"""Where the time of `tripq segment` goes, from the start of Python to the last file.

    python perf/segmentation.py dwi.nii.gz --mask mask.nii.gz   # a scan with its gradient table
    python perf/segmentation.py dwi.nii.gz --save               # and write docs/performance.md

Two new processes segment the scan with the network that comes with tripq.  The first is the command
as anyone calls it; its wall clock is the time of the call.  In the second a thread looks 200 times
a second where the command is, and the seconds between two looks count for that stage.  Afterwards
the second process computes the map again from the signal in memory, resampling included where the
command resamples, and compares the result with the map of the command: there are no figures if they
differ.
"""

from __future__ import annotations

import last_on_path  # isort: split

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Annotated, Literal

import typer
from measure import NotMeasured, in_own_process
from rich.console import Console
from rows import RESULTS

#: Files with what was measured.
KEPT = RESULTS / "segmentation"

#: Stages by the modules whose code runs, or their packages; the first that fits counts.
STAGES = {
    "brain mask": ("tripq.scans.brain",),
    "resampling": ("tripq.scans.resampling",),
    "maps and page": ("tripq.report", "tripq.tasks.lesions.pages", "tripq.scans.write"),
    "reading and checks": ("tripq.scans", "tripq.commands.checks", "tripq.commands.scans"),
    "statistics of the norms": ("tripq.domain.window",),
    "graph": ("tripq.domain",),
    "layers": ("tripq.backends", "tripq.networks", "tripq.nn", "tripq.filters", "tripq.so3"),
}
IMPORTS, OTHER = "imports", "other"

#: Largest difference of the probabilities: rounding, as the tests of the laws allow it.
TOLERANCE = 5e-6

#: As `tripq.scans.Frame`, which is imported with the command only: imports are measured.
Frame = Literal["fsl", "voxel", "world"]

INTERVAL = 0.005  # seconds between two looks
LIMIT = 3600.0  # seconds for one process


@dataclass(frozen=True)
class Scan:
    """What is segmented.

    Parameters
    ----------
    name : str
        On the page.
    file : Path
        The scan; its gradient table lies beside it unless it is given.
    mask, bval, bvec : Path, optional
        See ``tripq segment --help``.
    frame : {"fsl", "voxel", "world"}
        Of the gradient table.
    """

    name: str
    file: Path
    mask: Path | None = None
    bval: Path | None = None
    bvec: Path | None = None
    frame: Frame = "fsl"

    def words(self, out: Path, threads: int) -> list[str]:
        """Arguments of the command."""
        given = [
            word
            for option, path in (
                ("--mask", self.mask),
                ("--bval", self.bval),
                ("--bvec", self.bvec),
            )
            if path is not None
            for word in (option, str(path))
        ]
        settings = ["--frame", self.frame, "--nthreads", str(threads), "-q"]
        return ["segment", str(self.file), *given, *settings, "-o", str(out)]


@dataclass(frozen=True)
class Call:
    """One call of the command.

    Parameters
    ----------
    scan : str
        Its name.
    voxels, samples : int
        Voxels in the mask, and volumes.
    mask : bool
        Whether a mask was given.
    processor : str
        Its model.
    threads : int
        Of torch.
    seconds : float
        Of the call, by the wall clock, without the thread that looks.
    network_seconds : float
        Of the map alone: graphs, network, and resampling where the command resamples.
    difference : float
        Largest, between the map of the command and that of the network alone.
    stages : dict
        Seconds of each stage.
    """

    scan: str
    voxels: int
    samples: int
    mask: bool
    processor: str
    threads: int
    seconds: float
    network_seconds: float
    difference: float
    stages: dict[str, float]

    @property
    def goal(self) -> float:
        """Seconds that a call may take: three times the network, and 5 s, or 15 s without mask."""
        return 3 * self.network_seconds + (5 if self.mask else 15)


# -- stages --------------------------------------------------------------------------------------


def stage_of(modules: Sequence[str]) -> str:
    """The stage of a stack of calls.

    Parameters
    ----------
    modules : sequence of str
        The modules of the code, innermost first.

    Examples
    --------
    >>> stage_of(["scipy.ndimage", "tripq.scans.brain", "tripq.scans.read"])
    'brain mask'
    >>> stage_of(["tripq.nn.gate", "importlib._bootstrap", "tripq.models"])
    'imports'
    """
    if any(module.startswith("importlib._bootstrap") for module in modules):
        return IMPORTS
    for module in modules:
        for stage, places in STAGES.items():
            if any(f"{module}.".startswith(f"{place}.") for place in places):
                return stage
    return OTHER


def _modules(frame: FrameType | None) -> list[str]:
    modules = []
    while frame is not None:
        modules.append(frame.f_globals.get("__name__", ""))
        frame = frame.f_back
    return modules


@contextmanager
def watched() -> Iterator[Counter[str]]:
    """Seconds of each stage of what this thread does meanwhile."""
    seconds: Counter[str] = Counter()
    here, ended = threading.get_ident(), threading.Event()

    def look() -> None:
        last = time.perf_counter()
        while not ended.wait(INTERVAL):
            stage = stage_of(_modules(sys._current_frames().get(here)))
            now = time.perf_counter()
            seconds[stage] += now - last
            last = now

    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    try:
        yield seconds
    finally:
        ended.set()
        watch.join()


# -- the command ---------------------------------------------------------------------------------


def measure(scan: Scan, threads: int) -> Call:
    """Call the command twice, in new processes."""
    with TemporaryDirectory() as folder:
        words = scan.words(Path(folder), threads)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "tripq", *words], check=True)
        seconds = time.perf_counter() - start
    call = in_own_process(measure_stages, scan, threads, seconds, limit=LIMIT)
    if not call.difference <= TOLERANCE:  # nor if it is no number
        raise NotMeasured(f"the map of the command differs by {call.difference:.1g}")
    return call


def measure_stages(scan: Scan, threads: int, seconds: float) -> Call:
    """Call the command in this process, which must be new; then evaluate the network alone."""
    with TemporaryDirectory() as folder:
        with watched() as stages:
            from tripq.commands import run

            sys.argv = ["tripq", *scan.words(Path(folder), threads)]
            try:
                run()
            except SystemExit as ended:
                if ended.code:
                    raise NotMeasured(f"tripq segment ended with {ended.code}") from None
        (written,) = Path(folder).glob("*_probseg.nii.gz")
        import nibabel as nib
        import numpy as np

        map = nib.load(written).get_fdata(dtype=np.float32)  # type: ignore[attr-defined]
    from machine import processor

    from tripq.scans import read_dwi
    from tripq.scans.brain import read_brain
    from tripq.tasks.lesions.command import LesionCommands
    from tripq.tasks.lesions.segmentation import load_model, segment_scan

    if scan.mask is None:
        dwi = read_brain(scan.file, scan.bval, scan.bvec, scan.frame)
    else:
        dwi = read_dwi(scan.file, scan.bval, scan.bvec, scan.mask, scan.frame)
    model = load_model(LesionCommands().included_weights())
    start = time.perf_counter()
    alone = segment_scan(model, dwi).probability
    network_seconds = time.perf_counter() - start
    return Call(
        scan.name,
        len(alone),
        len(dwi.q),
        scan.mask is not None,
        processor(),
        threads,
        seconds,
        network_seconds,
        float(np.abs(map[dwi.mask] - alone).max()),
        dict(stages.most_common()),
    )


# -- results -------------------------------------------------------------------------------------


def stored() -> list[Call]:
    """What was kept, by name."""
    return [Call(**json.loads(file.read_text())) for file in sorted(KEPT.glob("*.json"))]


def keep(call: Call) -> None:
    """Write the file of a call."""
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / f"{call.scan}.json").write_text(json.dumps(asdict(call), indent=1) + "\n")


def table(calls: Sequence[Call]) -> list[list[str]]:
    """Header and rows: a column for each call."""
    stages = dict.fromkeys(stage for call in calls for stage in call.stages)
    return [
        ["", *(call.scan for call in calls)],
        ["voxels", *(f"{call.voxels:,}" for call in calls)],
        ["volumes", *(str(call.samples) for call in calls)],
        ["mask", *("given" if call.mask else "computed" for call in calls)],
        ["processor", *(f"{call.processor}, {call.threads} threads" for call in calls)],
        ["**call**", *(f"**{call.seconds:.1f} s**" for call in calls)],
        ["goal", *(f"at most {call.goal:.1f} s" for call in calls)],
        ["network alone", *(f"{call.network_seconds:.1f} s" for call in calls)],
        *([stage, *(f"{call.stages.get(stage, 0):.1f} s" for call in calls)] for stage in stages),
    ]


def main(
    file: Annotated[Path, typer.Argument(metavar="SCAN", exists=True, help="A diffusion scan.")],
    name: Annotated[
        str | None, typer.Option(help="On the page; by default that of the file.")
    ] = None,
    mask: Annotated[Path | None, typer.Option(exists=True)] = None,
    bval: Annotated[Path | None, typer.Option(exists=True)] = None,
    bvec: Annotated[Path | None, typer.Option(exists=True)] = None,
    frame: Annotated[Frame, typer.Option(help="Of the gradient table.")] = "fsl",
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 2,
    save: Annotated[
        bool, typer.Option("--save", help="Keep the figures, and write docs/performance.md.")
    ] = False,
) -> None:
    """Measure the stages of `tripq segment`."""
    scan = Scan(name or file.name.partition(".")[0], file, mask, bval, bvec, frame)
    try:
        call = measure(scan, threads)
    except (NotMeasured, subprocess.CalledProcessError) as why:
        raise typer.BadParameter(f"{file}: {why}") from None
    from report import rich_table, write_report

    title = f"tripq segment; largest difference {call.difference:.1g}"
    header, *rows = [[cell.strip("*") for cell in row] for row in table([call])]
    Console(width=None if sys.stdout.isatty() else 100).print(rich_table(title, header, rows))
    if save:
        keep(call)
        write_report()


if __name__ == "__main__":
    typer.run(main)
