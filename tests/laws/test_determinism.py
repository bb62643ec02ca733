"""One seed, one result: weights and maps are equal bit by bit, whatever process makes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.commands.test_train import CONFIG, write_labelled
from tests.laws.conftest import assert_same, make_head, segment, tripq
from tests.processes import COMMAND, Forked
from tests.training.test_training import boxes, equivariant
from tripq import PQTensorFieldLayer
from tripq.commands import segmenting
from tripq.networks.checkpoint import load_network
from tripq.tasks.lesions.command import LesionCommands
from tripq.tasks.lesions.segmentation import load_model
from tripq.tasks.lesions.segmentation import segment as segment_scan
from tripq.training import Budget, train


def put_on(network: torch.nn.Module, backend: str) -> torch.nn.Module:
    """Let all layers be evaluated by one back end."""
    for module in network.modules():
        if isinstance(module, PQTensorFieldLayer):
            module.backend = backend
    return network


def assert_equal_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    pairs = zip(first.state_dict().items(), second.state_dict().values(), strict=True)
    for (name, a), b in pairs:
        assert torch.equal(a, b), name


def test_two_processes_train_the_same_weights_and_make_the_same_map(tmp_path: Path) -> None:
    """Sets and dicts of strings are in another order in the second process."""
    data, config = tmp_path / "data", tmp_path / "train.toml"
    for name in ("sub-01", "sub-02", "sub-03"):
        write_labelled(data, name)
    config.write_text(CONFIG)
    arguments = ("train", data, "--config", config, "--device", "cpu", "-o")
    here, there = tmp_path / "here", tmp_path / "there"
    tripq(*arguments, here)
    threads = torch.get_num_threads()  # sums over threads differ with their number
    first = f"import torch; torch.set_num_threads({threads}); print(hash('a'))\n"
    process = Forked(first + COMMAND, *arguments, there, cwd=tmp_path)
    shown, errors = process.communicate()
    assert process.returncode == 0, errors
    assert int(shown.splitlines()[0]) != hash("a")

    files = [folder / "lesion-segmenter.safetensors" for folder in (here, there)]
    assert files[0].read_bytes() == files[1].read_bytes()  # with all notes
    assert_equal_weights(*map(load_network, files))
    head = make_head()
    first, second = (
        segment(head, tmp_path / f"map-{i}", "--weights", file).volume
        for i, file in enumerate(files)
    )
    assert first[head.brain].std() > 1e-3
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("device", "backend"),
    [
        ("cpu", "dense"),
        ("cpu", "fourier"),
        ("cpu", "recoupled"),
        ("cpu", "triton"),  # in plain torch
        pytest.param("cuda", "triton", marks=pytest.mark.gpu),
    ],
)
def test_one_seed_gives_one_network_and_one_map(
    device: str, backend: str, few_settling: None
) -> None:
    first, second = (put_on(equivariant(), backend) for _ in range(2))
    for network in (first, second):
        train(network, boxes(seed=3), Budget(steps=2), device=device)
    assert_equal_weights(first, second)
    untrained = equivariant().state_dict()
    assert any(not torch.equal(v.cpu(), untrained[k]) for k, v in first.state_dict().items())
    scan = boxes().patches.scans[0].dwi
    maps = [segment_scan(network.to(device), scan, device=device) for network in (first, second)]
    assert maps[0].std() > 1e-3
    np.testing.assert_array_equal(*maps)


@pytest.mark.gpu
def test_a_gpu_gives_the_map_of_the_cpu_and_always_the_same(
    written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the Triton kernels, through the whole program."""
    head = make_head()
    expected = written(head).volume
    model = load_model(LesionCommands().included_weights())
    put_on(model.network, "triton")
    monkeypatch.setattr(segmenting, "load_model", lambda path: model)
    first, second = (
        segment(head, tmp_path / run, "--device", "cuda").volume for run in ("first", "second")
    )
    np.testing.assert_array_equal(first, second)
    assert_same(first, expected)
