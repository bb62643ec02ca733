"""Quantiles of FA, MD and noise over the brains of randomised heads, beside those of real scans.

    python examples/compare_heads.py                          # simulated heads
    python examples/compare_heads.py --heads FOLDER --save    # beside real ones, into the docs

FOLDER holds one folder for each source of `paper.real_heads.HEADS`.  Simulated heads have the
default anatomy, voxels of 2 mm and 32 directions at b = 1000 s/mm2.  The real scans calibrated the
default simulation.  ``--save`` writes the table of docs/training.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from dipy.reconst.dti import TensorModel
from numpy.typing import NDArray
from paper.real_heads import RealHead, choose_heads
from rich.console import Console
from study.command import start
from study.gradients import dipy_table
from study.pages import table, write_between

from tripq.scans import DWI
from tripq.simulate import Anatomy, GradientTable, Randomisation, default_anatomy, simulate_scan

PAGE = Path(__file__).parents[1] / "docs" / "training.md"

GRADIENTS = GradientTable.from_shells([1000.0], [32])

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

#: Real scans of whole brains that calibrated the default simulation, and what the page calls them.
REAL = {"tractseg": "TractSeg's example", "nlsam": "NLSAM's example"}

#: Of a tensor fit.
N_PARAMETERS = 7

Rows = NDArray[np.float64]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console()


@dataclass(frozen=True)
class Quantity:
    """What is compared, and how its numbers are written."""

    name: str
    digits: int


QUANTITIES = (Quantity("FA", 2), Quantity("MD, 1e-3 mm2/s", 2), Quantity("S0 / residual", 0))


@app.command()
def main(
    heads: Annotated[
        Path | None, typer.Option(help="Folder with the scans of the healthy heads.")
    ] = None,
    number: Annotated[int, typer.Option(min=1, help="Simulated heads.")] = 17,
    save: Annotated[
        bool, typer.Option("--save", help="Write the table into docs/training.md.")
    ] = False,
) -> None:
    """Print the lowest, median and highest head for every quantile, and the real scans."""
    if save and heads is None:
        raise typer.BadParameter("the table holds the real scans, too.", param_hint="--heads")
    anatomy = default_anatomy(2.0)
    simulated = []
    for seed in range(number):
        simulated.append(quantiles(randomised(anatomy, seed)))
        console.print(f"head {seed + 1} of {number}", markup=False)
    real = {} if heads is None else measure_real(choose_heads(list(REAL)), heads)
    text = compare(simulated, real)
    console.print(text, markup=False)
    if save:
        write_between(PAGE, {"heads": f"Simulated heads: {number}.\n\n{text}"})


def randomised(anatomy: Anatomy, seed: int) -> DWI:
    """Scan of a randomised head."""
    conditions = Randomisation().draw(np.random.default_rng(seed))
    return simulate_scan(anatomy, GRADIENTS, seed, **vars(conditions)).dwi


def measure_real(heads: Sequence[RealHead], folder: Path) -> dict[str, Rows]:
    """`quantiles` of real scans, by what the page calls them."""
    return {REAL[head.name]: quantiles(head.read(folder)) for head in heads}


def quantiles(dwi: DWI) -> Rows:
    """`QUANTILES` of each of `QUANTITIES` over the voxels of a scan, (3, 5)."""
    signal = dwi.signal.astype(np.float64)
    gradients = dipy_table(dwi)
    fit = TensorModel(gradients, fit_method="WLS").fit(signal)
    fitted = fit.predict(gradients, S0=1.0)
    scale = (signal * fitted).sum(axis=1) / np.square(fitted).sum(axis=1)  # S0 of the fit, over b0
    squares = np.square(signal - scale[:, None] * fitted).sum(axis=1)
    residual = np.sqrt(squares / (signal.shape[1] - N_PARAMETERS))
    found = (fit.fa, 1e3 * fit.md, scale / np.maximum(residual, 1e-6))
    return np.array([np.quantile(values, QUANTILES) for values in found])


def compare(simulated: Sequence[Rows], real: dict[str, Rows]) -> str:
    """The table: for each quantile the lowest, median and highest head, and every real scan."""
    columns = {
        "lowest": np.min(simulated, axis=0),
        "median": np.median(simulated, axis=0),
        "highest": np.max(simulated, axis=0),
        **real,
    }
    return table(
        " | ".join(["quantity", *columns]),
        (
            " | ".join([quantity.name, *(_say(rows[i], quantity) for rows in columns.values())])
            for i, quantity in enumerate(QUANTITIES)
        ),
    )


def _say(values: NDArray[np.float64], quantity: Quantity) -> str:
    numbers = (f"{value:.{quantity.digits}f}" for value in values)
    return " ".join(n.removeprefix("0") if quantity.digits else n for n in numbers)


if __name__ == "__main__":
    start(app)
