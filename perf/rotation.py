"""What is left of equivariance once a scan is resampled: heads turned by any angle.

    python perf/rotation.py                  # a table
    python perf/rotation.py --out results    # and rotation.json and rotation.png in a folder

A head that is turned together with its grid and its table has the same map, by any angle and but
for rounding.  Turned on the grid of the scanner, its image has to be interpolated, and so has the
map that it is compared with.  With T the turning by interpolation, x the scan and S the
segmentation, the columns are the differences of

* turned grid: S(x on a turned grid) and S(x), where nothing is interpolated;
* turned scan: S(T x) and T S(x), what equivariance is about, directions turned along;
* scan there and back: S(T^-1 T x) and S(x), which knows no rotation, but two interpolations;
* map there and back: T^-1 T S(x) and S(x), likewise;
* shifted scan: S(D x) and D S(x) with shifts D by parts of a voxel in the place of T.  The network
  commutes with shifts as any convolution does, so that this is interpolation alone;
* table unchanged: S(T x) with the directions as they were, and T S(x): what a network that is not
  equivariant might do.

Each is the root mean square over the voxels in a ball, those aside that see its border, over the
standard deviation of the map there.

What is left beside interpolation: a filter with a radius of about two voxels is sampled at
neighbours that do not turn.  Of finer voxels it has more, and all differences must fall to zero.
``--fineness 2`` halves the voxels and interpolates the same head on them.  The weights of layers
with neighbours that are sums, not integrals, are divided by 8, so that they stay what they were.
"""

from __future__ import annotations

import last_on_path  # isort: split

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import matplotlib as mpl
import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.ndimage import distance_transform_edt, map_coordinates
from scipy.spatial.transform import Rotation

from tripq.networks.checkpoint import load_network
from tripq.nn.layer import PQTensorFieldLayer
from tripq.scans import DWI
from tripq.simulate import Anatomy, GradientTable, Grid, default_anatomy
from tripq.tasks.lesions.command import LesionCommands
from tripq.tasks.lesions.segmentation import segment
from tripq.tasks.lesions.simulate import simulate_subject

VOXEL = 2.0  # mm, of the weights that come with tripq
MARGIN = 4  # voxels around the ball, which interpolation looks into
LESIONS = ((4, 3, 0, 4), (-5, -2, 3, 3), (1, -6, -4, 3), (14, 4, -6, 5), (-9, 12, 5, 4))
"""Place from the middle of the ball, and radius, in mm."""
SHIFTS = ((0.5, 0.0, 0.0), (0.5, 0.5, 0.5), (0.25, 0.5, 0.75), (0.3, 0.1, 0.4))  # voxels

TOO_LARGE = "the ball reaches out of the brain: a smaller radius"

Volume = NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """Relative differences at one angle, means over the axes."""

    degrees: float
    turned_grid: float
    turned_scan: float
    scan_there_and_back: float
    map_there_and_back: float
    table_unchanged: float


COLUMNS = tuple(field.name for field in fields(Row))[1:]


@dataclass(frozen=True)
class Result:
    """What was measured, and with what.

    Attributes
    ----------
    settings : dict
        Of the command.
    voxels : int
        Over which the means are.
    spread : float
        Standard deviation of the map there.
    shifted_scan : float
        Relative difference, mean over `SHIFTS`.
    rows : tuple of Row
        By ascending angle.
    """

    settings: dict[str, float]
    voxels: int
    spread: float
    shifted_scan: float
    rows: tuple[Row, ...]


class Head:
    """A simulated head, and the ball in its middle that is segmented.

    Parameters
    ----------
    radius : float
        Of the ball in mm.
    directions : int
        On a shell of b = 1000 s/mm2.
    order : {1, 3}
        Of the interpolation: linear, or by cubic splines.
    seed : int
        Of the head.
    snr : float
        Signal-to-noise ratio; infinite for no noise.
    fineness : int
        Edge of the voxels that the network is for, over that of those that are used.
    """

    def __init__(
        self,
        radius: float,
        directions: int,
        order: int,
        seed: int,
        snr: float = np.inf,
        fineness: int = 1,
    ) -> None:
        self.network = load_network(LesionCommands().included_weights())
        layers = [m for m in self.network.modules() if isinstance(m, PQTensorFieldLayer)]
        with torch.no_grad():
            for layer in layers:
                if layer.p_radius > 0 and layer.quadrature == "sum":
                    for filter in layer.filters:
                        filter.weight.div_(fineness**3)
        self.order = order
        # What sees the border of the ball, or is interpolated from what does, is not compared.
        seen = sum(layer.p_radius for layer in layers) + 2 * VOXEL
        if radius <= seen:
            raise ValueError(f"every voxel sees the border of the ball: a radius above {seen:g} mm")
        anatomy = default_anatomy(VOXEL)
        half = int(np.ceil(radius / VOXEL)) + MARGIN
        # The middle is the place deepest in the brain, which has room for the largest ball.
        depth = distance_transform_edt(np.pad(anatomy.mask, 1))[1:-1, 1:-1, 1:-1]
        deepest = np.unravel_index(depth.argmax(), depth.shape)
        if radius >= VOXEL * depth.max():
            raise ValueError(TOO_LARGE)
        affine = np.diag([VOXEL, VOXEL, VOXEL, 1.0])
        affine[:3, 3] = apply_affine(anatomy.affine, deepest) - VOXEL * half
        self.table = GradientTable.from_shells([1000.0], [directions])
        grid = Grid(3 * (2 * half + 1,), affine)
        scan = simulate_subject(
            anatomy,
            self.table,
            seed,
            snr=snr,
            grid=grid,
            lesion_coverage=_lesions(anatomy, affine[:3, 3] + VOXEL * half),
        ).dwi
        image = scan.volume(scan.signal * scan.b0[:, None])

        self.voxel = VOXEL / fineness
        self.affine = affine
        self.affine[:3, :3] /= fineness  # the corner stays where it is
        half *= fineness
        shape = 3 * (2 * half + 1,)
        self.offsets = np.indices(shape).reshape(3, -1) - half  # from the middle, in voxels
        self.image = self._read(image, self.offsets / fineness, shape)
        distance = self.voxel * np.linalg.norm(self.offsets, axis=0).reshape(shape)
        self.ball = distance <= radius
        if not (self.image[self.ball][:, 0] > 0).all():
            raise ValueError(TOO_LARGE)
        self.inner = distance <= radius - seen

    def segment(
        self, image: Volume, rotation: NDArray | None = None, *, grid: bool = False
    ) -> Volume:
        """The map of the ball, zero elsewhere, with the table, or the grid too, turned."""
        table, affine = self.table, self.affine
        if rotation is not None:
            table = table.rotated(rotation)
        if grid:
            affine = affine.copy()
            affine[:3, :3] = rotation @ affine[:3, :3]
        # As the reader does: what interpolation makes negative is no intensity.
        intensity = np.maximum(image[self.ball], 0)
        b0 = intensity[:, 0]
        length = np.sqrt(table.b_values / 1000)[:, None]
        dwi = DWI(
            signal=intensity / b0[:, None],
            b_values=table.b_values,
            q=length * table.directions,
            mask=self.ball,
            affine=affine,
            b0=b0,
        )
        return dwi.volume(segment(self.network, dwi))

    def turned(self, volume: Volume, rotation: NDArray) -> Volume:
        """A volume (X, Y, Z, ...) turned about the centre of the grid, by interpolation."""
        return self._read(volume, rotation.T @ self.offsets)

    def shifted(self, volume: Volume, shift: Sequence[float]) -> Volume:
        """A volume (X, Y, Z, ...) moved by parts of a voxel, by interpolation."""
        return self._read(volume, self.offsets - np.array(shift)[:, None])

    def _read(
        self, volume: Volume, offsets: NDArray, shape: tuple[int, ...] | None = None
    ) -> Volume:
        """A volume (X, Y, Z, ...) at offsets (3, N) from its middle, in a shape of N voxels."""
        at = offsets + (len(volume) - 1) / 2
        flat = volume.reshape(*volume.shape[:3], -1)
        # Beyond the grid lies nothing that the ball could see.
        read = [
            map_coordinates(part, at, order=self.order, mode="nearest", output=np.float32)
            for part in np.moveaxis(flat, -1, 0)
        ]
        shape = shape or volume.shape[:3]
        return np.stack(read, axis=-1).reshape(*shape, *volume.shape[3:])

    def difference(self, found: Volume, expected: Volume) -> float:
        """Root mean square in the inner ball, over the standard deviation of the second map."""
        error = (found - expected)[self.inner]
        return float(np.sqrt(np.mean(error**2)) / expected[self.inner].std())


def _lesions(anatomy: Anatomy, middle: NDArray) -> Volume:
    """Balls near the middle and further out, so that there is something to find anywhere."""
    points = anatomy.grid.points()
    coverage = np.zeros(len(points), dtype=np.float32)
    for *place, radius in LESIONS:
        distance = np.linalg.norm(points - middle - place, axis=1)
        np.maximum(coverage, np.clip(0.5 + (radius - distance) / VOXEL, 0, 1), out=coverage)
    return coverage.reshape(anatomy.mask.shape)


def measure(
    angles: Sequence[float],
    *,
    axes: int = 2,
    radius: float = 40.0,
    directions: int = 16,
    order: int = 3,
    snr: float = np.inf,
    seed: int = 0,
    fineness: int = 1,
) -> Result:
    """Turn a head by each angle about some axes, and compare the maps.

    Parameters
    ----------
    angles : sequence of float
        In degrees.
    axes : int
        How many, drawn at random.
    radius, directions, order, snr, seed, fineness
        See `Head`.
    """
    head = Head(radius, directions, order, seed, snr, fineness)
    image, original = head.image, head.segment(head.image)
    shifted = [
        head.difference(head.segment(head.shifted(image, d)), head.shifted(original, d))
        for d in SHIFTS
    ]
    drawn = np.random.default_rng(seed).standard_normal((axes, 3))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    rows = []
    for degrees in track(sorted(angles), "turning", console=Console(stderr=True)):
        found = []
        for axis in drawn:
            rotation = Rotation.from_rotvec(np.radians(degrees) * axis).as_matrix()
            scan, wanted = head.turned(image, rotation), head.turned(original, rotation)
            found.append(
                (
                    head.difference(head.segment(image, rotation, grid=True), original),
                    head.difference(head.segment(scan, rotation), wanted),
                    head.difference(head.segment(head.turned(scan, rotation.T)), original),
                    head.difference(head.turned(wanted, rotation.T), original),
                    head.difference(head.segment(scan), wanted),
                )
            )
        rows.append(Row(degrees, *np.mean(found, axis=0).tolist()))
    settings = {
        "axes": axes,
        "radius": radius,
        "directions": directions,
        "order": order,
        "snr": snr,
        "seed": seed,
        "fineness": fineness,
    }
    inner = original[head.inner]
    return Result(settings, inner.size, float(inner.std()), float(np.mean(shifted)), tuple(rows))


# -- what is shown -------------------------------------------------------------------------------


def show(result: Result, console: Console) -> None:
    """Print the table."""
    table = Table(
        title=f"{result.voxels:,} voxels with a spread of {result.spread:.3f}; "
        f"shifted scan {percent(result.shifted_scan)}"
    )
    for name in ("degrees", *COLUMNS):
        table.add_column(name.replace("_", " "), justify="right")
    for row in result.rows:
        table.add_row(f"{row.degrees:g}", *(percent(getattr(row, name)) for name in COLUMNS))
    console.print(table)


def percent(share: float) -> str:
    """A share in words."""
    return f"{100 * share:.1f} %" if share > 1e-4 else f"{100 * share:.0e} %"


def write(result: Result, folder: Path) -> None:
    """Write ``rotation.json`` and ``rotation.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {k: v if np.isfinite(v) else "inf" for k, v in result.settings.items()}
    content = {**asdict(result), "settings": settings}
    (folder / "rotation.json").write_text(json.dumps(content, indent=1) + "\n")
    colors = ("#0072b2", "#e69f00", "#56b4e9", "#d55e00")
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(5.6, 3.4), layout="constrained")
        panel = figure.subplots()
        degrees = [row.degrees for row in result.rows]
        # The first column is too small to be seen.
        for name, color in zip(COLUMNS[1:], colors, strict=True):
            values = [100 * getattr(row, name) for row in result.rows]
            label = name.replace("_", " ")
            panel.plot(degrees, values, "o-", color=color, label=label, markersize=3)
        panel.axhline(100 * result.shifted_scan, color="0.4", linestyle="--", label="shifted scan")
        panel.set_xlabel("angle, degrees")
        panel.set_ylabel("difference of the maps, % of their spread")
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend(frameon=False, loc="upper left")
        figure.savefig(folder / "rotation.png", dpi=150, metadata={"Software": None})


def main(
    angle: Annotated[
        list[float] | None, typer.Option(help="Degrees. From 5 to 180, if not given.")
    ] = None,
    axes: Annotated[int, typer.Option(min=1, help="Random axes for each angle.")] = 2,
    radius: Annotated[float, typer.Option(help="mm of the head that are segmented.")] = 40.0,
    directions: Annotated[int, typer.Option(min=6, help="At b = 1000 s/mm2.")] = 16,
    interpolation: Annotated[Literal["linear", "cubic"], typer.Option()] = "cubic",
    snr: Annotated[float, typer.Option(help="inf for no noise.")] = np.inf,
    seed: Annotated[int, typer.Option(help="Of the head and the axes.")] = 0,
    fineness: Annotated[int, typer.Option(min=1, help="How much finer the voxels are.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for rotation.json and rotation.png.")
    ] = None,
) -> None:
    """Turn a simulated head by any angle, and compare its map with the turned map."""
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        result = measure(
            angle or (5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 90.0, 135.0, 180.0),
            axes=axes,
            radius=radius,
            directions=directions,
            order=3 if interpolation == "cubic" else 1,
            snr=snr,
            seed=seed,
            fineness=fineness,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    show(result, Console(width=None if sys.stdout.isatty() else 140))
    if out is not None:
        write(result, out)


if __name__ == "__main__":
    typer.run(main)
