"""The measurements as tables of words, for the console and for the page."""

from __future__ import annotations

from rows import Row, Run
from workloads import LABELS

NOTHING = "—"

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
    if auto is None or auto.choice not in {row.method for row in measured}:
        return None  # a network mixes several, and what was left out cannot be compared
    fastest = min(measured, key=lambda row: row.speed or 0)
    return f"auto chose {auto.choice}; fastest measured was {fastest.method}"


def about(run: Run) -> str:
    """Sizes of a workload."""
    sizes = next((row.sizes for row in run.rows if row.sizes), {})
    words = {"lmax": "l up to {}"}
    return ", ".join(words.get(name, f"{{}} {name}").format(count(n)) for name, n in sizes.items())


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
            figures = [row.note, "", ""]
        else:
            figures = [seconds(row.forward), seconds(row.forward_backward), size(row.peak_memory)]
        lines.append([f"{row.sizes[axis]:,.0f}", label(row.method), *figures])
    return lines
