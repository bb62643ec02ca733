"""Time and memory of layers and networks, each result compared with the definition.

    python perf/profile.py                            # all workloads, on the CPU
    python perf/profile.py --save                     # and keep the figures, and write the report
    python perf/profile.py --device cuda --workload brain-inner --backend triton
    python perf/profile.py --report                   # write docs/performance.md from what is kept

Every way to evaluate a workload has a process of its own, so that its peak memory is its own, and
so that running out of memory or of time is a line in a table.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This file's name hides the standard library's `profile`, which torch imports; from the end of the
# path, this folder still gives the modules beside this one.
_HERE = Path(__file__).parent.resolve()
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != _HERE] + [str(_HERE)]

from collections.abc import Callable
from dataclasses import replace
from datetime import date
from typing import Annotated, Literal

import typer
from measure import NotMeasured, in_own_process
from report import print_run, write_report
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rows import RESULTS, Machine, Row, Run, save
from tasks import Task, machine, run
from workloads import BACKENDS, LABELS, NAMES, TINY, find

METHODS = (*BACKENDS, "edges", *LABELS)


def measure_all(
    names: list[str],
    tasks: Callable[[str], list[Task]],
    machine: Machine,
    limit: float,
    console: Console,
    keep: Callable[[Run], object],
) -> None:
    """Measure the tasks of each workload, show them, and hand each run to `keep` when it is done.

    Parameters
    ----------
    names : list of str
        The workloads.
    tasks : callable
        The rows to measure of one.
    limit : float
        Seconds for each row.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}"), *Progress.get_default_columns())
    with Progress(columns[0], *columns[2:], TimeElapsedColumn(), console=console) as progress:
        bar = progress.add_task("", total=sum(len(tasks(name)) for name in names))
        for name in names:
            rows = []
            for task in tasks(name):
                what = " ".join(filter(None, (name, task.row.axis, task.method)))
                progress.update(bar, description=what)
                rows.append(measure_row(task, limit))
                progress.advance(bar)
            first = tasks(name)[0]
            done = Run(
                name,
                first.dtype,
                date.today().isoformat(),
                first.repeats,
                machine,
                tuple(rows),
            )
            print_run(done, console)
            keep(done)


def measure_row(task: Task, limit: float) -> Row:
    """The row of a task: figures, or why there are none."""
    if task.obstacle is not None:
        return replace(task.row, note=f"not measured: {task.obstacle}")
    try:
        return in_own_process(run, task, limit=limit)
    except NotMeasured as why:
        return replace(task.row, note=f"not measured: {why}")


def main(
    workload: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(NAMES)}.  [default: all]")
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help=f"Or peer: one of {', '.join(METHODS)}.  [default: all but edges]"),
    ] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option()] = "cpu",
    dtype: Annotated[
        Literal["float32", "float64", "bfloat16", "float16"], typer.Option()
    ] = "float32",
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls; medians are shown.")] = 5,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of torch.  [default: torch's]")
    ] = None,
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds for each row.")] = 1800.0,
    json: Annotated[
        Path | None, typer.Option(help="Put the results into this file, by workload and dtype.")
    ] = None,
    keep: Annotated[
        bool,
        typer.Option("--save", help="Put them into perf/results/ by device, and write the report."),
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Measure nothing; write docs/performance.md.")
    ] = False,
) -> None:
    """Measure layers and networks, after comparing each result with the definition."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    if report:
        console.print(f"written: {write_report()}")
        return
    names = workload or list(NAMES)
    for given, known in ((names, (*NAMES, TINY.name)), (backend or (), METHODS)):
        for name in given:
            if name not in known:
                raise typer.BadParameter(f"unknown name {name!r}: one of {', '.join(known)}")

    def tasks(name: str) -> list[Task]:
        return [
            Task(point, method, device, dtype, repeats, threads)
            for point in find(name)
            for method in (backend or point.methods)
            if method in point.methods or method == "edges"
        ]

    names = [name for name in names if tasks(name)]
    try:
        here = in_own_process(machine, device, dtype, threads, limit=time_limit)
    except NotMeasured as why:
        raise typer.BadParameter(f"--device {device}: {why}") from None

    def keep_run(done: Run) -> None:
        if json is not None:
            save(json, [done])
        if keep:
            save(RESULTS / f"{here.slug}.json", [done])
            write_report()

    measure_all(names, tasks, here, time_limit, console, keep_run)


if __name__ == "__main__":
    typer.run(main)
