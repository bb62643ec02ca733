"""Several processes do what one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.processes import environments, fork
from tests.programs import train_in_ranks
from tests.training.test_training import convolutional, equivariant, labelled_scan
from tripq.infra.distributed import by_leader, connected, gather
from tripq.infra.rank import ALONE, Rank
from tripq.tasks.lesions.task import LesionTask
from tripq.training import Budget, PatchDataModule, Stopping, train


def trained_here(folder: Path, n_validation: int) -> dict[str, Any]:
    """What this process has after training alone, in one thread as the others."""
    folder.mkdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train_in_ranks.main(folder, n_validation)
    finally:
        torch.set_num_threads(threads)
    return torch.load(folder / "rank-0.pt", weights_only=True)


def trained(folder: Path, *arguments: float, ranks: int) -> list[dict[str, Any]]:
    """What each of so many processes has after training together.

    They have the environment that torchrun gives to its processes.
    """
    folder.mkdir()
    processes = [
        fork(train_in_ranks.run, environment, folder, *arguments)
        for environment in environments(ranks)
    ]
    for process in processes:
        process.join(timeout=300)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * ranks
    files = [folder / f"rank-{rank}.pt" for rank in range(ranks)]
    return [torch.load(path, weights_only=True) for path in files]


def assert_same_weights(first: dict[str, Any], second: dict[str, Any], atol: float) -> None:
    for name, weights in first["weights"].items():
        torch.testing.assert_close(weights, second["weights"][name], rtol=0, atol=atol)


def test_two_processes_learn_what_one_does(tmp_path: Path, few_settling: None) -> None:
    one = trained_here(tmp_path / "one", 3)
    two = trained(tmp_path / "two", 3, ranks=2)
    assert_same_weights(two[0], two[1], atol=0)
    # Weights of order 1 in float32, after 6 steps of 0.01: the order of the sums is all.
    assert_same_weights(one, two[0], atol=1e-5)
    assert one["losses"] == pytest.approx(two[0]["losses"], abs=1e-5)
    assert two[0]["scores"] == two[1]["scores"]
    for (step, score), (step_of_two, score_of_two) in zip(
        one["scores"], two[0]["scores"], strict=True
    ):
        assert (step, score) == (step_of_two, pytest.approx(score_of_two, abs=1e-5))
    assert one["losses"][-1] < one["losses"][0]  # it learnt something


@pytest.mark.exhaustive
def test_a_process_may_have_no_scan_to_validate(tmp_path: Path, few_settling: None) -> None:
    one = trained_here(tmp_path / "one", 1)
    two = trained(tmp_path / "two", 1, ranks=2)
    assert two[0]["scores"] == two[1]["scores"]
    for (step, score), (step_of_two, score_of_two) in zip(
        one["scores"], two[0]["scores"], strict=True
    ):
        assert (step, score) == (step_of_two, pytest.approx(score_of_two, abs=1e-5))


@pytest.mark.exhaustive
def test_all_processes_stop_at_the_same_step(tmp_path: Path) -> None:
    first, second = trained(tmp_path / "two", 1, 2.0, ranks=2)
    assert len(first["losses"]) == len(second["losses"]) > 3
    assert_same_weights(first, second, atol=0)


def test_boxes_must_be_divided_evenly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"RANK": 0, "WORLD_SIZE": 3, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 3}.items():
        monkeypatch.setenv(name, str(value))
    scans = [labelled_scan(0)]
    patches = PatchDataModule(
        scans, LesionTask(), radius=2.6, box_size=4, n_boxes=4, validation=scans
    )
    with pytest.raises(ValueError, match="n_boxes must be a multiple of 3"):
        train(equivariant(), patches, Budget(steps=1), stopping=Stopping(), folder=tmp_path)
    patches = PatchDataModule(
        scans, LesionTask(), radius=2.6, box_size=4, n_boxes=3, validation=scans
    )
    with pytest.raises(ValueError, match="need a folder"):
        train(convolutional(), patches, Budget(steps=1), stopping=Stopping())


@given(st.integers(1, 7), st.integers(0, 40))
def test_shares_are_disjoint_whole_and_even(count: int, number: int) -> None:
    shares = [Rank(i, count).share(range(number)) for i in range(count)]
    assert sorted(task for share in shares for task in share) == list(range(number))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_nothing_needs_another_process() -> None:
    assert Rank.here({"RANK": "1"}) == ALONE
    with connected(ALONE):
        assert not torch.distributed.is_initialized()
        assert by_leader(ALONE, lambda: 3) == 3
        assert gather(ALONE, 4) == [4]


def test_a_rank_knows_its_machine() -> None:
    told = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    rank = Rank.here(told)
    assert (rank.machines, rank.leads, rank.local) == (2, False, 1)
