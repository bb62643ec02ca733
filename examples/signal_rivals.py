"""Directions that were not shown, on real heads of other scanners: `signal` and its rivals.

A network is trained on some heads and applied to others.  Each rival is chosen on the heads of the
training too: order and weight of spherical harmonics, for each number of directions.  Results are
kept as JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from dipy.core.gradients import gradient_table
from dipy.reconst.dti import TensorModel
from numpy.typing import NDArray
from paper.real_heads import Heads, choose_heads

from tripq.networks import save_network
from tripq.networks.blocks import graph_radius, predict_blocks
from tripq.scans import B_REFERENCE, DWI
from tripq.scans.noise import noise_level
from tripq.so3.fit import ShellFit, harmonics_at
from tripq.tasks.signal.network import SignalPredictor
from tripq.tasks.signal.task import TRIALS, SignalTask
from tripq.training import Budget, PatchDataModule, Progress, train
from tripq.training.patches import hide

ORDERS = (2, 4, 6, 8)
SMOOTHINGS = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3e-2)

DARK = 0.25
"""Voxels whose noise is more than this, relative to b0, are left out: edges of the mask."""

FLOOR_DIRECTIONS, FLOOR_ORDER = 30, 4
"""The noise floor is the residual of harmonics of this order, for as many directions or more."""

Predict = Callable[[DWI, NDArray[np.float64]], NDArray[np.floating]]


@dataclass(frozen=True)
class Crop:
    """Some slices of a head; a `Scan` of the training."""

    name: str
    dwi: DWI


def crop(name: str, dwi: DWI, voxels: int) -> Crop:
    """Middle slices of a head, so many voxels or a slice more, without those that are dark."""
    inside = dwi.mask.copy()
    inside[dwi.mask] = noise_level(dwi) / dwi.b0 < DARK
    middle = inside.shape[2] // 2
    order = np.argsort(np.abs(np.arange(inside.shape[2]) - middle), kind="stable")
    number = np.searchsorted(np.cumsum(inside.sum(axis=(0, 1))[order]), voxels) + 1
    inside[:, :, order[number:]] = False
    rows = inside[dwi.mask]
    low, high = (found(order[:number]) for found in (np.min, np.max))
    affine = dwi.affine.copy()
    affine[:3, 3] += affine[:3, 2] * low
    return Crop(
        name,
        replace(
            dwi,
            signal=np.minimum(dwi.signal[rows], 2.0),
            b0=dwi.b0[rows],
            mask=inside[:, :, low : high + 1],
            affine=affine,
        ),
    )


def splits(dwi: DWI) -> Iterator[tuple[int, DWI, NDArray[np.float64], NDArray[np.float32]]]:
    """Number of directions shown, the scan with these, and q-vectors and signal of the others."""
    for number, hidden in zip(TRIALS, SignalTask().trials(Crop("", dwi)), strict=False):
        shown, known, q_out = hide(dwi, dwi.signal, hidden)
        assert q_out is not None  # a trial hides some
        yield number, shown, q_out, known


def harmonics(order: int, smoothing: float) -> Predict:
    """Spherical harmonics of one shell with Laplace-Beltrami regularisation."""

    def predict(dwi: DWI, q: NDArray[np.float64]) -> NDArray[np.floating]:
        fit = ShellFit.of(torch.from_numpy(dwi.q[1:]), order, smoothing)
        to = harmonics_at(torch.from_numpy(q), order) @ fit.matrix
        return dwi.signal[:, 1:] @ to.numpy().astype(np.float32).T

    return predict


def tensor(dwi: DWI, q: NDArray[np.float64]) -> NDArray[np.floating]:
    """The diffusion tensor of dipy, by weighted least squares."""
    tables = [
        gradient_table(B_REFERENCE * (x**2).sum(1), bvecs=_unit(x), b0_threshold=10)
        for x in (dwi.q, np.concatenate([np.zeros((1, 3)), q]))
    ]
    fit = TensorModel(tables[0], fit_method="WLS", min_signal=0.01).fit(dwi.signal)
    return np.asarray(fit.predict(tables[1], S0=np.ones(len(dwi.b0))))[:, 1:].clip(0, 2)


def _unit(q: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(q, axis=1, keepdims=True)
    return q / np.where(lengths > 0, lengths, 1)


def mean_squares(predict: Predict, crop: Crop) -> dict[int, float]:
    """Mean square error by the number of directions shown."""
    return {
        number: float(np.mean((predict(shown, q) - known) ** 2))
        for number, shown, q, known in splits(crop.dwi)
    }


def floor(dwi: DWI) -> float | None:
    """Mean square of the noise; None with too few directions."""
    if len(dwi.b_values) - 1 < FLOOR_DIRECTIONS:
        return None
    fit = ShellFit.of(torch.from_numpy(dwi.q[1:]), FLOOR_ORDER, 1e-9)
    matrix = (fit.basis @ fit.matrix).numpy()
    residual = dwi.signal[:, 1:] - dwi.signal[:, 1:] @ matrix.T
    return float(np.mean(residual**2) * len(matrix) / fit.freedom)


def choose_harmonics(crops: Sequence[Crop]) -> dict[int, tuple[int, float]]:
    """Order and smoothing by the number of directions: the least mean logarithm of the error."""
    choices = [(order, smoothing) for order in ORDERS for smoothing in SMOOTHINGS]
    errors = {choice: [mean_squares(harmonics(*choice), c) for c in crops] for choice in choices}

    def size(choice: tuple[int, float], number: int) -> float:
        return float(np.mean([np.log(e[number]) for e in errors[choice] if number in e]))

    numbers = sorted({number for found in errors[choices[0]] for number in found})
    return {n: min(choices, key=lambda choice: size(choice, n)) for n in numbers}


def main(
    heads: Heads,
    out: Annotated[Path, typer.Option(help="Results, JSON; the network lies beside it.")],
    train_on: Annotated[list[str], typer.Option(help="Names of heads; again for more.")],
    test_on: Annotated[list[str], typer.Option(help="Names of heads; again for more.")],
    voxels: Annotated[int, typer.Option(help="Of each head, in its middle slices.")] = 20_000,
    steps: int = 2000,
    seed: int = 0,
) -> None:
    """Train, compare, and keep the results."""
    torch.manual_seed(seed)
    crops = {h.name: crop(h.name, h.read(heads), voxels) for h in choose_heads(train_on + test_on)}
    training, tests = ([crops[name] for name in names] for names in (train_on, test_on))
    chosen = choose_harmonics(training)
    network = SignalPredictor()
    patches = PatchDataModule(
        training, SignalTask(), radius=graph_radius(network), box_size=12, seed=seed
    )
    started = time.process_time()

    def show(progress: Progress) -> None:
        if progress.steps % 20 == 0:
            spent = time.process_time() - started
            print(f"step {progress.steps}, loss {progress.loss:.4f}, {spent:.0f} s", flush=True)

    record = train(network, patches, Budget(steps=steps), learning_rate=4e-3, report=show)
    spent = time.process_time() - started
    network.eval()
    rows = []
    for one in tests:
        least = floor(one.dwi)
        found = {
            "network": mean_squares(lambda dwi, q: predict_blocks(network, dwi, q_out=q), one),
            "tensor": mean_squares(tensor, one),
            "harmonics": {
                n: mean_squares(harmonics(*chosen[n]), one)[n] for n, *_ in splits(one.dwi)
            },
        }
        rows += [
            {
                "head": one.name,
                "directions": number,
                "hidden": len(one.dwi.b_values) - 1 - number,
                "voxels": len(one.dwi.b0),
                "floor": None if least is None else least**0.5,
                **{name: errors[number] ** 0.5 for name, errors in found.items()},
            }
            for number in found["network"]
        ]
        print(*rows, sep="\n", flush=True)
    save_network(network, out.with_suffix(".safetensors"), {"task": "signal"})
    about = {
        "trained_on": train_on,
        "voxels": voxels,
        "steps": record.steps,
        "cpu_seconds": round(spent),
        "harmonics": {n: {"order": o, "smoothing": s} for n, (o, s) in chosen.items()},
        "rows": rows,
    }
    out.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
