"""Rivals of the task `signal`: the Gaussian process, denoisers, and how they are tuned."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

from tests.tasks.signal.conftest import fibres

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def rivals() -> Iterator[ModuleType]:
    sys.path.insert(0, str(EXAMPLES))
    import signal_rivals

    yield signal_rivals
    sys.path.remove(str(EXAMPLES))


@pytest.mark.parametrize("covariance", ["exponential", "spherical"])
def test_the_process_is_that_of_scikit_learn(rivals: ModuleType, covariance: str) -> None:
    dwi, wanted = fibres(0, (20,)).dwi, fibres(0, (7,)).dwi.q[1:]
    process = rivals.GaussianProcess(covariance, 0.8, 0.7, 0.3)

    class Kernel(RBF):
        def __call__(self, X, Y=None, eval_gradient=False):  # type: ignore[no-untyped-def]
            return process.between(X, X if Y is None else Y)

        def diag(self, X):  # type: ignore[no-untyped-def]
            return np.full(len(X), process.size)

    model = GaussianProcessRegressor(Kernel(), alpha=0.3, optimizer=None, normalize_y=True)
    expected = model.fit(dwi.q[1:], dwi.signal[:, 1:].T).predict(wanted).T
    np.testing.assert_allclose(process(dwi, wanted), expected, atol=1e-5)


def test_the_hyperparameters_are_the_most_likely(rivals: ModuleType) -> None:
    dwi = fibres(0, (20,)).dwi
    fitted = rivals.GaussianProcess("exponential", noise=0.1).fitted([dwi])
    signal = dwi.signal[:, 1:].astype(np.float64)
    signal = (signal - signal.mean(axis=1, keepdims=True)) / signal.std(axis=1, keepdims=True)

    def likelihood(process: object) -> float:
        covariance = process.of_measured(dwi.q[1:])  # type: ignore[attr-defined]
        return float(multivariate_normal(cov=covariance).logpdf(signal).mean())

    best = likelihood(fitted)
    for factor in (0.9, 1.1):
        assert likelihood(replace(fitted, angle=factor * fitted.angle)) < best
        assert likelihood(replace(fitted, size=factor * fitted.size)) < best


def test_denoisers_leave_less_noise_and_the_best_is_chosen(rivals: ModuleType) -> None:
    noisy, clean = (fibres(0, (30,), noise=noise).dwi for noise in (0.1, 0.0))
    before = np.square(noisy.signal - clean.signal).mean()
    pca, regression = rivals.MPPCA(1), rivals.Patch2Self("ridge")
    for denoise in (pca, regression):
        assert np.square(denoise(noisy) - clean.signal).mean() < before
    crop = rivals.Crop("a", noisy)
    harmonics = dict.fromkeys((6, 12, 20), rivals.Harmonics(4, 0.004))
    bad = lambda dwi: np.random.default_rng(0).uniform(size=dwi.signal.shape)  # noqa: E731
    assert rivals.tune_denoiser([bad, pca], [crop], harmonics) is pca


def test_a_scan_is_compared_with_the_mean_of_its_repetitions(
    rivals: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (fibres(0, (30,), noise=noise).dwi for noise in (0.0, 0.05))
    opposite = replace(second, signal=2 * first.signal - second.signal, q=second.q * np.float64(-1))
    monkeypatch.setattr(rivals, "rigid", lambda fixed, moving: np.eye(4))
    repeated = rivals.Repeated.of(first, [second, opposite])
    assert len(repeated.rows) == len(first.b0)
    assert repeated.error(lambda dwi: dwi.signal)["rms_error"] < 1e-6
    wrong = repeated.error(lambda dwi: dwi.signal + np.float32(0.1))
    assert wrong["psnr"] == pytest.approx(20, abs=1e-3)
