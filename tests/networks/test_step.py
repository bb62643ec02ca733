"""How many operations a training step takes: on a GPU each of them is a launch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.strategies import table_of
from tripq import PQGraph, PQTensorFieldLayer
from tripq.networks.blocks import graph_radius
from tripq.tasks.lesions.segmenter import LesionSegmenter

#: What reserves memory or looks at a tensor otherwise, without touching its numbers.
FREE = (
    *("detach", "alias", "empty", "new_empty", "empty_like", "_unsafe_view", "lift_fresh"),
    *("device", "_record_function_enter_new", "_record_function_exit"),
)


class Counted(TorchDispatchMode):
    """Count the operations that are evaluated; one of this library counts as one."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if not function.is_view and name not in FREE:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


def operations_of(step: Callable[[], object]) -> Counter[str]:
    """Of a step as on a GPU: operators of this library are not evaluated, so it needs none."""
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True):
        patch.setenv("TRITON_INTERPRET", "1")
        step()  # makes what is kept
        with Counted() as counted:
            step()
    return counted.counts


@pytest.mark.parametrize(
    "backend", ["dense", pytest.param("fourier", marks=pytest.mark.exhaustive)]
)
def test_a_training_step_of_the_default_network_is_at_most_150_operations(backend: str) -> None:
    torch.manual_seed(0)
    network = LesionSegmenter()
    for layer in network.modules():
        if isinstance(layer, PQTensorFieldLayer):
            layer.backend = backend  # type: ignore[assignment]
    q = table_of(0, 7)
    scans = [
        PQGraph.from_grid(np.ones((n, 4, 4)), np.diag([2.0, 2, 2, 1]), q, graph_radius(network))
        for n in (4, 5, 6, 7)
    ]
    graph = PQGraph.merge(scans)
    signal = torch.rand(graph.n_voxels, len(q))
    network(signal, graph)  # what is kept has numbers

    def step() -> None:
        network.zero_grad()
        network(signal, graph).square().mean().backward()

    counts = operations_of(step)
    assert counts["gate"] == counts["gate_backward"] == 4, "one for each block"
    assert counts.total() <= 150, counts.most_common()
