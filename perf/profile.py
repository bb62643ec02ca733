"""Time and memory of one layer against a dense convolution, each result checked first.

    python perf/profile.py                       # all workloads
    python perf/profile.py --workload block2     # one of them
    python perf/profile.py --save                # and keep the results in perf/results/

Every workload runs in a process of its own, so that its peak memory is its own.  Before anything is
timed, the output is compared with the definition (`layer.kernel`) at some nodes.  The unit of time
is C, one forward pass of a plain Conv3d with the dense filter given, in the same process: machines
differ, the ratio does less.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This file's name hides the standard library's `profile`, which torch imports.
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).parent.resolve()]

import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import tripq
from tripq import PQGraph, PQTensorFieldLayer, Radial
from tripq.simulate import spread_directions

IRREPS = "4x0e + 2x1o + 1x2e"
VOXEL = 2.0  # mm
RESULTS = Path(__file__).parent / "results"
CHECKED_NODES = 4
LARGEST_ERROR = 1e-4  # of float32 sums over thousands of terms, relative to the output


@dataclass(frozen=True)
class Workload:
    """One layer, IRREPS to IRREPS, on a box of voxels.

    Parameters
    ----------
    side : int
        Of the cubic box, in voxels.
    fill : float
        Share of the box in the mask: the whole, or a ball of that volume.
    shells : tuple of int
        Directions on each shell; a shell of 1 is the b0.
    lmax : int, optional
        Cap on l_p and l_q.
    """

    name: str
    side: int
    fill: float
    shells: tuple[int, ...]
    lmax: int | None

    def graph(self) -> PQGraph:
        """The voxels within 2.5 voxels of each other: 81 neighbours."""
        centred = np.indices((self.side,) * 3) - (self.side - 1) / 2
        distance = np.linalg.norm(centred, axis=0)
        mask = distance <= np.quantile(distance, self.fill)
        lengths = [0.0 if n == 1 else float(np.sqrt(1 + i)) for i, n in enumerate(self.shells)]
        q = np.concatenate(
            [
                length * (np.zeros((1, 3)) if n == 1 else spread_directions(n))
                for n, length in zip(self.shells, lengths, strict=True)
            ]
        )
        return PQGraph.from_grid(mask, np.diag([VOXEL] * 3 + [1.0]), q, 2.5 * VOXEL)

    def layer(self) -> PQTensorFieldLayer:
        """Three radial functions in p, one for each shell in q."""
        return PQTensorFieldLayer(
            IRREPS,
            IRREPS,
            2.5 * VOXEL,
            selection="tp1",
            lmax_p=self.lmax,
            lmax_q=self.lmax,
            q_radial=Radial(number=len(self.shells)),
        )


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("block", 12, 1.0, (16, 16), None),
        Workload("block2", 12, 1.0, (16, 16), 2),
        Workload("patch", 16, 0.6, (1, 32, 32), 2),
        Workload("wide", 16, 0.6, (1, 64, 64), 2),
    )
}


@dataclass(frozen=True)
class Result:
    """What was measured; seconds are medians, memory is in MB over the start of the process."""

    workload: str
    voxels: int
    directions: int
    neighbours: int
    error: float
    setup: float
    first_call: float
    forward: float
    forward_backward: float
    peak_memory: float
    conv3d: float | None
    threads: int


def measure(workload: Workload, repeats: int, threads: int) -> Result:
    """Run one workload in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    start_memory = _peak_memory()
    setup, graph = _timed(workload.graph)
    (scan,) = graph.scans
    layer = workload.layer()
    n_directions = scan.q.weights.shape[1]
    x = torch.randn(graph.n_voxels, n_directions, layer.irreps_in.dim, requires_grad=True)
    first_call, y = _timed(lambda: layer(x, graph))
    error = error_at_some_nodes(layer, x, graph, y)
    if not error < LARGEST_ERROR:
        raise RuntimeError(f"{workload.name}: the result is off by {error:.1e}; nothing was timed")
    del y

    def forward() -> None:
        with torch.no_grad():
            layer(x, graph)

    def forward_backward() -> None:
        layer(x, graph).square().mean().backward()

    forward_time = statistics.median(_timed(forward)[0] for _ in range(repeats))
    both_time = statistics.median(_timed(forward_backward)[0] for _ in range(repeats))
    peak = _peak_memory() - start_memory
    return Result(
        workload.name,
        graph.n_voxels,
        n_directions,
        len(scan.edges.offsets),
        error,
        setup,
        first_call,
        forward_time,
        both_time,
        peak,
        time_conv3d(workload.side, n_directions * layer.irreps_in.dim, repeats),
        threads,
    )


@torch.no_grad()
def error_at_some_nodes(
    layer: PQTensorFieldLayer, x: torch.Tensor, graph: PQGraph, y: torch.Tensor
) -> float:
    """Largest error of the output against the definition, relative to the output's size."""
    (scan,) = graph.scans
    generator = torch.Generator().manual_seed(1)
    reference = in_float64(layer)
    worst = 0.0
    for _ in range(CHECKED_NODES):
        voxel = int(torch.randint(len(x), (1,), generator=generator))
        direction = int(torch.randint(y.shape[1], (1,), generator=generator))
        edges = torch.nonzero(scan.edges.dst == voxel)[:, 0]
        kernel = reference.kernel(
            scan.edges.offsets[scan.edges.type[edges]][:, None],
            scan.q.q_out[direction],
            scan.q.q_in[None],
        )
        inputs = x[scan.edges.src[edges]].double()
        expected = torch.einsum("eqoi,q,eqi->o", kernel, scan.q.weights[direction], inputs)
        difference = (y[voxel, direction].double() - expected).norm() / expected.norm()
        worst = max(worst, float(difference))
    return worst


def in_float64(layer: PQTensorFieldLayer) -> PQTensorFieldLayer:
    """A copy of the layer in float64, with the same weights."""
    return deepcopy(layer).double()


@torch.no_grad()
def time_conv3d(side: int, channels: int, repeats: int) -> float | None:
    """One forward pass of a dense 5^3 convolution of the box; None if its filter is over 1 GB."""
    if 4 * channels**2 * 5**3 > 1e9:
        return None
    convolution = torch.nn.Conv3d(channels, channels, 5, padding=2, bias=False)
    volume = torch.randn(1, channels, side, side, side)
    convolution(volume)
    return statistics.median(_timed(lambda: convolution(volume))[0] for _ in range(repeats))


def _timed(function: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    value = function()
    return time.perf_counter() - start, value


def _peak_memory() -> float:
    unit = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def show(results: list[Result]) -> Table:
    """The results as a table."""
    table = Table(title=f"{IRREPS}, in and out, float32, {results[0].threads} threads (CPU)")
    table.add_column("workload")
    names = "voxels", "directions", "error", "forward", "forward + backward", "peak MB", "C"
    for name in names:
        table.add_column(name, justify="right")
    for r in results:
        unit = r.conv3d
        in_units = [
            f"{seconds:.2f} s" + (f" = {seconds / unit:.2f} C" if unit else "")
            for seconds in (r.forward, r.forward_backward)
        ]
        table.add_row(
            r.workload,
            f"{r.voxels:,}",
            str(r.directions),
            f"{r.error:.0e}",
            *in_units,
            f"{r.peak_memory:.0f}",
            f"{unit:.2f} s" if unit else "over 1 GB",
        )
    return table


def markdown(results: list[Result], versions: dict[str, str]) -> str:
    """The results as a page."""
    lines = [
        "# One layer on a CPU",
        "",
        f"Made by `python perf/profile.py --save`. Features {IRREPS} in and out, 81 neighbours,",
        f"float32, {results[0].threads} threads, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ".",
        "C is one forward pass of a plain `Conv3d` with the dense filter given, in the same run.",
        "The error is that of the output against the definition, at some nodes. Memory is the peak",
        "over the start of the process.",
        "",
        "| workload | voxels | directions | error | forward | forward + backward | peak | C |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        unit = r.conv3d
        ratios = [
            f"{seconds / unit:.2f} C" if unit else f"{seconds:.2f} s"
            for seconds in (r.forward, r.forward_backward)
        ]
        lines.append(
            f"| `{r.workload}` | {r.voxels:,} | {r.directions} | {r.error:.0e} | {ratios[0]} | "
            f"{ratios[1]} | {r.peak_memory:.0f} MB | {f'{unit:.2f} s' if unit else 'over 1 GB'} |"
        )
    return "\n".join([*lines, ""])


def main(
    workload: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(WORKLOADS)}.  [default: all]")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls; medians are shown.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = torch.get_num_threads(),
    save: Annotated[
        bool, typer.Option("--save", help="Keep the results in perf/results/.")
    ] = False,
) -> None:
    """Time one layer on a CPU, after checking its result."""
    names = workload or list(WORKLOADS)
    unknown = [name for name in names if name not in WORKLOADS]
    if unknown:
        raise typer.BadParameter(f"unknown workload {unknown[0]!r}: one of {', '.join(WORKLOADS)}")
    console = Console()
    results = []
    with Progress(console=console) as progress:
        task = progress.add_task("measuring", total=len(names))
        for name in names:
            progress.update(task, description=name)
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                results.append(pool.submit(measure, WORKLOADS[name], repeats, threads).result())
            progress.advance(task)
    console.print(show(results))
    if save:
        versions = {
            "tripq": tripq.__version__,
            "torch": torch.__version__,
            "Python": platform.python_version(),
        }
        RESULTS.mkdir(exist_ok=True)
        kept = {"versions": versions, "results": [asdict(result) for result in results]}
        (RESULTS / "cpu.json").write_text(json.dumps(kept, indent=2) + "\n")
        (RESULTS / "cpu.md").write_text(markdown(results, versions))
        console.print(f"kept in {RESULTS}")


if __name__ == "__main__":
    typer.run(main)
