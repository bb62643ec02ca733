"""Fibre orientations from 32 and from 12 directions: the task `fibres` and its rivals.

A network, and the same one without neighbours, are trained on simulated heads and applied to others
of an SNR of 20.  The rival is the constrained spherical deconvolution of dipy, with the response of
the voxels that have a single known fibre, and an order chosen on a head of the training for each
number of directions.  Results are kept as JSON and as a table; a run that was stopped resumes.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from dipy.core.gradients import GradientTable as DipyTable
from dipy.core.gradients import gradient_table
from dipy.data import get_sphere
from dipy.reconst.csdeconv import ConstrainedSphericalDeconvModel, response_from_mask_ssst
from numpy.typing import NDArray
from torch import nn

from tripq.networks import load_network, save_network
from tripq.networks.blocks import graph_radius, predict_blocks
from tripq.scans import DWI
from tripq.simulate import Anatomy, default_anatomy
from tripq.so3.fit import harmonics_at
from tripq.so3.mrtrix import ORTHONORMAL
from tripq.tasks.fibres.config import FibreOptimisationConfig
from tripq.tasks.fibres.network import FibreNetwork
from tripq.tasks.fibres.scoring import FibreMap, score_fibres
from tripq.tasks.fibres.simulate import SimulatedFibres, simulate_cohort
from tripq.tasks.fibres.task import FibreTask
from tripq.tasks.signal.task import spread
from tripq.training import Budget, PatchDataModule, Progress, Stopping, train

SLAB = (-80.0, -110.0, 5.0), (80.0, 80.0, 45.0)
"""Part of the heads, in mm: corpus callosum, corona radiata, and what crosses there."""

DIRECTIONS = (32, 12)
ORDERS = (4, 6, 8)
"""Of the deconvolution of dipy."""

SINGLE_FIBRE = 0.55
"""Volume of the largest fibre of voxels for the response; all others are below a tenth of it."""

Predict = Callable[[DWI], NDArray[np.float32]]


def with_directions(scan: SimulatedFibres, number: int) -> SimulatedFibres:
    """A scan with so many of its directions, well spread."""
    kept = np.concatenate([[0], 1 + spread(scan.dwi.q[1:], number)])
    return replace(scan, dwi=scan.dwi.with_samples(kept))


def white_matter(scan: SimulatedFibres) -> SimulatedFibres:
    """The voxels of a scan with known fibres, which are scored."""
    rows = scan.peaks[:, 0].any(axis=-1)
    mask = scan.dwi.mask.copy()
    mask[mask] = rows
    return replace(
        scan, dwi=scan.dwi.with_voxels(mask), fodf=scan.fodf[rows], peaks=scan.peaks[rows]
    )


def dipy_table(dwi: DWI) -> DipyTable:
    """The gradient table of a scan for dipy, in world axes."""
    length = np.linalg.norm(dwi.q, axis=1, keepdims=True)
    return gradient_table(
        dwi.b_values, bvecs=dwi.q / np.where(length > 0, length, 1), b0_threshold=10
    )


def response_of(scan: SimulatedFibres) -> tuple[NDArray[np.float64], float]:
    """Eigenvalues and b0 of the voxels with a single known fibre, by dipy."""
    lengths = np.linalg.norm(scan.peaks, axis=-1)
    single = (lengths[:, 0] > SINGLE_FIBRE) & (lengths[:, 1] < 0.1 * lengths[:, 0])
    data = scan.dwi.signal[single][:, None, None].astype(np.float64)
    mask = np.ones(data.shape[:3], int)
    response, _ = response_from_mask_ssst(dipy_table(scan.dwi), data, mask)
    return response


def deconvolution(response: tuple[NDArray[np.float64], float], order: int) -> Predict:
    """Constrained spherical deconvolution of dipy."""
    sphere = get_sphere(name="repulsion724")
    at = harmonics_at(torch.from_numpy(sphere.vertices), order).numpy() / ORTHONORMAL
    to_coefficients = np.linalg.pinv(at)

    def predict(dwi: DWI) -> NDArray[np.float32]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of more coefficients than directions: it is meant
            model = ConstrainedSphericalDeconvModel(dipy_table(dwi), response, sh_order_max=order)
            values = model.fit(dwi.signal.astype(np.float64)).odf(sphere)
        return (values @ to_coefficients.T).astype(np.float32)

    return predict


def scores(predict: Predict, scans: Sequence[SimulatedFibres]) -> dict[str, float]:
    """Scores over all scans, in the voxels with known fibres."""
    maps = []
    for scan in scans:
        chosen = scan.peaks[:, 0].any(axis=-1)
        fodf = predict(scan.dwi)
        maps.append(FibreMap(scan.name, fodf[chosen], scan.peaks[chosen], scan.fodf[chosen]))
    return dict(score_fibres(maps).rows[-1].columns)


def trained(
    name: str, radius: float, heads: Sequence[SimulatedFibres], out: Path, steps: int, seed: int
) -> nn.Module:
    """The network of a name: that of an earlier run, or a new one."""
    file = out / f"{name}.safetensors"
    if file.is_file():
        return load_network(file)
    torch.manual_seed(seed)
    network = FibreNetwork(p_radius=radius, quadrature="integral" if radius else "sum")
    *training, validation = heads
    patches = PatchDataModule(
        training,
        FibreTask(),
        radius=graph_radius(network),
        box_size=12,
        n_boxes=2,
        seed=seed,
        augment=FibreOptimisationConfig().augment,
        validation=[validation],
    )
    started = time.process_time()

    def show(progress: Progress) -> None:
        if progress.steps % 20 == 0:
            spent = time.process_time() - started
            print(f"{name}: {progress.steps}, loss {progress.loss:.4f}, {spent:.0f} s", flush=True)

    every = max(1, steps // 10)
    train(
        network,
        patches,
        Budget(steps=steps),
        stopping=Stopping(every=every, patience=10, warm_up=max(1, steps // 10), falling=True),
        folder=out / f"{name}-checkpoints",
        learning_rate=4e-3,
        report=show,
    )
    save_network(network.eval(), file, {"task": "fibres", "b_values": "1000"})
    return network


def table_of(rows: Sequence[dict[str, object]]) -> str:
    """The results for a page of documentation."""
    lines = [
        "| method | directions | single fibres | crossings | two peaks found | correlation |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['method']} | {row['directions']} | {row['single_error']:.1f}° | "
        f"{row['crossing_error']:.1f}° | {row['crossings_found']:.2f} | "
        f"{row['angular_correlation']:.3f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def compare(
    out: Path, anatomy: Anatomy, *, heads: int, tests: int, radius: float, steps: int, seed: int
) -> list[dict[str, object]]:
    """Train what is not trained, and score all methods on other heads."""
    out.mkdir(parents=True, exist_ok=True)
    training = list(simulate_cohort(heads, seed + 1, anatomy=anatomy))
    unseen = list(simulate_cohort(tests, seed + 2, anatomy=anatomy, snr=(20.0, 20.0)))
    networks = {
        name: trained(name, reach, training, out, steps, seed)
        for name, reach in (("network", radius), ("voxelwise", 0.0))
    }
    chooser = white_matter(training[0])
    rows: list[dict[str, object]] = []
    for number in DIRECTIONS:
        few = [with_directions(scan, number) for scan in unseen]
        one = with_directions(chooser, number)
        response = response_of(one)
        rivals = {order: deconvolution(response, order) for order in ORDERS}
        errors = {o: scores(rival, [one])["crossing_error"] for o, rival in rivals.items()}
        order = min(errors, key=lambda o: errors[o])
        found = {
            name: scores(lambda dwi, net=network: predict_blocks(net, dwi), few)  # type: ignore[misc]
            for name, network in networks.items()
        }
        found[f"CSD, order {order}"] = scores(rivals[order], [white_matter(scan) for scan in few])
        rows += [{"method": name, "directions": number, **s} for name, s in found.items()]
        print(table_of(rows), flush=True)
    return rows


def main(
    out: Annotated[Path, typer.Option(help="Folder of networks and results.")],
    heads: Annotated[int, typer.Option(min=2, help="Of the training; the last validates.")] = 5,
    tests: Annotated[int, typer.Option(min=1, help="Other heads, which are scored.")] = 2,
    voxel_size: Annotated[float, typer.Option(help="Edge in mm.")] = 2.5,
    steps: Annotated[int, typer.Option(min=1, help="Of each training.")] = 300,
    seed: int = 0,
) -> None:
    """Train, compare, and keep the results."""
    anatomy = default_anatomy(voxel_size).within(*SLAB)
    rows = compare(
        out, anatomy, heads=heads, tests=tests, radius=2 * voxel_size, steps=steps, seed=seed
    )
    about = {"heads": heads, "tests": tests, "voxel_size": voxel_size, "steps": steps, "seed": seed}
    text = json.dumps({**about, "rows": rows}, indent=1)
    (out / "results.json").write_text(text + "\n", encoding="utf-8")
    (out / "table.md").write_text(table_of(rows), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
