"""The measurements in words: on the console, and as docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import segmentation
from goals import GOALS, Goal, judged
from pages import between
from rich.console import Console
from rich.table import Table
from rows import RESULTS, Machine, Run, load
from tables import (
    about,
    axes,
    label,
    notes_of,
    scaling_table,
    seconds,
    size,
    stages_of,
    table_of,
    verdict_on_auto,
)
from workloads import IRREPS, WORKLOADS

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
README = Path(__file__).parents[1] / "README.md"
IMAGES = "images"

INTRODUCTION = f"""\
# Performance

`python perf/profile.py --save` measures into `perf/results/`, and
`python perf/profile.py --report` writes this page from those files. Input and output of each layer
are {IRREPS}, with three radial functions in p and one for each shell in q, unless a workload
says otherwise.

Method:

* Every row is measured in a separate process. Failed measurements are listed with the reason.
* Every result is compared before it is timed. The output of a layer is compared with the
  definition, evaluated edge by edge in float64, at some nodes; the gradients with the output, by
  Euler's identity for linear maps; the logits of a network with those in float64, evaluated edge by
  edge, on its field of view around some voxels. *Error* is the largest relative error, beside the
  tolerance. Methods that exceed the tolerance get no figures.
* *Forward* is without gradient; *forward + backward* includes the gradients of features and weights
  (for the segmenter it is a training step). Both are medians, and both build every filter again, as
  every call does: only tables in which no weight enters are kept between calls.
  *First call* is the first forward pass of the process.
* *Peak* is the additional memory since the process began to build graph and layer.
* *Work* is the multiply-adds of a forward pass, as `layer.explain` counts them for that back end.
  *Floor* is the least time for this work and for moving the data, at the rates of a large matrix
  product and of a large copy on the same machine, as a share of the time of the forward pass.
* `dense` builds its whole filter at once, as the authors' code does, without a memory budget. The
  other back ends use their default budget of 256 MB of working arrays.
* C is the time of a forward pass of a plain `Conv3d` with a finished dense filter, in the same run.
  Ratios to C vary less between machines than times do.
"""

COMMAND = """\
`python perf/segmentation.py SCAN --save` measures the command with a scan and the network that
comes with tripq. *Call* is the time from the start of Python to the last file. The rows below it
are the stages of a second call, in which a thread checks every 5 ms what the command does; the
start and the end of Python are not in them. *Network alone* is the computation of the map from the
signal, with graphs and statistics of the norms; the largest difference from the probabilities in
the written map is {:.1g}. The *goal* is three times the time of *network alone* and 5 s, or 15 s if
the mask is computed.
"""


def print_run(run: Run, console: Console) -> None:
    """Show a run as tables on a console."""
    if run.workload == "scaling":
        for axis in axes(run):
            header, *rows = scaling_table(run, axis)
            console.print(rich_table(f"scaling with {axis}", header, rows))
        return
    title = f"{run.workload} ({about(run)}; {run.dtype}, {_threads(run.machine)})"
    header, *rows = table_of(run)
    console.print(rich_table(title, header, rows))
    for line in notes_of(run):
        console.print(line)
    stages = [[label(row.method), stages_of(row)] for row in run.rows if row.stages]
    if stages:
        console.print(rich_table("where the time goes", ("method", "stages"), stages))
    if (line := verdict_on_auto(run)) is not None:
        console.print(line)
    for goal, value, verdict in judged(run.machine.slug, [run]):
        if goal.workload == run.workload and run.dtype == "float32":
            console.print(f"{goal.quantity}: {goal.limit}: {value}, {verdict}", markup=False)


def rich_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table for a console."""
    table = Table(title=title)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


# -- the page ------------------------------------------------------------------------------------


def page(results: dict[str, tuple[Run, ...]]) -> str:
    """docs/performance.md, from the runs of each device by its name."""
    parts = [INTRODUCTION, "## Goals\n", *_goals(results), *_command(segmentation.stored())]
    for slug, runs in sorted(results.items()):
        parts += _device(slug, runs)
    return "\n".join(parts)


def _goals(results: dict[str, tuple[Run, ...]]) -> list[str]:
    parts = []
    for device in dict.fromkeys(goal.device for goal in GOALS):
        slugs = [slug for slug in sorted(results) if device in slug]
        runs = [run for slug in slugs for run in results[slug]]
        title = "A CPU, two cores, float32" if device == "cpu" else "An H200, float32"
        rows = [_goal_row(*judgement) for judgement in judged(device, runs)]
        header = ("workload", "quantity", "goal", "measured", "")
        parts += [f"{title}:\n", _markdown(header, rows)]
    return parts


def _goal_row(goal: Goal, value: str, verdict: str) -> list[str]:
    return [f"`{goal.workload}`", goal.quantity, goal.limit, value, verdict]


def _command(calls: Sequence[segmentation.Call]) -> list[str]:
    """Where the time of `tripq segment` goes."""
    if not calls:
        return []
    header, *rows = segmentation.table(calls)
    difference = max(call.difference for call in calls)
    return ["## `tripq segment`\n", COMMAND.format(difference), _markdown(header, rows)]


def _device(slug: str, runs: Sequence[Run]) -> list[str]:
    parts = [f"## {runs[0].machine.name}\n"]
    for run in sorted(runs, key=_order):
        machine = run.machine
        parts.append(f"### `{run.workload}`, {run.dtype}\n")
        if run.workload in WORKLOADS:
            parts.append(_sentence(WORKLOADS[run.workload].description))
        parts.append(
            f"{run.date}, {_threads(machine)}, medians of {run.repeats}; "
            f"{2e-9 * machine.operations_per_second:,.0f} GFLOP/s in a matrix product, "
            f"{1e-9 * machine.bytes_per_second:,.1f} GB/s in a copy; "
            + ", ".join(f"{name} {version}" for name, version in machine.versions.items())
            + ".\n"
        )
        parts += _scaling(slug, run) if run.workload == "scaling" else _workload(run)
    return parts


def _order(run: Run) -> tuple[int, str]:
    names = [*WORKLOADS, "scaling"]
    return (names.index(run.workload) if run.workload in names else len(names), run.dtype)


def _workload(run: Run) -> list[str]:
    parts = [f"{about(run)}.\n"] if about(run) else []
    header, *rows = table_of(run)
    parts.append(_markdown(header, rows))
    parts += [f"{line}.\n" for line in notes_of(run)]
    if (line := verdict_on_auto(run)) is not None:
        parts.append(_sentence(line))
    stages = [[label(row.method), stages_of(row)] for row in run.rows if row.stages]
    if stages:
        parts.append(_markdown(("method", "where the time goes"), stages))
    return parts


def _scaling(slug: str, run: Run) -> list[str]:
    parts = [f"![Time and memory]({IMAGES}/{plot_name(slug, run)})\n"]
    for axis in axes(run):
        header, *rows = scaling_table(run, axis)
        parts.append(_markdown(header, rows))
    return parts


def plot_name(slug: str, run: Run) -> str:
    """File of the plot of a run on a device."""
    return f"scaling-{slug}.png" if run.dtype == "float32" else f"scaling-{slug}-{run.dtype}.png"


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}.\n"


def _threads(machine: Machine) -> str:
    return f"{machine.threads} threads" if machine.device == "cpu" else "one GPU"


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


# -- the table of the README -----------------------------------------------------------------------

_BEGIN, _END = "<!-- written by perf/profile.py -->\n", "<!-- until here -->\n"

#: The workloads of the README, and beside what tripq does the methods that it is compared with.
_SHOWN = ("block", "block2", "patch", "brain", "segmenter-step")
_COMPARED = ("dense", "conv3d", "e3nn", "conv-network")


def readme(text: str, results: dict[str, tuple[Run, ...]]) -> str:
    """The README with its table of what was measured on a CPU."""
    rows = []
    runs = [run for run in results.get("cpu", ()) if run.dtype == "float32"]
    for run in runs:
        if run.workload in _SHOWN:
            rows += _compared(run)
    header = ("workload", "method", "forward", "forward + backward", "peak memory")
    table = _markdown(header, rows) if rows else "Not measured yet.\n"
    return between(text, _BEGIN, _END, f"\n{table}\n")


def _compared(run: Run) -> Iterator[list[str]]:
    for method in ("auto", *_COMPARED):
        row = run.row(method)
        if row is not None and row.forward is not None:
            name = "**tripq**" if method == "auto" else label(method)
            yield [
                f"`{run.workload}`",
                name,
                seconds(row.forward),
                seconds(row.forward_backward),
                size(row.peak_memory),
            ]


def write_report() -> Path:
    """Write the page, the table of the README and the plots from what is in perf/results/."""
    results = stored()
    PAGE.write_text(page(results))
    README.write_text(readme(README.read_text(), results))
    for slug, runs in results.items():
        for run in runs:
            if run.workload == "scaling":
                from scaling import plot

                plot(run, PAGE.parent / IMAGES / plot_name(slug, run))
    return PAGE


def stored() -> dict[str, tuple[Run, ...]]:
    """The runs in perf/results/, by device."""
    return {file.stem: load(file) for file in sorted(RESULTS.glob("*.json"))}
