"""Directions that were not shown, and denoising, on real heads of other scanners, with rivals.

A network is trained on some heads and applied to others.  Every rival is tuned on the heads of the
training, too:

* spherical harmonics with Laplace-Beltrami regularisation: order and weight, for each number of
  directions;
* the diffusion tensor of dipy, which has nothing to tune;
* a Gaussian process with the covariances of Andersson and Sotiropoulos (NeuroImage 122:166, 2015)
  as in nifreeze: angle and size by marginal likelihood, covariance and noise by the error.  It is
  written here again, because nifreeze depends on nipype and nireports, and on an older numpy;
* for denoising, MP-PCA and Patch2Self of dipy.  The truth is unknown on the heads of the training;
  a denoiser is chosen by how well harmonics fitted to its result predict directions that it was
  not given, whose noise is independent of it.

Denoising is scored against the mean of repetitions, registered to the scan.  Results are kept as
JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
import typer
from dipy.core.gradients import gradient_table
from dipy.denoise.localpca import mppca
from dipy.denoise.patch2self import patch2self
from dipy.reconst.dti import TensorModel
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from paper.real_heads import Heads, choose_heads
from paper.repeats import rigid
from scipy.ndimage import map_coordinates
from scipy.optimize import minimize

from tripq.networks import save_network
from tripq.networks.blocks import graph_radius, predict_blocks
from tripq.scans import B_REFERENCE, DWI
from tripq.scans.noise import noise_level
from tripq.so3.fit import ShellFit
from tripq.tasks.signal.denoise import Denoiser
from tripq.tasks.signal.network import SignalPredictor
from tripq.tasks.signal.scoring import Differences, same_directions
from tripq.tasks.signal.task import TRIALS, SignalTask
from tripq.training import Budget, PatchDataModule, Progress, train
from tripq.training.patches import hide

ORDERS = (2, 4, 6, 8)
SMOOTHINGS = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3e-2)

DARK = 0.25
"""Voxels whose noise is more than this, relative to b0, are left out: edges of the mask."""

FLOOR_DIRECTIONS, FLOOR_ORDER = 30, 4
"""The noise floor is the residual of harmonics of this order, for as many directions or more."""

NOISES = (0.03, 0.1, 0.3, 1.0)
"""Of a Gaussian process, relative to the variance over the directions."""

PATCH_RADII = (1, 2, 3)
"""Of MP-PCA, in voxels."""

COVERED = 0.99
"""Share of a voxel that a repetition must cover."""

Predict = Callable[[DWI, NDArray[np.float64]], NDArray[np.floating]]
Denoise = Callable[[DWI], NDArray[np.floating]]
Rival = TypeVar("Rival", "Harmonics", "GaussianProcess")


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


@dataclass(frozen=True)
class Harmonics:
    """Spherical harmonics of one shell with Laplace-Beltrami regularisation."""

    order: int
    smoothing: float

    def __call__(self, dwi: DWI, q: NDArray[np.float64]) -> NDArray[np.floating]:
        """The signal along q-vectors (Q, 3)."""
        fit = ShellFit.of(torch.from_numpy(dwi.q[1:]), self.order, self.smoothing)
        to = fit.along(torch.from_numpy(q)).numpy().astype(np.float32)
        return dwi.signal[:, 1:] @ to.T


@dataclass(frozen=True)
class GaussianProcess:
    r"""A Gaussian process on the directions of one shell.

    The signals of a voxel have their mean and standard deviation removed.  Two directions with the
    angle :math:`\theta` between them have the covariance :math:`\lambda C(\theta)`, and each
    measurement the noise :math:`\sigma^2`.

    Parameters
    ----------
    covariance : {"exponential", "spherical"}
        :math:`C`: :math:`e^{-\theta / a}`, or :math:`1 - 3\theta / 2a + \theta^3 / 2a^3` up to
        :math:`a` and 0 beyond.
    angle : float
        :math:`a`, in radians.
    size, noise : float
        :math:`\lambda` and :math:`\sigma^2`.
    """

    covariance: Literal["exponential", "spherical"]
    angle: float = 1.0
    size: float = 1.0
    noise: float = 0.5

    def between(self, q: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
        """Covariances of directions (Q, 3) and (R, 3)."""
        angles = np.arccos(np.abs(_unit(q) @ _unit(other).T).clip(max=1)) / self.angle
        if self.covariance == "exponential":
            return self.size * np.exp(-angles)
        return self.size * np.where(angles < 1, 1 - 1.5 * angles + 0.5 * angles**3, 0)

    def of_measured(self, q: NDArray[np.float64]) -> NDArray[np.float64]:
        """Covariances of measurements along directions (Q, 3)."""
        return self.between(q, q) + self.noise * np.eye(len(q))

    def __call__(self, dwi: DWI, q: NDArray[np.float64]) -> NDArray[np.floating]:
        """The signal along q-vectors (Q, 3)."""
        mean, _ = _scale(dwi)
        to = np.linalg.solve(self.of_measured(dwi.q[1:]), self.between(dwi.q[1:], q))
        return mean + (dwi.signal[:, 1:] - mean) @ to.astype(np.float32)

    def fitted(self, scans: Sequence[DWI]) -> GaussianProcess:
        """With the angle and the size of the largest marginal likelihood, for its noise.

        Each scan counts the same.  The noise cannot be had in this way: the covariances have a
        kink at 0, which takes its place.
        """
        products = []
        for dwi in scans:
            mean, size = _scale(dwi)
            values = ((dwi.signal[:, 1:] - mean) / size).astype(np.float64)
            products.append(values.T @ values / len(values))

        def with_logs(logs: NDArray[np.float64]) -> GaussianProcess:
            angle, size = np.exp(logs).tolist()
            return replace(self, angle=angle, size=size)

        def loss(logs: NDArray[np.float64]) -> float:
            total = 0.0
            for dwi, product in zip(scans, products, strict=True):
                covariance = with_logs(logs).of_measured(dwi.q[1:])
                total += np.linalg.slogdet(covariance)[1]
                total += np.trace(np.linalg.solve(covariance, product))
            return total

        start = np.log([self.angle, self.size])
        return with_logs(minimize(loss, start, method="Nelder-Mead").x)


def _scale(dwi: DWI) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation over the directions, (V, 1)."""
    signal = dwi.signal[:, 1:]
    return signal.mean(axis=1, keepdims=True), signal.std(axis=1, keepdims=True).clip(min=1e-6)


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


@dataclass(frozen=True)
class MPPCA:
    """Principal components of patches, those of noise left out (Veraart et al., 2016).

    A patch is not larger than the grid, which may have few slices.
    """

    patch_radius: int

    def __call__(self, dwi: DWI) -> NDArray[np.floating]:
        """The signal without noise, (V, Q)."""
        grid = dwi.volume(dwi.signal * dwi.b0[:, None])
        radius = np.minimum(self.patch_radius, (np.array(dwi.mask.shape) - 1) // 2)
        found = mppca(grid, mask=dwi.mask, patch_radius=radius)
        return found[dwi.mask] / dwi.b0[:, None]


@dataclass(frozen=True)
class Patch2Self:
    """Every volume by regression on the others (Fadnavis et al., 2020)."""

    model: Literal["ols", "ridge"]

    def __call__(self, dwi: DWI) -> NDArray[np.floating]:
        """The signal without noise, (V, Q)."""
        grid = dwi.volume(dwi.signal * dwi.b0[:, None])
        how = {"b0_threshold": 10, "b0_denoising": False, "shift_intensity": False}
        found = patch2self(grid, dwi.b_values, model=self.model, **how)
        return found[dwi.mask] / dwi.b0[:, None]


def by_network(network: SignalPredictor) -> Denoise:
    """Every volume from the others, by a network of the task."""
    return lambda dwi: predict_blocks(Denoiser(network).eval(), dwi)


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


def choose(errors: Mapping[Rival, Sequence[Mapping[int, float]]]) -> dict[int, Rival]:
    """The rival with the least mean logarithm of the error, by the number of directions."""

    def size(rival: Rival, number: int) -> float:
        return float(np.mean([np.log(e[number]) for e in errors[rival] if number in e]))

    numbers = sorted({number for found in errors.values() for each in found for number in each})
    return {n: min(errors, key=lambda rival: size(rival, n)) for n in numbers}


def tune_harmonics(crops: Sequence[Crop]) -> dict[int, Harmonics]:
    """Order and smoothing by the number of directions."""
    rivals = [Harmonics(order, smoothing) for order in ORDERS for smoothing in SMOOTHINGS]
    return choose({rival: [mean_squares(rival, crop) for crop in crops] for rival in rivals})


def tune_processes(crops: Sequence[Crop]) -> dict[int, GaussianProcess]:
    """Covariance and hyperparameters by the number of directions."""
    by_number: dict[int, list[DWI]] = {}
    for crop in crops:
        for number, shown, *_ in splits(crop.dwi):
            by_number.setdefault(number, []).append(shown)
    chosen = {}
    for number, scans in by_number.items():
        rivals = [
            GaussianProcess(kind, noise=noise).fitted(scans)
            for kind in ("exponential", "spherical")
            for noise in NOISES
        ]
        chosen[number] = choose(
            {rival: [mean_squares(rival, crop) for crop in crops] for rival in rivals}
        )[number]
    return chosen


def tune_denoiser(
    rivals: Sequence[Callable[[DWI], NDArray[np.floating]]],
    crops: Sequence[Crop],
    harmonics: Mapping[int, Harmonics],
) -> Any:
    """The denoiser after which harmonics predict best what it was not given."""

    def size(denoise: Denoise) -> float:
        errors = []
        for crop in crops:
            number, shown, q, known = list(splits(crop.dwi))[-1]
            cleaned = replace(shown, signal=denoise(shown).astype(np.float32))
            errors.append(np.log(np.mean((harmonics[number](cleaned, q) - known) ** 2)))
        return float(np.mean(errors))

    return min(rivals, key=size)


@dataclass(frozen=True, eq=False)
class Repeated:
    """A scan, and the mean of its repetitions.

    Parameters
    ----------
    dwi : DWI
        The scan.
    rows : (R,) int array
        Its voxels that all repetitions show.
    columns : (C,) int array
        Its samples with directions that they have.
    mean : (R, C) array
        Their signal, divided by b0.
    """

    dwi: DWI
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    mean: NDArray[np.floating]

    @classmethod
    def of(cls, dwi: DWI, others: Sequence[DWI]) -> Repeated:
        """Register the repetitions rigidly, and interpolate their volumes."""
        total = np.zeros_like(dwi.signal)
        seen = np.ones(len(dwi.b0), bool)
        common = np.ones(len(dwi.q), bool)
        for other in others:
            affine = rigid(dwi, other)
            places = apply_affine(np.linalg.inv(other.affine) @ affine, dwi.voxel_centres()).T
            columns, theirs = same_directions(dwi.q, other.q @ affine[:3, :3])
            common &= np.isin(np.arange(len(common)), columns)
            share = map_coordinates(other.mask.astype(np.float32), places, order=1)
            seen &= share > COVERED
            for column, its in zip(columns, theirs, strict=True):
                volume = other.volume(other.signal[:, its])
                total[:, column] += map_coordinates(volume, places, order=1)
        rows, columns = np.flatnonzero(seen), np.flatnonzero(common)
        return cls(dwi, rows, columns, total[np.ix_(rows, columns)] / len(others))

    def error(self, denoise: Denoise) -> dict[str, float]:
        """RMS error of the denoised scan, PSNR in dB, and anatomy in what was removed.

        The last is the correlation of the mean residual over the directions with b0.
        """
        found = denoise(self.dwi)
        error = float(np.sqrt(np.mean((found[np.ix_(self.rows, self.columns)] - self.mean) ** 2)))
        removed = ((self.dwi.signal - found)[:, 1:] * self.dwi.b0[:, None]).mean(axis=1)
        flat = removed.std() == 0 or self.dwi.b0.std() == 0
        anatomy = 0.0 if flat else np.corrcoef(removed, self.dwi.b0)[0, 1]
        return {"rms_error": error, "psnr": -20 * np.log10(error), "anatomy": float(anatomy)}


def scored(predict: Predict, crop: Crop) -> dict[int, Mapping[str, float]]:
    """Scores by the number of directions shown; tensors of the prediction of all directions."""
    dwi, found = crop.dwi, {}
    for number, shown, q, _ in splits(dwi):
        everything = dwi.signal.copy()
        everything[:, 1:] = predict(shown, dwi.q[1:])
        hidden, _ = same_directions(dwi.q, np.concatenate([np.zeros((1, 3)), q]))
        predicted = replace(dwi, signal=everything)
        found[number] = Differences.of(predicted, dwi, (hidden, hidden)).scores
    return found


def main(
    heads: Heads,
    out: Annotated[Path, typer.Option(help="Results, JSON; the network lies beside it.")],
    train_on: Annotated[list[str], typer.Option(help="Names of heads; again for more.")],
    test_on: Annotated[list[str], typer.Option(help="Names of heads; again for more.")],
    repeats: Annotated[
        list[str] | None,
        typer.Option(help="A head to denoise, and again for each repetition of its scan."),
    ] = None,
    voxels: Annotated[int, typer.Option(help="Of each head, in its middle slices.")] = 20_000,
    steps: int = 2000,
    seed: int = 0,
) -> None:
    """Train, compare, and keep the results."""
    torch.manual_seed(seed)
    crops = {h.name: crop(h.name, h.read(heads), voxels) for h in choose_heads(train_on + test_on)}
    training, tests = ([crops[name] for name in names] for names in (train_on, test_on))
    harmonics, processes = tune_harmonics(training), tune_processes(training)
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
            "network": scored(lambda dwi, q: predict_blocks(network, dwi, q_out=q), one),
            "tensor": scored(tensor, one),
            "harmonics": {n: scored(harmonics[n], one)[n] for n, *_ in splits(one.dwi)},
            "process": {n: scored(processes[n], one)[n] for n, *_ in splits(one.dwi)},
        }
        rows += [
            {
                "head": one.name,
                "directions": number,
                "hidden": len(one.dwi.b_values) - 1 - number,
                "voxels": len(one.dwi.b0),
                "floor": None if least is None else least**0.5,
                **{name: dict(scores[number]) for name, scores in found.items()},
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
        "harmonics": {n: asdict(rival) for n, rival in harmonics.items()},
        "process": {n: asdict(rival) for n, rival in processes.items()},
        "rows": rows,
    }
    if repeats:
        first, *others = (head.read(heads) for head in choose_heads(repeats))
        repeated = Repeated.of(first, others)
        most = harmonics[max(harmonics)]
        fit = SignalPredictor(order=most.order, smoothing=most.smoothing)
        pca = tune_denoiser([MPPCA(radius) for radius in PATCH_RADII], training, harmonics)
        regression = tune_denoiser([Patch2Self("ols"), Patch2Self("ridge")], training, harmonics)
        methods: dict[str, Denoise] = {
            "none": lambda dwi: dwi.signal,
            "network": by_network(network),
            "harmonics": by_network(fit),
            "mppca": pca,
            "patch2self": regression,
        }
        about["denoising"] = {
            "repeats": repeats,
            "mppca": asdict(pca),
            "patch2self": asdict(regression),
            "scores": {name: repeated.error(denoise) for name, denoise in methods.items()},
        }
    out.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
