"""Time and memory of layers and networks, each result compared with the definition.

    python perf/profile.py                            # all workloads, on the CPU
    python perf/profile.py --save                     # and keep the figures, and write the report
    python perf/profile.py --device cuda --workload brain-inner --backend triton
    python perf/profile.py --report                   # write docs/performance.md from what is kept

Every way to evaluate a workload has a process of its own, so that its peak memory is its own, and
so that running out of memory or of time is a line in a table.
"""

from __future__ import annotations

import last_on_path  # isort: split

import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

import typer
from measure import NotMeasured, in_own_process
from report import print_run, write_report
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rows import RESULTS, Row, Run, save
from tasks import Task, machine, run
from workloads import BACKENDS, LABELS, NAMES, TINY, find

METHODS = (*BACKENDS, "edges", *LABELS)


def measure_all(
    workloads: dict[str, list[Task]],
    limit: float,
    console: Console,
    keep: Callable[[Run], object],
) -> None:
    """Measure the tasks of each workload, show them, and hand each run to `keep` when it is done.

    The rates of the machine are taken before each workload.

    Parameters
    ----------
    workloads : dict of str to list of Task
        The rows to measure, by the name of the workload.
    limit : float
        Seconds for each row.
    """
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=sum(len(tasks) for tasks in workloads.values()))
        for name, tasks in workloads.items():
            progress.update(bar, description=f"{name}: rates of the machine")
            first = tasks[0]
            here = in_own_process(machine, first.device, first.dtype, first.threads, limit=limit)
            rows = []
            for task in tasks:
                what = " ".join(filter(None, (task.row.axis, task.method)))
                progress.update(bar, description=f"{name}: {what}")
                rows.append(measure_row(task, limit))
                progress.advance(bar)
            today = date.today().isoformat()
            done = Run(name, first.dtype, today, first.repeats, here, tuple(rows))
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
        list[str] | None, typer.Option(help=f"One of {', '.join(NAMES)}. All, if not given.")
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help=f"Or peer: one of {', '.join(METHODS)}. All but edges, if not given."),
    ] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option()] = "cpu",
    dtype: Annotated[
        Literal["float32", "float64", "bfloat16", "float16"], typer.Option()
    ] = "float32",
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls; medians are shown.")] = 5,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of torch; its own choice, if not given.")
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

    def keep_run(done: Run) -> None:
        if json is not None:
            save(json, [done])
        if keep:
            save(RESULTS / f"{done.machine.slug}.json", [done])
            write_report()

    try:
        workloads = {name: found for name in names if (found := tasks(name))}
        measure_all(workloads, time_limit, console, keep_run)
    except NotMeasured as why:
        raise typer.BadParameter(f"--device {device}: {why}") from None


if __name__ == "__main__":
    typer.run(main)
