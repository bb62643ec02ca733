"""Which runs there are, in which order, and doing them in several processes at once."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator, MutableMapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from paper.baselines import BASELINES, test_baseline
from paper.cohort import Scans
from paper.plan import CANDIDATES, VARIANTS, Contender, Plan, Split
from paper.results import Result, Results, Run
from paper.work import train_and_test

CONTENDERS = {c.name: c for c in chain(*CANDIDATES.values(), VARIANTS)}


@dataclass(frozen=True)
class Experiment:
    """Everything that runs share.

    Parameters
    ----------
    plan : Plan
        How much.
    splits : tuple of Split
        One for each seed.
    scans : Scans
        The cohorts.
    out : Path
        Folder of the results.
    device : str
        Where to compute.
    """

    plan: Plan
    splits: tuple[Split, ...]
    scans: Scans
    out: Path
    device: str


# -- which runs ----------------------------------------------------------------------------------


def candidates(plan: Plan) -> dict[str, tuple[Contender, ...]]:
    """The networks to tune, of each family."""
    return {family: CANDIDATES[family][: plan.candidates] for family in plan.families}


def installed(plan: Plan) -> Plan:
    """The plan without the families that need a package which is not installed."""
    return replace(
        plan,
        families=tuple(
            family for family, some in candidates(plan).items() if all(c.installed for c in some)
        ),
    )


def tuning_runs(plan: Plan) -> list[Run]:
    """Every candidate on the first split, of the families in turn."""
    names = zip_longest(*([c.name for c in some] for some in candidates(plan).values()))
    return [Run("tuning", name, 1.0, 0) for name in chain(*names) if name is not None]


def chosen(results: Results, plan: Plan) -> dict[str, str]:
    """Name of the candidate of each family that is best on the validation patients.

    Families that are not wholly tuned are left out.
    """
    names = {}
    for family, some in candidates(plan).items():
        runs = {c.name: Run("tuning", c.name, 1.0, 0) for c in some}
        if all(run in results for run in runs.values()):
            names[family] = max(runs, key=lambda name: results[runs[name]].best)
    return names


def main_runs(results: Results, plan: Plan) -> list[Run]:
    """The best of each family on every split and share.

    All training patients come first, as the other shares are compared with them; then the smallest
    share, as there the networks differ most.
    """
    names = chosen(results, plan).values()
    return [
        Run("main", name, fraction, seed)
        for seed in range(plan.seeds)
        for fraction in sorted(plan.fractions, key=lambda fraction: (fraction < 1.0, fraction))
        for name in names
    ]


def other_runs(results: Results, plan: Plan) -> list[Run]:
    """On all training patients, split by split: more heads, more steps, variants; and baselines."""
    runs = [Run("baselines", name, 1.0, seed) for seed in range(plan.seeds) for name in BASELINES]
    if plan.variants:
        names = chosen(results, plan).values()
        for seed in range(plan.seeds):
            runs += [Run("heads", name, 1.0, seed) for name in names]
            runs += [Run("longer", name, 1.0, seed) for name in names]
            runs += [Run("variants", c.name, 1.0, seed) for c in VARIANTS]
    return runs


# -- execution -----------------------------------------------------------------------------------


def do(
    runs: list[Run], results: Results, experiment: Experiment, jobs: int, console: Console
) -> list[str]:
    """Do the runs that are not yet in the results; return one line for each failure.

    A run that fails does not stop the others.
    """
    waiting = [run for run in runs if run not in results]
    if not waiting:
        return []
    failures = []
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with (
        context.Manager() as manager,
        _bars(console) as bars,
        ProcessPoolExecutor(jobs, context, torch.set_num_threads, (threads,)) as pool,
    ):
        shares: MutableMapping[str, tuple[float, str]] = manager.dict()
        whole = bars.add_task(
            f"{waiting[0].stage}: {len(waiting)} runs", total=len(waiting), detail=""
        )
        futures = {pool.submit(_work, run, experiment, shares): run for run in waiting}
        try:
            for future in _finished(futures, shares, bars, whole):
                run = futures[future]
                try:
                    result = future.result()
                except Exception as error:  # of whatever kind: the other runs go on
                    failures.append(f"{run.key}: {' '.join(str(error).split())}")
                    console.print(f"failed: {failures[-1]}", markup=False, style="red")
                else:
                    results.add(result)
                    console.print(_say(result), markup=False)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    return failures


def _work(
    run: Run, experiment: Experiment, shares: MutableMapping[str, tuple[float, str]]
) -> Result:
    plan, split = experiment.plan, experiment.splits[run.seed]
    if run.stage == "baselines":
        return test_baseline(run, plan, split, experiment.scans)
    told = 0.0

    def report(progress: object) -> None:
        nonlocal told
        if time.monotonic() > told + 1:  # seconds; the bars need no more
            told = time.monotonic()
            shares[run.key] = (progress.spent, f"step {progress.steps}, loss {progress.loss:.3f}")  # type: ignore[attr-defined]

    return train_and_test(
        run,
        CONTENDERS[run.contender],
        plan,
        split,
        experiment.scans,
        _folder(run, experiment.out / "runs"),
        experiment.device,
        report,
    )


def _folder(run: Run, runs: Path) -> Path:
    """Of a run; what was trained for tuning on the same scans is taken from there."""
    folder, tuned = runs / run.key, runs / replace(run, stage="tuning").key
    if run.stage == "main" and tuned.is_dir() and not folder.exists():
        part = runs / f".{run.key}.part"
        shutil.rmtree(part, ignore_errors=True)  # of an interrupted run
        shutil.copytree(tuned, part)
        os.replace(part, folder)
    return folder


def _finished(
    futures: dict[Future[Result], Run],
    shares: MutableMapping[str, tuple[float, str]],
    bars: Progress,
    whole: TaskID,
) -> Iterator[Future[Result]]:
    """The runs as they finish; the bars follow."""
    waiting = set(futures)
    tasks: dict[str, TaskID] = {}
    while waiting:
        done, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
        for future in done:
            key = futures[future].key
            if key in tasks:
                bars.remove_task(tasks.pop(key))
            shares.pop(key, None)
            yield future
        current = dict(shares)
        for key, (spent, says) in current.items():
            if key not in tasks:
                tasks[key] = bars.add_task(key, total=1.0, detail="")
            bars.update(tasks[key], completed=spent, detail=says)
        finished = len(futures) - len(waiting)
        bars.update(whole, completed=finished + sum(spent for spent, _ in current.values()))


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
        console=console,
    )


def _say(result: Result) -> str:
    precision = f" ({result.settings['precision']})" if "precision" in result.settings else ""
    scores = [f"{result.run.key}: {result.steps} steps in {result.seconds:.0f} s{precision}"]
    if result.validation:
        scores.append(f"validation {result.best:.3f}")
    scores += [
        f"{name} {tested.pooled.average_precision:.3f}" for name, tested in result.tests.items()
    ]
    return ", ".join(scores)
