"""The paper's experiment, with everything small: what was run is kept, and told as it is."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import nn

from tests.conftest import FEW_SETTLING
from tests.tasks.lesions.open_ms import write_sources
from tripq.tasks.lesions.datasets import OpenMS, open_ms

pytestmark = pytest.mark.usefixtures("few_settling")

#: The first candidate of each family that needs no other package.
NETWORKS = ("int", "conv-48", "inv-48", "tensor-48")
CENTRES = {
    "01": (-20.0, -20.0, 21.0),
    "02": (20.0, -20.0, 21.0),
    "03": (-21.0, -20.0, 18.0),
    "04": (20.0, -20.0, 18.0),
}


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """examples/reproduce_paper.py, imported as Python imports it when it is started."""
    import reproduce_paper

    return reproduce_paper


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> OpenMS:
    folder = tmp_path_factory.mktemp("made-up") / "sources"
    write_sources(folder, CENTRES, radius=31, edge=2)
    return open_ms(local=folder, accept_licences=True)


@pytest.fixture(scope="module")
def plan(program: ModuleType):  # type: ignore[no-untyped-def]
    return dataclasses.replace(
        program.QUICK,
        voxel_size=5.0,
        patients=None,
        families=("equivariant", "reference", "invariant maps", "tensor maps"),
        n_test=1,
        fractions=(0.5, 1.0),
        other_tables=program.FULL.other_tables[1:],
        box_size=6,
        largest_steps=4,
    )


class ThisProcess:
    """In place of a pool of processes, each of which imports torch: one run after the other.

    What another process would be sent is pickled here, too.
    """

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> ThisProcess:
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, function: Callable[..., Any], *arguments: object) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            function, arguments = pickle.loads(pickle.dumps((function, arguments)))
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


def narrow(network: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """A convolutional network with few channels, whatever is asked for."""
    return lambda *arguments, **options: network(*arguments, **{**options, "widths": (6, 4)})


@pytest.fixture(scope="module")
def out(program, plan, sources, slabs, tmp_path_factory) -> Path:  # type: ignore[no-untyped-def]
    """The folder of a whole, tiny experiment."""
    folder = tmp_path_factory.mktemp("paper")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("paper.schedule.ProcessPoolExecutor", ThisProcess)
        patch.setattr("paper.statistics._RESAMPLES", 50)
        for kind in ("ConvSegmenter", "MapConvSegmenter"):
            patch.setattr(f"paper.plan.{kind}", narrow(getattr(sys.modules["paper.plan"], kind)))
        patch.setattr("tripq.training.module.N_SETTLING", FEW_SETTLING)
        assert program.reproduce(plan, sources, folder, jobs=2) == []
    return folder


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_every_run_is_a_line_with_all_that_it_was(out: Path) -> None:
    runs = {tuple(line["run"].values()) for line in lines(out)}
    tuned = {("tuning", name, 1.0, 0) for name in NETWORKS}
    trained = {("main", name, f, 0) for name in NETWORKS for f in (0.5, 1.0)}
    baselines = {("baselines", name, 1.0, 0) for name in ("md", "fa", "logistic")}
    assert runs == tuned | trained | baselines
    assert len(lines(out)) == len(runs)
    for line in lines(out):
        settings = line["settings"]
        groups = [set(settings[name]) for name in ("training", "validation", "test")]
        assert sum(map(len, groups)) == len(set.union(*groups))  # nobody is in two of them
        # the test patients take no part in tuning
        assert bool(line["tests"]) == (line["run"]["stage"] != "tuning")
        if line["run"]["stage"] == "main":
            assert line["steps"] == 4
            assert {"usual", "rotated"} <= set(line["tests"])


@pytest.mark.exhaustive
def test_runs_in_processes_of_their_own_have_the_same_results(  # type: ignore[no-untyped-def]
    program, plan, sources, out: Path, tmp_path: Path
) -> None:
    from paper.cohort import Scans
    from paper.plan import split_patients
    from paper.results import Results, Run
    from paper.schedule import Experiment, do

    splits = split_patients(sources.patients, plan.n_validation, plan.n_test, plan.seeds)
    experiment = Experiment(plan, splits, Scans(out / "cohorts"), tmp_path, "cpu")
    runs = [Run("baselines", name, 1.0, 0) for name in ("logistic", "md")]
    results = Results(tmp_path / "results.jsonl")
    assert do(runs, results, experiment, 1, program.console) == []
    expected = {line["run"]["contender"]: line["tests"] for line in lines(out)}
    found = {line["run"]["contender"]: line["tests"] for line in lines(tmp_path)}
    assert found == {name: expected[name] for name in ("logistic", "md")}


def test_networks_are_tested_on_other_tables_as_they_can_take_them(out: Path) -> None:
    tests = {
        line["run"]["contender"]: set(line["tests"])
        for line in lines(out)
        if line["run"]["stage"] == "main" and line["run"]["fraction"] == 1.0
    }
    both = {"usual", "rotated"}
    assert tests["int"] == both | {"fewer", "shells", "shells, trained shell"}
    assert tests["inv-48"] == tests["tensor-48"] == both | {"fewer", "shells"}
    resampled = {"rotated, resampled", "fewer, resampled", "shells, resampled"}
    assert tests["conv-48"] == both | resampled


def test_what_was_tuned_on_all_patients_is_not_trained_again(out: Path) -> None:
    trained = {
        (line["run"]["stage"], line["run"]["contender"]): (line["seconds"], line["validation"])
        for line in lines(out)
        if line["run"]["fraction"] == 1.0 and line["steps"]
    }
    for name in NETWORKS:
        assert trained["main", name] == trained["tuning", name]


@pytest.mark.exhaustive
def test_networks_see_other_heads_and_train_for_longer_where_it_is_asked(  # type: ignore[no-untyped-def]
    program, plan, sources, out: Path, tmp_path: Path
) -> None:
    from paper.cohort import Scans
    from paper.plan import MORE_HEADS, split_patients
    from paper.results import Run
    from paper.schedule import CONTENDERS
    from paper.work import train_and_test

    plan = dataclasses.replace(plan, other_tables=())
    (split,) = split_patients(sources.patients, plan.n_validation, plan.n_test, plan.seeds)
    scans = Scans(out / "cohorts")
    for condition in MORE_HEADS:
        scans.write(sources, condition, split.training, plan.voxel_size)
    signals = [
        scans.load(condition, split.training)[0].dwi.b0.sum() for condition in MORE_HEADS[:2]
    ]
    assert signals[0] != signals[1]
    for stage, steps, conditions in (
        ("heads", 4, ["usual", "heads-1", "heads-2", "heads-3", "heads-4"]),
        ("longer", 8, ["usual"]),
    ):
        run = Run(stage, "conv-48", 1.0, 0)
        contender = CONTENDERS["conv-48"]
        folder = tmp_path / stage
        result = train_and_test(
            run, contender, plan, split, scans, folder, "cpu", lambda progress: None
        )
        assert result.steps == steps
        assert result.settings["conditions"] == conditions


def test_the_page_tells_what_the_file_holds(out: Path) -> None:
    page = (out / "experiment.md").read_text()
    assert "The diffusion signal is simulated" in page
    assert "This is a shortened run" in page
    assert "15 of 15 runs are done" in page
    for number in (1, 2, 3):
        assert f"![](images/experiment-{number}.png)" in page
        assert (out / "images" / f"experiment-{number}.png").stat().st_size > 10_000
    best = {
        line["run"]["contender"]: max(score for _, score in line["validation"])
        for line in lines(out)
        if line["run"]["stage"] == "tuning"
    }
    for value in best.values():
        assert f"| {value:.3f} |" in page
    for family in ("reference", "invariant maps", "tensor maps"):
        assert f"\n| {family} | 0.0 | 0.0 | 0." in page


@pytest.mark.exhaustive
def test_a_finished_run_is_not_repeated_and_a_missing_one_is(  # type: ignore[no-untyped-def]
    program, plan, sources, out: Path
) -> None:
    path = out / "results.jsonl"
    before = path.read_bytes()
    assert program.reproduce(plan, sources, out, jobs=1) == []
    assert path.read_bytes() == before

    kept = before.decode().splitlines(keepends=True)
    (lost,) = (line for line in kept if '"main", "contender": "int", "fraction": 0.5' in line)
    path.write_text("".join(line for line in kept if line != lost))
    assert program.reproduce(plan, sources, out, jobs=1) == []
    again = path.read_text().splitlines(keepends=True)
    assert len(again) == len(kept)
    old, new = json.loads(lost), json.loads(again[-1])
    # The training was finished and is not repeated; the tests are.
    assert (old["tests"], old["validation"]) == (new["tests"], new["validation"])


def test_figures_of_maps_that_are_elsewhere_stay_as_they_are(  # type: ignore[no-untyped-def]
    program, plan, sources, out: Path, tmp_path: Path
) -> None:
    """So the results of another computer are gone on with: the file, and its pictures."""
    (tmp_path / "cohorts").symlink_to(out / "cohorts")
    (tmp_path / "results.jsonl").write_bytes((out / "results.jsonl").read_bytes())
    (tmp_path / "images").mkdir()
    for number in (1, 3):
        (tmp_path / "images" / f"experiment-{number}.png").write_text("as it was")
    assert program.reproduce(plan, sources, tmp_path, jobs=1) == []
    for number in (1, 3):
        assert (tmp_path / "images" / f"experiment-{number}.png").read_text() == "as it was"
        assert f"![](images/experiment-{number}.png)" in (tmp_path / "experiment.md").read_text()
    assert (tmp_path / "images" / "experiment-2.png").stat().st_size > 10_000
    assert not (tmp_path / "runs").exists()


@pytest.mark.exhaustive
def test_a_run_that_fails_does_not_stop_the_others(program, plan, sources, out, tmp_path) -> None:  # type: ignore[no-untyped-def]
    broken = tmp_path / "paper"
    broken.mkdir()
    plan = dataclasses.replace(plan, families=plan.families[:2])
    (broken / "cohorts").symlink_to(out / "cohorts")
    (broken / "runs").mkdir()
    (broken / "runs" / "tuning-int-100-0").write_text("a file where a folder should be")
    failures = program.reproduce(plan, sources, broken, jobs=2)
    assert len(failures) == 1
    assert "tuning-int-100-0" in failures[0]
    assert [line["run"]["contender"] for line in lines(broken)] == ["conv-48"]


def test_a_damaged_line_is_named(program, plan, sources, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "results.jsonl").write_text('{"run": {}}\n')
    with pytest.raises(ValueError, match=r"results\.jsonl, line 1: not a result"):
        program.reproduce(plan, sources, tmp_path)


def test_scores_from_curves_are_those_of_the_maps(program: ModuleType) -> None:
    from paper.statistics import average_precision, dice, roc_auc
    from paper.work import score_maps

    from tripq.scans import DWI
    from tripq.tasks.lesions.datasets import LabelledSubject

    rng = np.random.default_rng(0)
    subjects, maps = [], []
    for i in range(3):
        lesion = rng.random(3000) < 0.05
        maps.append((1 / (1 + np.exp(4 - 3 * lesion - rng.normal(size=3000)))).astype(np.float32))
        dwi = DWI(
            signal=np.ones((3000, 2), np.float32),
            b_values=np.array([0.0, 1000.0]),
            q=np.array([[0.0, 0, 0], [1, 0, 0]]),
            mask=np.ones((30, 10, 10), bool),
            affine=np.diag([2.0, 2, 2, 1]),
            b0=np.ones(3000, np.float32),
        )
        subjects.append(LabelledSubject(f"sub-{i}", dwi, lesion))
    tested = score_maps(subjects, maps, threshold=0.3)
    truth, values = np.concatenate([s.lesion for s in subjects]), np.concatenate(maps)
    assert tested.pooled.dice == pytest.approx(dice(tested.subjects), abs=1e-6)
    # Within the steps of a quarter in the logit.
    assert roc_auc(tested.subjects) == pytest.approx(roc_auc_score(truth, values), abs=2e-3)
    assert average_precision(tested.subjects) == pytest.approx(
        average_precision_score(truth, values), abs=5e-3
    )


def test_intervals_are_over_patients(program: ModuleType) -> None:
    from paper.statistics import Estimate, estimate, ratio

    splits = [[1.0, 2.0, 3.0, 4.0], [3.0, 4.0, 5.0, 6.0]]
    mean = estimate(np.mean, splits)  # type: ignore[arg-type]
    assert mean.value == 3.5
    # Two means of 4, of standard error sqrt(1.25 / 4) each, averaged.
    assert mean.high - mean.low == pytest.approx(2 * 1.96 * math.sqrt(1.25 / 8), rel=0.1)
    doubled = [[2 * x for x in split] for split in splits]
    assert ratio(np.mean, doubled, splits) == Estimate(1.0, 1.0, 1.0)  # type: ignore[arg-type]


def test_splits_never_share_patients(program: ModuleType) -> None:
    patients = tuple(f"{i:02}" for i in range(1, 23))
    splits = program.split_patients(patients, 3, 4, 3)
    for split in splits:
        assert sorted(split.training + split.validation + split.test) == sorted(patients)
        assert [len(split.share(f)) for f in program.FULL.fractions] == [1, 2, 4, 10, 15]
        assert split.validation == splits[0].validation
    assert len({patient for split in splits for patient in split.test}) == 12


def test_a_network_of_another_grid_is_tested_there_alone(  # type: ignore[no-untyped-def]
    program, plan, sources, out: Path, tmp_path: Path
) -> None:
    from paper.cohort import Scans
    from paper.plan import COARSE, SUBSETS, split_patients
    from paper.results import Run
    from paper.schedule import CONTENDERS
    from paper.work import train_and_test

    coarse = dataclasses.replace(COARSE, voxel_size=4.5)
    contender = dataclasses.replace(CONTENDERS["at-coarse"], scans=coarse, augment=SUBSETS)
    (split,) = split_patients(sources.patients, plan.n_validation, plan.n_test, plan.seeds)
    scans = Scans(tmp_path / "cohorts")
    scans.write(sources, coarse, sources.patients, plan.voxel_size)
    run = Run("variants", "at-coarse", 1.0, 0)
    result = train_and_test(
        run, contender, plan, split, scans, tmp_path / "run", "cpu", lambda progress: None
    )
    assert set(result.tests) == {"coarse"}
    assert result.settings["conditions"] == ["coarse"]
    assert result.settings["voxel_size_mm"] == pytest.approx(4.5)
    assert result.settings["augmentation"]["dropped"] == SUBSETS.dropped


def test_a_network_of_integrals_is_tested_on_other_grids(  # type: ignore[no-untyped-def]
    program, plan, sources, out: Path, tmp_path: Path
) -> None:
    from paper.cohort import Scans
    from paper.plan import COARSE, split_patients
    from paper.results import Run
    from paper.schedule import CONTENDERS
    from paper.work import train_and_test

    coarse = dataclasses.replace(COARSE, voxel_size=4.5)
    plan = dataclasses.replace(plan, other_tables=(), other_grids=(coarse,))
    (split,) = split_patients(sources.patients, plan.n_validation, plan.n_test, plan.seeds)
    (tmp_path / "cohorts").mkdir()
    for cohort in (out / "cohorts").iterdir():
        (tmp_path / "cohorts" / cohort.name).symlink_to(cohort)
    scans = Scans(tmp_path / "cohorts")
    scans.write(sources, coarse, split.test, plan.voxel_size)
    for name, grids in (("int", {"coarse"}), ("conv-48", set())):
        contender = dataclasses.replace(CONTENDERS[name], more=())
        result = train_and_test(
            Run("main", name, 1.0, 0), contender, plan, split, scans, tmp_path / name, "cpu",
            lambda progress: None,
        )  # fmt: skip
        assert grids == set(result.tests) & {"coarse"}


def test_the_page_compares_with_networks_of_the_grid(program, plan, sources, out: Path) -> None:  # type: ignore[no-untyped-def]
    from paper.cohort import Scans
    from paper.page import _Page
    from paper.plan import FINE, split_patients
    from paper.results import Results, Run
    from paper.schedule import Experiment

    results = Results(out / "results.jsonl")
    (run,) = (r for r in results.of("main") if r.run.key == "main-int-100-0")
    tested = run.tests["usual"]
    (subject,) = tested.subjects
    # Every lesion voxel above every healthy voxel: average precision 1.
    sick, healthy = (
        subject.scores.lesion_voxels,
        subject.scores.voxels - subject.scores.lesion_voxels,
    )
    sure = tuple((0 if i else healthy, sick) for i in range(len(subject.curve)))
    perfect = dataclasses.replace(tested, subjects=(dataclasses.replace(subject, curve=sure),))
    results._results[run.run] = dataclasses.replace(run, tests={**run.tests, FINE.name: tested})
    there = dataclasses.replace(
        run, run=Run("variants", "at-fine", 1.0, 0), tests={FINE.name: perfect}
    )
    results._results[there.run] = there
    splits = split_patients(sources.patients, plan.n_validation, plan.n_test, plan.seeds)
    page = _Page(results, Experiment(plan, splits, Scans(out / "cohorts"), out, "cpu"))
    rows = [line for line in page._grids().splitlines() if f"| {FINE.says} |" in line]
    changes = [row.split("|")[-2].strip() for row in rows]
    assert changes[0].startswith("-")
    assert changes[1:] == [""]
    assert page._table_of("variants", {"at-fine": "elsewhere"}) == "Not yet run."
