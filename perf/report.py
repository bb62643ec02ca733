"""The measurements in words: on the console, and as docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from goals import GOALS, Goal, judged
from rich.console import Console
from rich.table import Table
from rows import RESULTS, Machine, Row, Run, load
from workloads import IRREPS, LABELS, WORKLOADS

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
IMAGES = "images"
NOTHING = "—"

INTRODUCTION = f"""\
# Performance

Written by `python perf/profile.py --report` from the files in `perf/results/`, which
`python perf/profile.py --save` makes; every figure is from there. Layers map {IRREPS} to the same,
with three radial functions in p and one for each shell in q, unless a workload says otherwise.

How it is measured:

* Every row has a process of its own. What could not be measured is listed with the reason.
* Nothing counts that was not compared. The output of a layer is held to its definition, evaluated
  edge by edge in float64, at some nodes; the gradients to the output, by Euler's identity for
  linear maps; the logits of a network to its own in float64, its layers evaluated edge by edge, on
  what it sees around some voxels. *Error* is the largest, relative, beside the tolerance: a method
  that exceeds it gets no figures.
* *Forward* is without gradient and with unchanged weights, so that kept filters count; *forward +
  backward* comes after a change of the weights, so that every filter is built anew (for the
  segmenter it is a training step). Both are medians. *First call* is the first forward pass of the
  process.
* *Peak* is the memory over what the process held before it set up graph and layer.
* *Work* is the multiply-adds of a forward pass, as `layer.explain` counts them for that back end.
  *Floor* is the least time for them and for the bytes to move, by the rates of a large matrix
  product and of a large copy on the same machine, as a share of the time of the forward pass.
* C is the forward pass of a plain `Conv3d` with the dense filter given, in the same run: machines
  differ, ratios to it do less.
"""

COLUMNS = (
    "method",
    "error",
    "set-up",
    "first call",
    "forward",
    "forward + backward",
    "peak",
    "work",
    "floor",
)


# -- numbers -------------------------------------------------------------------------------------


def seconds(value: float | None) -> str:
    """A time with its unit."""
    if value is None:
        return NOTHING
    if value < 1:
        return f"{1e3 * value:.3g} ms"
    return f"{value:.3g} s" if value < 1000 else f"{value:,.0f} s"


def size(value: float | None) -> str:
    """Bytes with their unit."""
    if value is None:
        return NOTHING
    return f"{value / 1e6:,.0f} MB" if value < 1e10 else f"{value / 1e9:.1f} GB"


def count(value: float | None) -> str:
    """A large number."""
    if value is None:
        return NOTHING
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:,.0f}"


# -- a run ---------------------------------------------------------------------------------------


def label(method: str) -> str:
    """What a method is called."""
    return LABELS.get(method, method)


def cells(row: Row, run: Run) -> list[str]:
    """A measured row of the table of a run."""
    conv3d = run.row("conv3d")
    unit = conv3d.forward if conv3d else None

    def in_units(value: float | None) -> str:
        ratio = f" = {_ratio(value / unit)} C" if value and unit else ""
        return seconds(value) + ratio

    errors = [e for e in (row.error, row.gradient_error) if e is not None]
    floor = run.machine.floor(row)
    return [
        label(row.method),
        f"{max(errors):.0e} / {row.tolerance:.0e}" if errors else NOTHING,
        seconds((row.graph or 0) + (row.layer or 0)),
        seconds(row.first_call),
        in_units(row.forward),
        in_units(row.forward_backward),
        size(row.peak_memory),
        count(row.operations),
        f"{100 * floor / row.forward:.0f} %" if floor and row.forward else NOTHING,
    ]


def _ratio(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def table_of(run: Run) -> list[list[str]]:
    """Header and a row for every method that has figures."""
    return [list(COLUMNS), *(cells(row, run) for row in run.rows if not row.note)]


def notes_of(run: Run) -> list[str]:
    """A line for every method without figures."""
    return [f"{label(row.method)}: {row.note}" for row in run.rows if row.note]


def verdict_on_auto(run: Run) -> str | None:
    """What `auto` chose, and what was fastest."""
    auto = run.row("auto")
    measured = [
        row for row in run.rows if row.speed and row.method != "auto" and row.method not in LABELS
    ]
    if auto is None or not auto.choice or not measured:
        return None
    fastest = min(measured, key=lambda row: row.speed or 0)
    return f"auto chose {auto.choice}; fastest measured was {fastest.method}"


def about(run: Run) -> str:
    """Sizes of a workload."""
    sizes = next((row.sizes for row in run.rows if row.sizes), {})
    return ", ".join(f"{name} {count(value)}" for name, value in sizes.items())


def print_run(run: Run, console: Console) -> None:
    """Show a run as tables on a console."""
    if run.workload == "scaling":
        for axis in axes(run):
            header, *rows = scaling_table(run, axis)
            console.print(_rich(f"scaling with {axis}", header, rows))
        return
    title = f"{run.workload} ({about(run)}; {run.dtype}, {_threads(run.machine)})"
    header, *rows = table_of(run)
    console.print(_rich(title, header, rows))
    for line in notes_of(run):
        console.print(line)
    stages = [[label(row.method), stages_of(row)] for row in run.rows if row.stages]
    if stages:
        console.print(_rich("where the time goes", ("method", "stages"), stages))
    if (line := verdict_on_auto(run)) is not None:
        console.print(line)
    for goal, value, verdict in judged("cpu" if run.machine.device == "cpu" else "h200", [run]):
        if goal.workload == run.workload and run.dtype == "float32":
            console.print(f"{goal.quantity}: {goal.limit}: {value}, {verdict}")


def _rich(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def stages_of(row: Row) -> str:
    """The longest stages, each with its share of all."""
    total = sum(row.stages.values())
    longest = sorted(row.stages.items(), key=lambda stage: -stage[1])[:6]
    return ", ".join(f"{name} {100 * time / total:.0f} %" for name, time in longest)


# -- scaling -------------------------------------------------------------------------------------


def axes(run: Run) -> list[str]:
    """The sizes that were varied."""
    return list(dict.fromkeys(row.axis for row in run.rows))


def scaling_table(run: Run, axis: str) -> list[list[str]]:
    """Header and rows: forward + backward and peak memory for each point of an axis."""
    rows = [row for row in run.rows if row.axis == axis]
    lines = [[axis, "method", "forward", "forward + backward", "peak"]]
    for row in rows:
        if row.note:
            lines.append([NOTHING, label(row.method), row.note, "", ""])
        else:
            figures = (seconds(row.forward), seconds(row.forward_backward), size(row.peak_memory))
            lines.append([f"{row.sizes[axis]:,.0f}", label(row.method), *figures])
    return lines


# -- the page ------------------------------------------------------------------------------------


def page(results: dict[str, tuple[Run, ...]]) -> str:
    """docs/performance.md, from the runs of each device by its name."""
    parts = [INTRODUCTION, "## Goals\n", *_goals(results)]
    for slug, runs in sorted(results.items()):
        parts += _device(slug, runs)
    return "\n".join(parts)


def _goals(results: dict[str, tuple[Run, ...]]) -> list[str]:
    parts = []
    for device in dict.fromkeys(goal.device for goal in GOALS):
        runs = [run for slug, runs in sorted(results.items()) if device in slug for run in runs]
        title = "A CPU, two cores, float32" if device == "cpu" else "An H200, float32"
        rows = [_goal_row(*judgement) for judgement in judged(device, runs)]
        header = ("workload", "quantity", "goal", "measured", "")
        parts += [f"{title}:\n", _markdown(header, rows)]
    return parts


def _goal_row(goal: Goal, value: str, verdict: str) -> list[str]:
    return [f"`{goal.workload}`", goal.quantity, goal.limit, value, verdict]


def _device(slug: str, runs: Sequence[Run]) -> list[str]:
    parts = [f"## {runs[0].machine.name}\n"]
    for run in sorted(runs, key=_order):
        machine = run.machine
        parts.append(f"### `{run.workload}`, {run.dtype}\n")
        if run.workload in WORKLOADS:
            parts.append(f"{WORKLOADS[run.workload].description}.".capitalize() + "\n")
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
        parts.append(f"{line}.\n".capitalize())
    stages = [[label(row.method), stages_of(row)] for row in run.rows if row.stages]
    if stages:
        parts.append(_markdown(("method", "where the time goes"), stages))
    return parts


def _scaling(slug: str, run: Run) -> list[str]:
    parts = [f"![Time and memory]({IMAGES}/{plot_name(slug)})\n"]
    for axis in axes(run):
        header, *rows = scaling_table(run, axis)
        parts.append(_markdown(header, rows))
    return parts


def plot_name(slug: str) -> str:
    """File of the plot of a device."""
    return f"scaling-{slug}.png"


def _threads(machine: Machine) -> str:
    return f"{machine.threads} threads" if machine.device == "cpu" else "one GPU"


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write_report() -> Path:
    """Write the page and the plots from what is in perf/results/."""
    results = stored()
    PAGE.write_text(page(results))
    for slug, runs in results.items():
        for run in runs:
            if run.workload == "scaling":
                from scaling import plot

                plot(run, PAGE.parent / IMAGES / plot_name(slug))
    return PAGE


def stored() -> dict[str, tuple[Run, ...]]:
    """The runs in perf/results/, by device."""
    return {file.stem: load(file) for file in sorted(RESULTS.glob("*.json"))}
