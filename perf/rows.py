"""Measurements and their files in `perf/results/`: rows, machines and runs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One method on one workload; None where nothing was measured.

    Attributes
    ----------
    workload, method : str
        See `workloads`.
    axis : str
        What a row of the workload "scaling" varies.
    note : str
        Why there are no figures.
    sizes : dict
        Voxels, directions, neighbours, lmax and the like.
    error, gradient_error, tolerance : float
        Against the definition, relative; see `checks`.
    graph, layer : float
        Seconds to set them up.
    first_call, forward, forward_backward : float
        Seconds: of the first forward pass, of later ones without gradient, and of both passes
        after the weights were touched.
    peak_memory : float
        Bytes, in addition to the memory of the process at its start.
    operations, bytes : float
        Multiply-adds and bytes moved of a forward pass.
    stages : dict
        Seconds of each stage of both passes (of the forward pass where there is no other).
    choice : str
        What ``backend="auto"`` chose.
    """

    workload: str
    method: str
    axis: str = ""
    note: str = ""
    sizes: dict[str, float] = field(default_factory=dict)
    error: float | None = None
    gradient_error: float | None = None
    tolerance: float | None = None
    graph: float | None = None
    layer: float | None = None
    first_call: float | None = None
    forward: float | None = None
    forward_backward: float | None = None
    peak_memory: float | None = None
    operations: float | None = None
    bytes: float | None = None
    stages: dict[str, float] = field(default_factory=dict)
    choice: str = ""

    @property
    def speed(self) -> float | None:
        """Seconds by which methods are compared: of both passes, or of the forward pass alone."""
        return self.forward if self.forward_backward is None else self.forward_backward


@dataclass(frozen=True)
class Machine:
    """Where rows were measured.

    Attributes
    ----------
    device : {"cpu", "cuda"}
        As torch calls it.
    name : str
        Model of the processor or of the GPU.
    threads : int
        Of torch on the CPU.
    versions : dict
        Of the software.
    operations_per_second : float
        Multiply-adds, of a large matrix product in the dtype of the run.
    bytes_per_second : float
        Read and written, of a large copy.
    """

    device: str
    name: str
    threads: int
    versions: dict[str, str]
    operations_per_second: float
    bytes_per_second: float

    @property
    def slug(self) -> str:
        """Name of the file for results on it."""
        if self.device == "cpu":
            return "cpu"
        words = "".join(c if c.isalnum() else " " for c in self.name.lower()).split()
        return "-".join(words)

    def floor(self, row: Row) -> float | None:
        """The least seconds that a forward pass takes here: the roofline."""
        if row.operations is None:
            return None
        moved = 0.0 if row.bytes is None else row.bytes / self.bytes_per_second
        return max(row.operations / self.operations_per_second, moved)


@dataclass(frozen=True)
class Run:
    """One workload on one machine: rows that were measured together and can be compared."""

    workload: str
    dtype: str
    date: str
    repeats: int
    machine: Machine
    rows: tuple[Row, ...]

    def row(self, method: str) -> Row | None:
        """The row of a method, if it is among them."""
        return next((row for row in self.rows if row.method == method), None)


def load(file: Path) -> tuple[Run, ...]:
    """The runs in a file; none if there is no such file."""
    if not file.exists():
        return ()
    return tuple(
        Run(
            **{
                **run,
                "machine": Machine(**run["machine"]),
                "rows": tuple(Row(**row) for row in run["rows"]),
            }
        )
        for run in json.loads(file.read_text())["runs"]
    )


def save(file: Path, runs: Iterable[Run]) -> None:
    """Save runs in a file, replacing earlier ones of the same workload and dtype."""
    kept = {(run.workload, run.dtype): run for run in (*load(file), *runs)}
    file.parent.mkdir(parents=True, exist_ok=True)
    listed = [_without_defaults(kept[key]) for key in sorted(kept)]
    file.write_text(json.dumps({"runs": listed}, indent=1) + "\n")


def _without_defaults(run: Run) -> dict[str, object]:
    """A run as JSON; rows without their empty fields."""
    rows = []
    for row in run.rows:
        values = asdict(row)
        empty = asdict(Row(row.workload, row.method))
        always = {"workload", "method"}
        rows.append(
            {
                f.name: values[f.name]
                for f in fields(Row)
                if f.name in always or values[f.name] != empty[f.name]
            }
        )
    return {**asdict(run), "rows": rows}
