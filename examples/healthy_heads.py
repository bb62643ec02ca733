"""What a lesion network marks in real heads of people without known lesions: false positives.

    python examples/healthy_heads.py --heads FOLDER                  # the network of tripq
    python examples/healthy_heads.py --heads FOLDER --weights FILE   # another one
    python examples/healthy_heads.py --heads FOLDER --save           # and the table of a page

FOLDER holds one folder for each source of `paper.real_heads.HEADS`.  Every scan is segmented on
its own voxels, and again after resampling to 2 mm; ``--pictures FOLDER`` writes, for each scan, the
slice with most of what was marked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from matplotlib.figure import Figure
from paper.command import start
from paper.real_heads import Heads, Only, RealHead, choose_heads
from rich.console import Console

from tripq.scans import DWI
from tripq.tasks.lesions.listing import find_candidates
from tripq.tasks.lesions.segmentation import Model, Segmentation, load_model, segment_scan
from tripq.tasks.lesions.weights import default_weights

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "real-heads.md"
RESULTS = ROOT / "perf" / "results" / "laws" / "healthy_heads.json"

#: Edge in mm of the voxels of the second map.
RESAMPLED = 2.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console()


@dataclass(frozen=True)
class Row:
    """What was marked in one scan.

    Parameters
    ----------
    head, person, scanner : str
        See `RealHead`.
    voxels : str
        Their edges in mm.
    shells : str
        Directions of each b-value.
    spots, spots_resampled : int
        Lesion candidates, on the scan's voxels and on those of 2 mm.
    ml, ml_resampled : float
        Their volume.
    correlation : float
        Of both maps of the logit.
    """

    head: str
    person: str
    scanner: str
    voxels: str
    shells: str
    spots: int
    ml: float
    spots_resampled: int
    ml_resampled: float
    correlation: float


@app.command()
def main(
    heads: Heads,
    weights: Annotated[
        Path | None, typer.Option(help="A .safetensors.  [default: that of tripq]")
    ] = None,
    only: Only = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder for a picture of each.")] = None,
    save: Annotated[bool, typer.Option("--save", help="Write results and page.")] = False,
) -> None:
    """Segment the healthy heads, and list what was marked."""
    chosen = choose_heads(only)
    model = load_model(weights or default_weights())
    rows = []
    for head in chosen:
        rows.append(measure(head, heads, model, pictures))
        console.print(
            " | ".join(str(value) for value in asdict(rows[-1]).values()),
            markup=False,
            soft_wrap=True,
        )
    worst = max(row.ml for row in rows)
    console.print(f"median {np.median([row.ml for row in rows]):.2f} ml, largest {worst:.2f} ml")
    if save:
        settings = {
            "network": model.path.name,
            "threshold": model.threshold,
            "min_volume_ml": model.min_volume,
        }
        content = {"settings": settings, "rows": [asdict(row) for row in rows]}
        RESULTS.write_text(json.dumps(content, indent=1) + "\n")
        write_page(rows, PAGE)


def measure(head: RealHead, folder: Path, model: Model, pictures: Path | None) -> Row:
    """Segment one scan on its voxels and on others."""
    dwi = head.read(folder)
    whole = segment_scan(model, dwi)
    resampled = segment_scan(model, dwi, voxel_size=RESAMPLED)
    found, again = (
        find_candidates(dwi, result.probability, model.threshold, model.min_volume)
        for result in (whole, resampled)
    )
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        draw(dwi, whole, model).savefig(pictures / f"{head.name}.png", dpi=80)
    return Row(
        head.name,
        head.person,
        head.scanner,
        " x ".join(f"{edge:.3g}" for edge in dwi.voxel_size),
        ", ".join(f"{len(shell)} at {shell.b_value:.0f}" for shell in dwi.shells),
        len(found),
        round(sum(spot.volume_ml for spot in found), 3),
        len(again),
        round(sum(spot.volume_ml for spot in again), 3),
        round(float(np.corrcoef(logit(whole), logit(resampled))[0, 1]), 3),
    )


def logit(found: Segmentation) -> np.ndarray:
    """The logit of each voxel, bounded where a probability is 0 or 1 to rounding."""
    p = np.clip(found.probability.astype(np.float64), 1e-7, 1 - 1e-7)
    return np.log(p / (1 - p))


def draw(dwi: DWI, found: Segmentation, model: Model) -> Figure:
    """b0, the mean of the weighted volumes and the map, in the slice with most that was marked."""
    marked = dwi.volume(found.marked(model.threshold, model.min_volume))
    z = int(marked.sum(axis=(0, 1)).argmax()) if marked.any() else dwi.mask.shape[2] // 2
    weighted = dwi.signal[:, 1:].mean(axis=1)
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, title, values in zip(
        panels,
        ("b0", "mean of the weighted volumes / b0", "probability"),
        (dwi.b0, weighted, found.probability),
        strict=True,
    ):
        image = dwi.volume(values)[:, :, z].T
        axes.imshow(
            image,
            cmap="gray",
            origin="lower",
            vmax=1.0 if title == "probability" else np.quantile(values, 0.98),
            aspect=dwi.voxel_size[1] / dwi.voxel_size[0],
        )
        if marked.any():
            axes.contour(marked[:, :, z].T, levels=[0.5], colors="tab:red", linewidths=0.8)
        axes.set_title(title)
        axes.set_axis_off()
    return figure


def write_page(rows: Sequence[Row], page: Path) -> None:
    """Put the table in place of that of the page."""
    heads = "scan | scanner | voxels, mm | directions | spots | ml | spots, 2 mm | ml, 2 mm | r"
    lines = [f"| {heads} |", "|" + " --- |" * 9]
    lines += [
        f"| {row.head} | {row.scanner} | {row.voxels} | {row.shells} | {row.spots} | "
        f"{row.ml:.2f} | {row.spots_resampled} | {row.ml_resampled:.2f} | {row.correlation:.2f} |"
        for row in rows
    ]
    before, begin, rest = page.read_text(encoding="utf-8").partition("<!-- heads -->")
    _, end, after = rest.partition("<!-- end of heads -->")
    page.write_text("\n".join([before + begin, *lines, end + after]), encoding="utf-8")


if __name__ == "__main__":
    start(app)
