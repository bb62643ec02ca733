"""What a network gives on other voxels and other gradient tables, where nothing is interpolated.

    python perf/sampling.py                      # the network that comes with tripq
    python perf/sampling.py NETWORK.safetensors  # another one
    python perf/sampling.py --save               # and the tables of docs/sampling.md

The scene is a formula: 400 Gaussian blobs, each with a diffusion tensor of its own, so that the
signal is known at every place and for every q-vector.  A network is evaluated at the same places of
it on many grids, each with a voxel centre there, and with many gradient tables.  Differences are
root mean squares over the places, relative to the standard deviation of the logit over them.

Besides the given network there are networks with random weights and several radial functions, from
which the defaults were chosen.
"""

from __future__ import annotations

import last_on_path  # isort: split

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from pages import between
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.spatial.transform import Rotation
from torch import nn

from tripq import PQGraph
from tripq.filters.radial import Radial
from tripq.networks.blocks import (
    Contribution,
    Part,
    graph_radius,
    receptive_field,
    statistics_from,
)
from tripq.networks.checkpoint import load_network
from tripq.networks.encoder import VoxelNetwork
from tripq.nn.batch_norm import BatchNorm, LocalStatistics
from tripq.simulate import GradientTable
from tripq.tasks.lesions.command import LesionCommands

RESULTS = Path(__file__).parent / "results" / "laws" / "sampling.json"
PAGE = Path(__file__).parents[1] / "docs" / "sampling.md"

BLOBS = 400
HALF = 30.0  # mm from the middle of the scene to its sides
WIDTHS = (2.0, 4.0)  # mm, standard deviations of blobs
AXIAL, RADIAL_DIFFUSIVITY = (1.0, 2.2), (0.2, 0.8)  # um2/ms, as in tissue
FLUID, FLUID_SHARE = 0.9, 0.02  # between the blobs
PLACES_WITHIN = 12.0  # mm of the middle
AROUND = 4.0  # mm of a place

_TURN = Rotation.from_euler("z", 45, degrees=True).as_matrix()
_ANY = Rotation.random(random_state=3).as_matrix()

#: Linear parts of affines in mm; the first is what the others are compared with.
GRIDS: Mapping[str, NDArray[np.float64]] = {
    "2 mm": 2.0 * np.eye(3),
    "2 mm, turned by 45 degrees": 2.0 * _TURN,
    "2 mm, turned at random": 2.0 * _ANY,
    "1.5 mm": 1.5 * np.eye(3),
    "1.8 mm": 1.8 * np.eye(3),
    "2.5 mm": 2.5 * np.eye(3),
    "3 mm": 3.0 * np.eye(3),
    "1.75 x 1.75 x 3 mm": np.diag([1.75, 1.75, 3.0]),
    "2 x 2 x 4 mm": np.diag([2.0, 2.0, 4.0]),
    "2 x 2 x 4 mm, turned at random": _ANY @ np.diag([2.0, 2.0, 4.0]),
}

#: Radius in mm, radial functions and quadrature of the networks with random weights.
CHOICES: Mapping[str, tuple[float, Radial, str]] = {
    "sum, 3.6 mm, 3 gaussian": (3.6, Radial("gaussian", 3), "sum"),
    "integral, 3.6 mm, 3 gaussian": (3.6, Radial("gaussian", 3), "integral"),
    "integral, 3.0 mm, 2 cosine": (3.0, Radial("cosine", 2), "integral"),
    "integral, 3.6 mm, 2 cosine": (3.6, Radial("cosine", 2), "integral"),
    "integral, 3.6 mm, 2 smooth_finite": (3.6, Radial("smooth_finite", 2), "integral"),
    "integral, 4.4 mm, 2 cosine": (4.4, Radial("cosine", 2), "integral"),
}


class Scene:
    """A diffusion signal that is known everywhere.

    Parameters
    ----------
    seed : int
        Of the blobs.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.centres = rng.uniform(-HALF, HALF, (BLOBS, 3))
        self.widths = rng.uniform(*WIDTHS, BLOBS)
        self.sizes = rng.uniform(0.5, 1.5, BLOBS)
        frames = Rotation.random(BLOBS, random_state=seed + 1).as_matrix()
        values = np.stack([rng.uniform(*r, BLOBS) for r in (AXIAL, *[RADIAL_DIFFUSIVITY] * 2)])
        self.tensors = np.einsum("nij,jn,nkj->nik", frames, values, frames)

    def signal(self, p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
        """Signal over b0 at places (N, 3) in mm and q-vectors (Q, 3): (N, Q)."""
        squares = ((p[:, None] - self.centres) ** 2).sum(axis=-1)
        amount = self.sizes * np.exp(-squares / (2 * self.widths**2))
        of_blobs = np.exp(-np.einsum("qi,nij,qj->nq", q, self.tensors, q))
        of_fluid = np.exp(-FLUID * (q**2).sum(axis=1))
        total = amount.sum(axis=1, keepdims=True) + FLUID_SHARE
        return (amount @ of_blobs + FLUID_SHARE * of_fluid) / total


def q_vectors(table: GradientTable) -> NDArray[np.float64]:
    """The q-vectors of a table with one b0, |q| = sqrt(b / 1000)."""
    directions = np.sqrt(table.b_values / 1000)[:, None] * table.directions
    return np.concatenate([np.zeros((1, 3)), directions[~table.b0]])


def tables() -> dict[str, NDArray[np.float64]]:
    """Gradient tables; the first is what the others are compared with."""
    whole = q_vectors(GradientTable.from_shells([1000.0], [64]))
    return {
        "64 directions": whole,
        "each listed twice": np.concatenate([whole, whole[1:]]),
        "one dropped": np.delete(whole, 17, axis=0),
        "a second b0": np.concatenate([whole[:1], whole]),
        "half of them twice": np.concatenate([whole, whole[1:33]]),
        "64 others": whole @ _ANY.T,
        "32 directions": q_vectors(GradientTable.from_shells([1000.0], [32])),
        "12 directions": q_vectors(GradientTable.from_shells([1000.0], [12])),
    }


@torch.no_grad()
def logits(
    network: nn.Module,
    scene: Scene,
    places: NDArray[np.float64],
    linear: NDArray[np.float64],
    q: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The output (places, ...) in the voxel at each place.

    The statistics of instance norms are averages over the voxels within `AROUND` of all places: a
    window around each place would be as large as a head.
    """
    affine = np.eye(4)
    affine[:3, :3] = linear
    around = np.ceil(AROUND / np.linalg.norm(linear, axis=0)).astype(int)
    reach = receptive_field(network, affine) + around
    shape = 2 * reach + 1
    steps = np.indices(shape).reshape(3, -1).T - reach
    graph = PQGraph.from_grid(np.ones(shape), affine, q, graph_radius(network))
    middle = len(steps) // 2
    near = torch.from_numpy(np.linalg.norm(steps @ linear.T, axis=1) <= AROUND)
    signals = [scene.signal(place + steps @ linear.T, q) for place in places]
    parts = [Part(torch.from_numpy(signal).float(), graph, near) for signal in signals]
    with statistics_from(network, lambda: parts, _average):
        found = [network(part.signal, graph)[middle].double().numpy() for part in parts]
    return np.array(found)


def _average(norm: BatchNorm, found: Sequence[Contribution]) -> LocalStatistics:
    """The same statistics in every voxel."""
    sums = torch.cat([part.sums for part in found]).sum(dim=0, keepdim=True)
    statistics = norm.statistics(sums / torch.cat([part.numbers for part in found]).sum())
    return lambda graph: statistics.expand(graph.n_voxels, -1)


@dataclass(frozen=True)
class Row:
    """Differences from the first grid and the first table, relative to the spread."""

    network: str
    grids: dict[str, float]
    tables: dict[str, float]


def measure(
    name: str, network: nn.Module, scene: Scene, places: NDArray[np.float64], *, of_q: bool
) -> Row:
    """The differences of one network."""
    q = q_vectors(GradientTable.from_shells([1000.0], [32]))
    by_grid = {
        grid: logits(network, scene, places, linear, q)
        for grid, linear in track(GRIDS.items(), name, console=Console(stderr=True))
    }
    by_table = {
        table: logits(network, scene, places, GRIDS["2 mm"], vectors)
        for table, vectors in (tables() if of_q else {}).items()
    }
    return Row(name, _differences(by_grid), _differences(by_table))


def _differences(found: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    if not found:
        return {}
    reference, *_ = found.values()
    variance = reference.var(axis=0).mean()
    return {
        name: float(np.sqrt(((values - reference) ** 2).mean() / variance))
        for name, values in list(found.items())[1:]
    }


def random_network(choice: tuple[float, Radial, str]) -> nn.Module:
    """A network of two layers with neighbours, its weights drawn at random."""
    radius, radial, quadrature = choice
    torch.manual_seed(0)
    network = VoxelNetwork(
        "8x0e",
        q_features="8x0e + 4x2e + 2x4e",
        p_features="8x0e + 2x1o + 4x2e",
        n_p_layers=1,
        normalize="none",
        p_radius=radius,
        p_radial=radial,
        quadrature=quadrature,  # type: ignore[arg-type]  # one of its two
    )
    return network.eval()


# -- what is shown -------------------------------------------------------------------------------


def show(rows: list[Row], console: Console) -> None:
    """Print the tables."""
    for title, part in (("grids", "grids"), ("gradient tables", "tables")):
        table = Table(title=f"other {title}: difference over the spread")
        shown = [row for row in rows if getattr(row, part)]
        table.add_column("")
        for row in shown:
            table.add_column(row.network, justify="right")
        for name in getattr(shown[0], part):
            table.add_row(name, *(_number(getattr(row, part)[name]) for row in shown))
        console.print(table)


def _number(value: float) -> str:
    return f"{value:.1e}" if value < 5e-4 else f"{value:.3f}" if value < 1 else f"{value:.1f}"


def write_page(rows: list[Row], page: Path) -> None:
    """Put the tables in place of those of the page."""
    text = page.read_text(encoding="utf-8")
    for part in ("grids", "tables"):
        shown = [row for row in rows if getattr(row, part)]
        lines = [
            "| | " + " | ".join(row.network for row in shown) + " |",
            "| --- |" + " --- |" * len(shown),
        ]
        lines += [
            f"| {name} | " + " | ".join(_number(getattr(row, part)[name]) for row in shown) + " |"
            for name in getattr(shown[0], part)
        ]
        begin, end = f"<!-- {part} -->", f"<!-- end of {part} -->"
        text = between(text, begin, end, "\n".join(["", *lines, ""]))
    page.write_text(text, encoding="utf-8")


def main(
    network: Annotated[
        Path | None, typer.Argument(help="A .safetensors.  [default: that of tripq]")
    ] = None,
    places: Annotated[int, typer.Option(min=2, help="Where it is evaluated.")] = 24,
    seed: Annotated[int, typer.Option(help="Of the scene and the places.")] = 0,
    choices: Annotated[bool, typer.Option(help="Networks with random weights, too.")] = True,
    save: Annotated[bool, typer.Option("--save", help="Write results and page.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch.")] = None,
) -> None:
    """Compare what a network gives on many grids and with many gradient tables."""
    if threads is not None:
        torch.set_num_threads(threads)
    scene = Scene(seed)
    drawn = np.random.default_rng(seed).uniform(-PLACES_WITHIN, PLACES_WITHIN, (places, 3))
    path = LesionCommands().included_weights() if network is None else network
    trained = load_network(path)
    rows = [measure(path.stem, trained, scene, drawn, of_q=True)]
    if choices:
        rows += [
            measure(name, random_network(choice), scene, drawn, of_q=False)
            for name, choice in CHOICES.items()
        ]
    show(rows, Console(width=None if sys.stdout.isatty() else 160))
    if save:
        settings = {"places": places, "seed": seed, "network": path.name}
        content = {"settings": settings, "rows": [asdict(row) for row in rows]}
        RESULTS.write_text(json.dumps(content, indent=1) + "\n")
        write_page(rows, PAGE)


if __name__ == "__main__":
    typer.run(main)
