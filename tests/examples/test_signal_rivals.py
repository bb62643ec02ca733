"""Comparison of the task `signal` with other methods: how these are tuned, and what is kept."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import typer
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

from tests.tasks.signal.conftest import fibres
from tripq.scans import DWI

TABLES = ("directions", "tensors", "denoising")


@pytest.fixture(scope="module")
def rivals() -> ModuleType:
    from signal_study import rivals

    return rivals


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
    from signal_study import heads

    noisy, clean = (fibres(0, (30,), noise=noise).dwi for noise in (0.1, 0.0))
    before = np.square(noisy.signal - clean.signal).mean()
    pca, regression = rivals.MPPCA(1), rivals.Patch2Self("ridge")
    for denoise in (pca, regression):
        assert np.square(denoise(noisy) - clean.signal).mean() < before
    crop = heads.Crop("a", noisy)
    harmonics = dict.fromkeys((6, 12, 20), rivals.Harmonics(4, 0.004))
    bad = lambda dwi: np.random.default_rng(0).uniform(size=dwi.signal.shape)  # noqa: E731
    assert rivals.tune_denoiser([bad, pca], [crop], harmonics) is pca


def test_every_rival_predicts_a_trial_once(
    rivals: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from signal_study import heads

    asked = []
    predict = rivals.GaussianProcess.__call__

    def count(process: object, dwi: DWI, q: np.ndarray) -> np.ndarray:
        asked.append((process, len(dwi.b_values) - 1, dwi.signal.tobytes()))
        return predict(process, dwi, q)

    monkeypatch.setattr(rivals.GaussianProcess, "__call__", count)
    crops = [heads.Crop(str(seed), fibres(seed, (25,)).dwi) for seed in range(2)]
    tuned = rivals.Rivals.tuned(crops)
    assert len(set(asked)) == len(asked) == 3 * 2 * 2 * len(rivals.NOISES)
    errors = {}
    for process, number, _ in asked:
        shown = [t for crop in crops for t in heads.trials(crop.dwi) if t.number == number]
        mean_squares = [np.mean((predict(process, t.shown, t.q) - t.known) ** 2) for t in shown]
        errors.setdefault(number, {})[process] = np.mean(np.log(mean_squares))
    assert tuned.processes == {n: min(found, key=found.get) for n, found in errors.items()}


def test_patches_fit_into_few_slices(rivals: ModuleType) -> None:
    dwi = fibres(0, (30,), noise=0.1).dwi
    slab = dwi.with_voxels(dwi.volume(np.abs(dwi.voxel_centres()[:, 2]) < 3))
    cut = slab.mask.any(axis=(0, 1))
    thin = replace(slab, mask=slab.mask[:, :, cut])
    assert thin.mask.shape[2] < 5
    assert np.isfinite(rivals.MPPCA(2)(thin)).all()


def test_slabs_are_the_head() -> None:
    from signal_study import heads

    dwi = fibres(0, (30,)).dwi
    parts = [one.dwi for one in heads.slabs("a", dwi)]
    assert len(parts) == 4

    def signal_at(some: list[DWI]) -> dict[tuple[float, ...], float]:
        both = ((one.voxel_centres(), one.signal[:, 1]) for one in some)
        return {tuple(place): value for pair in both for place, value in zip(*pair, strict=True)}

    assert signal_at(parts) == signal_at([dwi])


def test_a_scan_is_compared_with_the_mean_of_its_repetitions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from signal_study import heads

    first, second = (fibres(0, (30,), noise=noise).dwi for noise in (0.0, 0.05))
    opposite = replace(second, signal=2 * first.signal - second.signal, q=second.q * np.float64(-1))
    monkeypatch.setattr(heads, "rigid", lambda fixed, moving: np.eye(4))
    repeated = heads.Repeated.of(first, [second, opposite])
    assert len(repeated.rows) == len(first.b0)
    assert repeated.error(lambda dwi: dwi.signal)["rms_error"] < 1e-6
    wrong = repeated.error(lambda dwi: dwi.signal + np.float32(0.1))
    assert wrong["psnr"] == pytest.approx(20, abs=1e-3)


@dataclass(frozen=True)
class FakeHead:
    """A head of fibres in the place of a `RealHead`."""

    name: str
    person: str
    scanner: str = "simulated"

    def read(self, folder: Path) -> DWI:
        return fibres(ord(self.name), (31,)).dwi


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    import signal_rivals
    from signal_study import heads

    known = {name: FakeHead(name, person) for name, person in zip("abcd", "xxyz", strict=True)}
    choose = lambda names: [known[name] for name in names]  # noqa: E731
    monkeypatch.setattr(signal_rivals, "choose_heads", choose)
    monkeypatch.setattr(signal_rivals, "USED", tuple(known))
    monkeypatch.setattr(signal_rivals, "REPEATS", ("a", "b"))
    monkeypatch.setattr(signal_rivals, "FOLDS", (signal_rivals.Fold("one", ("x", "z")),))
    monkeypatch.setattr(signal_rivals, "BOX_SIZE", 6)
    monkeypatch.setattr(heads, "rigid", lambda fixed, moving: np.eye(4))
    return signal_rivals


def test_a_fold_tests_people_who_are_not_in_its_training(study: ModuleType) -> None:
    (fold,) = study.FOLDS
    assert [head.name for head in fold.training()] == ["c"]
    assert [head.name for head in fold.tests()] == ["a", "d"]


def test_results_are_kept_and_written_into_the_page(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    monkeypatch.setattr(study, "PAGE", page)
    monkeypatch.setattr(study, "RESULTS", tmp_path / "all.json")
    markers = [f"<!-- {name} -->\n\n<!-- end of {name} -->" for name in TABLES]
    page.write_text("\n".join(markers))
    study.main(tmp_path, tmp_path / "runs", None, voxels=100, steps=1, save=True)
    (results,) = (study.Results.read(path) for path in tmp_path.rglob("results.json"))
    assert [(row.head, row.shown) for row in results.rows] == [
        (head, shown) for head in "ad" for shown in (6, 12, 20)
    ]
    row = results.rows[0]
    assert row.floor is not None
    assert row.excess == pytest.approx(
        (row.scores["network"]["rms_error"] ** 2 - row.floor**2)
        / (row.scores[row.best_rival()]["rms_error"] ** 2 - row.floor**2)
    )
    assert results.denoised[0].method == "nothing"
    assert [one["fold"] for one in json.loads((tmp_path / "all.json").read_text())] == ["one"]
    written = page.read_text()
    assert written.count(f"| a | 6 | 25 | {row.scores['network']['rms_error']:.4f} |") == 1
    monkeypatch.setattr(study.Study, "training", None)  # nothing is trained or read again
    study.main(tmp_path, tmp_path / "runs", None, voxels=100, steps=1, save=True)
    assert page.read_text() == written
    page.write_text("\n".join(markers))
    study.main(None, save=True)
    assert page.read_text() == written


def test_the_page_and_the_card_show_the_kept_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal_rivals
    from study.pages import write_between

    known, page = signal_rivals.PAGE.read_text(encoding="utf-8"), tmp_path / "page.md"
    page.write_text(known, encoding="utf-8")
    write_between(page, dict.fromkeys(TABLES, ""))
    assert page.read_text(encoding="utf-8") != known
    monkeypatch.setattr(signal_rivals, "PAGE", page)
    signal_rivals.main(None, save=True)
    assert page.read_text(encoding="utf-8") == known
    results = signal_rivals.read_all(signal_rivals.RESULTS)
    assert [one.fold for one in results] == [fold.name for fold in signal_rivals.FOLDS]
    assert signal_rivals.summary(results) in signal_rivals.CARD.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"heads": Path(), "fold": ["first"], "save": True}, "need all folds"),
        ({"heads": Path(), "fold": ["first"], "to_ship": True}, "need all folds"),
        ({"heads": None, "fold": ["first"]}, "give --heads FOLDER"),
        ({"heads": None, "to_ship": True}, "give --heads FOLDER"),
    ],
)
def test_part_of_the_results_is_not_kept_and_nothing_is_trained_without_scans(
    options: dict[str, Any], says: str
) -> None:
    import signal_rivals

    with pytest.raises(typer.BadParameter, match=says):
        signal_rivals.main(**options)
