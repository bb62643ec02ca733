"""What a voxel tells by itself: thresholds on maps of the tensor, and a logistic regression."""

from __future__ import annotations

import time

import numpy as np
from dipy.core.gradients import gradient_table
from dipy.reconst.dti import TensorModel
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from paper.cohort import Scans
from paper.plan import SNR, USUAL, Plan, Split
from paper.results import Result, Run
from paper.work import choose_threshold, score_maps
from tripq.scans import DWI
from tripq.tasks.lesions.datasets import LabelledSubject

#: Names of the baselines, and what the page calls them.
BASELINES = {
    "md": "threshold on mean diffusivity",
    "fa": "threshold on fractional anisotropy",
    "logistic": "logistic regression of the voxel's samples",
}

_HEALTHY_PER_LESION = 10  # voxels that the regression learns from


def test_baseline(run: Run, plan: Plan, split: Split, scans: Scans) -> Result:
    """Score a baseline on the test patients in their usual pose."""
    start = time.perf_counter()
    validation, test = (scans.load(USUAL, p) for p in (split.validation, split.test))
    if run.contender == "logistic":
        training = scans.load(USUAL, split.share(run.fraction))
        maps, tested = _regress(training, [validation, test], run.seed)
    else:
        maps, tested = ([_tensor_map(s.dwi, run.contender) for s in g] for g in (validation, test))
    threshold = choose_threshold(validation, maps)
    return Result(
        run,
        settings={
            "baseline": BASELINES[run.contender],
            "voxel_size_mm": plan.voxel_size,
            "snr": SNR,
            "training": list(split.share(run.fraction)),
            "validation": list(split.validation),
            "test": list(split.test),
        },
        weights=len(USUAL.table) + 1 if run.contender == "logistic" else 0,
        steps=0,
        seconds=round(time.perf_counter() - start, 1),
        validation=(),
        threshold=threshold,
        tests={USUAL.name: score_maps(test, tested, threshold)},
    )


def _tensor_map(dwi: DWI, name: str) -> NDArray[np.float32]:
    """Mean diffusivity, or how low the anisotropy is, from 0 to 1; lesions are high in both."""
    directions = dwi.q / np.maximum(np.linalg.norm(dwi.q, axis=1, keepdims=True), 1e-9)
    model = TensorModel(gradient_table(dwi.b_values, bvecs=directions), fit_method="WLS")
    fit = model.fit(np.clip(dwi.signal, 1e-4, None))
    values = fit.md / 4e-3 if name == "md" else 1 - fit.fa  # 4e-3 mm2/s: more than free water
    return np.clip(np.nan_to_num(values), 0, 1).astype(np.float32)


def _regress(
    training: list[LabelledSubject], groups: list[list[LabelledSubject]], seed: int
) -> list[list[NDArray[np.float32]]]:
    """Probabilities of the voxels of groups of subjects, each voxel by itself."""
    rng = np.random.default_rng(seed)
    samples, labels = [], []
    for subject in training:
        sick, healthy = np.flatnonzero(subject.lesion), np.flatnonzero(~subject.lesion)
        number = min(len(healthy), _HEALTHY_PER_LESION * len(sick))
        rows = np.concatenate([sick, rng.choice(healthy, number, replace=False)])
        samples.append(subject.dwi.signal[rows])
        labels.append(subject.lesion[rows])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(np.concatenate(samples), np.concatenate(labels))
    return [
        [model.predict_proba(subject.dwi.signal)[:, 1].astype(np.float32) for subject in group]
        for group in groups
    ]
