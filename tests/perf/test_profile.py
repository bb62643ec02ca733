"""The command that measures: no figure of what was not compared, none without its run."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.conftest import run_program
from tripq import PQTensorFieldLayer

PERF = Path(__file__).parents[2] / "perf"


MODULES = (
    "goals",
    "layers",
    "measure",
    "networks",
    "peers",
    "report",
    "rows",
    "scaling",
    "stages",
    "tasks",
    "workloads",
)


@pytest.fixture(scope="module")
def perf(perf_modules: None) -> SimpleNamespace:
    """Return the modules beside perf/profile.py."""
    return SimpleNamespace(**{name: import_module(name) for name in MODULES})


# -- the command ---------------------------------------------------------------------------------


def in_this_process(function: Any, *arguments: Any, limit: float) -> Any:
    """What is sent to a process and back is pickled, too."""
    function, arguments = pickle.loads(pickle.dumps((function, arguments)))
    return pickle.loads(pickle.dumps(function(*arguments)))


@pytest.mark.parametrize("alone", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_the_command_measures_shows_and_keeps(
    alone: bool, perf: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each figure in a process alone, or in this one, which need not import torch again."""
    kept = tmp_path / "kept.json"
    options = "--workload tiny --backend recoupled --backend triton --repeats 1 --threads"
    threads = torch.get_num_threads()  # they stay as they are for the tests that follow
    if not alone:
        monkeypatch.setattr(perf.measure, "in_own_process", in_this_process)
        monkeypatch.setattr(perf.tasks, "limit_memory", lambda: None)
        monkeypatch.setenv("KINETO_LOG_LEVEL", "99")
    shown = run_program(PERF / "profile.py", *options.split(), threads, "--json", kept)
    assert "triton: not measured: needs a CUDA device" in shown
    (run,) = perf.rows.load(kept)
    measured, refused = run.rows
    assert (run.workload, run.dtype, run.machine.slug) == ("tiny", "float32", "cpu")
    assert refused == perf.rows.Row(
        "tiny", "triton", note="not measured: needs a CUDA device", sizes=refused.sizes
    )
    assert measured.note == ""
    assert 0 < measured.error < measured.tolerance
    assert 0 <= measured.gradient_error < measured.tolerance
    for figure in ("graph", "layer", "first_call", "forward", "forward_backward", "peak_memory"):
        assert getattr(measured, figure) > 0, figure
    assert measured.operations > 0
    assert measured.bytes > 0
    assert sum(measured.stages.values()) > 0
    assert run.machine.floor(measured) > 0

    again = tmp_path / "again.json"
    perf.rows.save(again, [run])
    assert perf.rows.load(again) == (run,)
    assert again.read_text() == kept.read_text()


def test_the_command_does_not_hide_the_profile_of_python() -> None:
    """Python puts the folder of a program at the head of the path; torch imports `profile`."""
    probe = (
        f"import runpy, sys; sys.path[0] = {str(PERF)!r}; "
        "runpy.run_path(f'{sys.path[0]}/profile.py'); import profile; profile.Profile"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("function", "argument", "limit", "why"),
    [
        (int, "x", 60, "ValueError: invalid literal"),
        (bytes, 10**15, 60, "out of memory"),
        (time.sleep, 60, 0.2, "not finished after 0.2 s"),
        (os._exit, 3, 60, "the process ended with 3"),
        (signal.raise_signal, signal.SIGKILL, 60, "killed by the system"),
    ],
)
def test_a_failure_is_a_reason_and_no_abort(
    perf: SimpleNamespace, function: object, argument: object, limit: float, why: str
) -> None:
    with pytest.raises(perf.measure.NotMeasured, match=why):
        perf.measure.in_own_process(function, argument, limit=limit)


def test_a_result_comes_from_a_process(perf: SimpleNamespace) -> None:
    assert perf.measure.in_own_process(os.getppid, limit=60) == os.getpid()


# -- what is compared ----------------------------------------------------------------------------


def measure(perf: SimpleNamespace, method: str) -> Any:
    return perf.layers.measure_layer(perf.workloads.TINY, method, "cpu", "float32", 1)


def test_a_wrong_result_gets_no_figures(
    perf: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = PQTensorFieldLayer.forward
    monkeypatch.setattr(PQTensorFieldLayer, "forward", lambda *a: 1.001 * forward(*a))
    with pytest.raises(perf.measure.NotMeasured, match=r"result is off by 1\.0e-03"):
        measure(perf, "recoupled")


def test_a_wrong_gradient_gets_no_figures(
    perf: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = PQTensorFieldLayer.forward

    def wrong(*arguments: object) -> torch.Tensor:
        y = forward(*arguments)
        return y + 0.01 * (y - y.detach())

    monkeypatch.setattr(PQTensorFieldLayer, "forward", wrong)
    with pytest.raises(perf.measure.NotMeasured, match=r"gradient is off by 1\.0e-02"):
        measure(perf, "recoupled")


def test_a_cloud_is_compared_node_by_node(perf: SimpleNamespace) -> None:
    cloud = replace(perf.workloads.WORKLOADS["cloud"], voxels=6, directions=2)
    row = perf.layers.measure_layer(cloud, "recoupled", "cpu", "float64", 1)
    assert row.error < 1e-12
    assert row.gradient_error < 1e-12


@pytest.mark.parametrize("method", ["conv3d", "e3nn"])
def test_the_peers_compute_what_they_claim(
    perf: SimpleNamespace, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perf.peers, "E3NN_EDGES", 200)
    function = getattr(perf.peers, f"measure_{method}")
    row = function(perf.workloads.TINY, method, "cpu", "float64", 1)
    assert row.error < 1e-12
    assert row.forward > 0


@pytest.mark.parametrize("method", ["recoupled", "conv-network"])
def test_a_training_step_is_compared(perf: SimpleNamespace, method: str) -> None:
    step = replace(perf.workloads.WORKLOADS["segmenter-step"], boxes=2, side=2, shells=(1, 3))
    row = perf.networks.measure_step(step, method, "cpu", "float64", 1)
    assert row.error < 1e-10
    assert row.operations > 0


def test_a_segmented_brain_is_compared(perf: SimpleNamespace) -> None:
    brain = replace(perf.workloads.WORKLOADS["segmenter-brain"], voxels=12, shells=(1, 3))
    row = perf.networks.measure_brain(brain, "auto", "cpu", "float32", 1)
    assert row.error < 1e-5
    assert set(row.choice.split(" + ")) <= set(perf.workloads.BACKENDS)


def test_own_times_add_up_by_label_and_by_operator(perf: SimpleNamespace) -> None:
    a = torch.randn(300, 300)

    def call() -> None:
        with torch.profiler.record_function("tripq: p-stage"):
            a.clone() @ a
        a @ a

    seconds = perf.stages.time_of_stages(call, "cpu")
    assert list(seconds) == sorted(seconds, key=lambda stage: -seconds[stage])
    assert {"p-stage", "matrix products"} <= set(seconds)
    assert "copies" not in seconds


# -- what is written -----------------------------------------------------------------------------


def made_up(perf: SimpleNamespace, workload: str, *rows: object) -> Any:
    machine = perf.rows.Machine("cpu", "A processor", 2, {"tripq": "0"}, 1e11, 1e10)
    return perf.rows.Run(workload, "float32", "2026-01-01", 3, machine, rows)


def test_the_page_is_made_of_what_is_kept(perf: SimpleNamespace) -> None:
    results = perf.report.stored()
    assert perf.report.PAGE.read_text() == perf.report.page(results)
    readme = perf.report.README.read_text()
    assert readme == perf.report.readme(readme, results)


def test_goals_are_met_missed_or_not_measured(perf: SimpleNamespace) -> None:
    row = perf.rows.Row
    run = made_up(
        perf,
        "block2",
        row("block2", "conv3d", forward=1.0),
        row("block2", "auto", forward=2.0, forward_backward=0.4, choice="recoupled"),
        row("block2", "recoupled", forward=2.0, forward_backward=2.5),
        row("block2", "dense", forward=0.1, forward_backward=1.5),
        row("block2", "e3nn", note="not measured: out of memory"),
    )
    verdicts = {
        goal.quantity: verdict
        for goal, _, verdict in perf.goals.judged("cpu", [run])
        if goal.workload == "block2"
    }
    assert verdicts == {
        "forward + backward": "met",
        "forward": "missed by a factor of 2.000",
        "peak memory": "not measured",
        "slow-down of e3nn, edge by edge, forward": "not measured (e3nn: out of memory)",
    }
    page = perf.report.page({"cpu": (run,)})
    assert "Auto chose recoupled; fastest measured was dense." in page
    assert "| auto | — | 0 ms | — | 2 s = 2.00 C | 400 ms = 0.40 C | — | — | — |" in page
    assert "e3nn, edge by edge (scaled from 20,000 edges): not measured: out of memory." in page


def test_scaling_is_a_table_and_a_plot(perf: SimpleNamespace, tmp_path: Path) -> None:
    rows = [
        replace(
            perf.tasks.Task(point, method, "cpu", "float32", 1, 1).row,
            **({"note": "not measured: out of memory"} if method == "dense" else figures),
        )
        for point in perf.workloads.scaling()
        for figures in [{"forward": 1.0, "forward_backward": 2.0, "peak_memory": 3e6}]
        for method in ("recoupled", "dense")
    ]
    run = made_up(perf, "scaling", *rows)
    page = perf.report.page({"cpu": (run,)})
    assert "| 13,824 | recoupled | 1 s | 2 s | 3 MB |" in page
    assert "| 13,824 | dense | not measured: out of memory |  |  |" in page
    perf.scaling.plot(run, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_a_run_takes_the_place_of_the_last_one_like_it(
    perf: SimpleNamespace, tmp_path: Path
) -> None:
    file = tmp_path / "cpu.json"
    old, other = made_up(perf, "block"), made_up(perf, "wide")
    new = replace(old, date="2026-02-02")
    for run in (old, other, new):
        perf.rows.save(file, [run])
    assert perf.rows.load(file) == (new, other)
