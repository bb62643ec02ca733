"""One run, from the scans to its scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from paper.cohort import Scans, at_trained_shells, for_fixed_table
from paper.plan import MORE_HEADS, ROTATED, SNR, USUAL, Condition, Contender, Plan, Split
from paper.results import Result, Run, SubjectResult, Tested, curve_of
from paper.rivals import MapSegmenter
from tripq.networks.blocks import graph_radius
from tripq.networks.checkpoint import save_network
from tripq.networks.conv import ConvSegmenter
from tripq.scans import voxel_ml
from tripq.tasks.lesions.datasets import LabelledSubject
from tripq.tasks.lesions.scores import best_threshold, count_lesions, score
from tripq.tasks.lesions.segmentation import segment
from tripq.tasks.lesions.task import LesionTask
from tripq.training import Budget, PatchDataModule, Progress, Stopping, train

CAUTION = "trained on simulated diffusion signal; for research only, not for diagnosis"

Maps = list[NDArray[np.float32]]


def train_and_test(
    run: Run,
    contender: Contender,
    plan: Plan,
    split: Split,
    scans: Scans,
    out: Path,
    device: str,
    report: Callable[[Progress], None],
) -> Result:
    """Train a network, and score it under every condition of the run.

    Parameters
    ----------
    run, contender, plan, split : Run, Contender, Plan, Split
        What to do.
    scans : Scans
        Written before.
    out : Path
        Folder of the run: checkpoints while it goes on, and the network.
    device : str
        Where to compute.
    report : callable
        Called after every step.
    """
    steps = plan.steps(contender, longer=run.stage == "longer")
    torch.manual_seed(run.seed)
    network = contender.build(plan.edge(contender))
    training = split.share(run.fraction)
    validation = scans.load(contender.scans, split.validation)
    conditions = (contender.scans, *contender.more, *(MORE_HEADS if run.stage == "heads" else ()))
    shown = [subject for condition in conditions for subject in scans.load(condition, training)]
    patches = PatchDataModule(
        shown,
        LesionTask(),
        radius=graph_radius(network),
        box_size=plan.box_size,
        n_boxes=plan.n_boxes,
        seed=run.seed,
        augment=contender.augment,
        validation=validation,
    )
    record = train(
        network,
        patches,
        Budget(steps=steps),
        stopping=Stopping(plan.every(contender), plan.patience, plan.rise, falling=True),
        folder=out,
        learning_rate=contender.learning_rate,
        weight_decay=contender.weight_decay,
        settle=contender.settle,
        device=device,
        precision="auto",
        report=report,
    )
    del shown, patches
    network = network.to(device)
    maps = [segment(network, subject.dwi, device=device) for subject in validation]
    threshold = choose_threshold(validation, maps)
    save_network(
        network,
        out / "network.safetensors",
        {
            "caution": CAUTION,
            "threshold": f"{threshold:.4f}",
            "voxel_size_mm": f"{plan.edge(contender):g}",
            "run": run.key,
        },
    )
    tests = {}
    for name, subjects in _tests(run, contender, network, plan, split, scans).items():
        maps = [segment(network, subject.dwi, device=device) for subject in subjects]
        tests[name] = score_maps(subjects, maps, threshold)
        if name == USUAL.name:
            np.savez_compressed(
                out / "maps.npz",
                **{s.name: p.astype(np.float16) for s, p in zip(subjects, maps, strict=True)},
            )
    return Result(
        run,
        settings={
            "network": f"{type(network).__name__}: {contender.says}",
            "learning_rate": contender.learning_rate,
            "weight_decay": contender.weight_decay,
            "largest_steps": steps,
            "boxes": f"{plan.n_boxes} of {plan.box_size} voxels",
            "conditions": [condition.name for condition in conditions],
            "augmentation": contender.augment and asdict(contender.augment),
            "batch_norms_settled": contender.settle,
            "precision": record.precision,
            "voxel_size_mm": plan.edge(contender),
            "snr": SNR,
            "training": list(training),
            "validation": list(split.validation),
            "test": list(split.test),
            "tripq": version("tripq"),
            "torch": torch.__version__,
        },
        weights=sum(weights.numel() for weights in network.parameters()),
        steps=record.steps,
        seconds=round(record.seconds, 1),
        validation=record.scores,
        threshold=threshold,
        tests=tests,
    )


def choose_threshold(subjects: Sequence[LabelledSubject], maps: Maps) -> float:
    """Where Dice of all voxels of the validation subjects is highest."""
    return best_threshold(
        np.concatenate(maps), np.concatenate([subject.lesion for subject in subjects])
    )


def score_maps(subjects: Sequence[LabelledSubject], maps: Maps, threshold: float) -> Tested:
    """Scores of the maps of several subjects."""
    results = []
    for subject, probability in zip(subjects, maps, strict=True):
        dwi, found = subject.dwi, probability >= threshold
        ml = voxel_ml(dwi.affine)
        results.append(
            SubjectResult(
                subject.name,
                load_ml=round(float(subject.lesion.sum()) * ml, 4),
                found_ml=round(float(found.sum()) * ml, 4),
                scores=score(probability, subject.lesion, threshold),
                lesions=count_lesions(dwi.volume(found), dwi.volume(subject.lesion)),
                curve=curve_of(probability, subject.lesion),
            )
        )
    lesions = np.concatenate([subject.lesion for subject in subjects])
    return Tested(score(np.concatenate(maps), lesions, threshold), tuple(results))


def _tests(
    run: Run, contender: Contender, network: nn.Module, plan: Plan, split: Split, scans: Scans
) -> dict[str, list[LabelledSubject]]:
    """The test subjects under each condition that the network can take.

    A network on maps uses the trained shells alone, of any scan.
    """
    if run.stage == "tuning":
        return {}  # choices are made on the validation patients alone
    if contender.scans is not USUAL:
        return {contender.scans.name: scans.load(contender.scans, split.test)}
    conditions: tuple[Condition, ...] = (USUAL, ROTATED)
    if run.fraction == 1.0:
        conditions += plan.other_tables + (plan.other_grids if contender.any_grid else ())
    fixed = isinstance(network, ConvSegmenter)
    tests = {}
    for condition in conditions:
        subjects = scans.load(condition, split.test)
        if not fixed or len(condition.table) == len(USUAL.table):
            tests[condition.name] = subjects
        if condition is USUAL:
            continue
        if fixed:
            fitted = [for_fixed_table(subject) for subject in subjects]
            if whole := [subject for subject in fitted if subject is not None]:
                tests[f"{condition.name}, resampled"] = whole
        elif condition.b_values != USUAL.b_values and not isinstance(network, MapSegmenter):
            tests[f"{condition.name}, trained shell"] = [at_trained_shells(s) for s in subjects]
    return tests
