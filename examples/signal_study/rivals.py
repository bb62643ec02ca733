"""Other methods that predict directions or denoise, and how they are tuned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
import torch
from dipy.core.gradients import gradient_table
from dipy.denoise.localpca import mppca
from dipy.denoise.patch2self import patch2self
from dipy.reconst.dti import TensorModel
from numpy.typing import NDArray
from scipy.optimize import minimize

from signal_study.heads import Crop, Denoise, Trial, trials
from tripq.scans import B_REFERENCE, DWI
from tripq.so3.fit import ShellFit

ORDERS = (2, 4, 6, 8)
SMOOTHINGS = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3e-2)

NOISES = (0.03, 0.1, 0.3, 1.0)
"""Of a Gaussian process, relative to the variance over the directions."""

PATCH_RADII = (1, 2, 3)
"""Of MP-PCA, in voxels."""

Covariance = Literal["exponential", "spherical"]
Predict = Callable[[DWI, NDArray[np.float64]], NDArray[np.floating]]
Rival = TypeVar("Rival", "Harmonics", "GaussianProcess")
Denoiser = TypeVar("Denoiser", "MPPCA", "Patch2Self")


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

    covariance: Covariance
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
        """The process with the angle and size of the largest marginal likelihood, for its noise.

        All scans count equally.  The noise cannot be estimated in this way, because the kink of the
        covariances at 0 has the same effect.
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


def mean_log_error(predict: Predict, shown: Sequence[Trial]) -> float:
    """Mean over trials of the logarithm of the mean square error."""
    errors = (predict(trial.shown, trial.q) - trial.known for trial in shown)
    return float(np.mean([np.log(float(np.mean(error**2))) for error in errors]))


def choose(rivals: Iterable[Rival], shown: Sequence[Trial]) -> Rival:
    """The rival with the least `mean_log_error`."""
    return min(rivals, key=lambda rival: mean_log_error(rival, shown))


def tune_harmonics(shown: Sequence[Trial]) -> Harmonics:
    """Order and smoothing for a number of directions."""
    return choose((Harmonics(order, s) for order in ORDERS for s in SMOOTHINGS), shown)


def tune_process(shown: Sequence[Trial]) -> GaussianProcess:
    """Covariance and hyperparameters for a number of directions."""
    scans = [trial.shown for trial in shown]
    kinds: tuple[Covariance, ...] = ("exponential", "spherical")
    return choose(
        (GaussianProcess(kind, noise=noise).fitted(scans) for kind in kinds for noise in NOISES),
        shown,
    )


@dataclass(frozen=True)
class Rivals:
    """The tuned methods, by the number of directions shown.

    Parameters
    ----------
    harmonics, processes : mapping
        Tuned.
    """

    harmonics: Mapping[int, Harmonics]
    processes: Mapping[int, GaussianProcess]

    @classmethod
    def tuned(cls, crops: Sequence[Crop]) -> Rivals:
        """Tune them on heads."""
        by_number: dict[int, list[Trial]] = {}
        for crop in crops:
            for trial in trials(crop.dwi):
                by_number.setdefault(trial.number, []).append(trial)
        return cls(
            {number: tune_harmonics(shown) for number, shown in by_number.items()},
            {number: tune_process(shown) for number, shown in by_number.items()},
        )


def tune_denoiser(
    rivals: Sequence[Denoiser], crops: Sequence[Crop], harmonics: Mapping[int, Harmonics]
) -> Denoiser:
    """The denoiser after which harmonics best predict the directions that it was not given."""

    def size(denoise: Denoise) -> float:
        errors = []
        for crop in crops:
            last = list(trials(crop.dwi))[-1]
            cleaned = replace(last.shown, signal=denoise(last.shown).astype(np.float32))
            found = harmonics[last.number](cleaned, last.q)
            errors.append(np.log(np.mean((found - last.known) ** 2)))
        return float(np.mean(errors))

    return min(rivals, key=size)
