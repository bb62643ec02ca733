"""A core install without Triton: each line that it prints worked."""

from __future__ import annotations

import sys

import numpy as np
import torch

import tripq
from tripq import PQGraph, PQTensorFieldLayer
from tripq.backends.plan import Backend
from tripq.networks.checkpoint import load_network
from tripq.tasks.lesions.command import LesionCommands


def main() -> None:
    """Evaluate a layer and its gradients by several back ends, and read the weights."""
    sys.modules["triton"] = None  # type: ignore[assignment]  # as if it were not installed
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    graph = PQGraph.from_grid(np.ones((3, 3, 2)), affine, np.eye(3), radius=3.0)
    backends: tuple[Backend, ...] = ("auto", "edges", "triton")
    for backend in backends:  # the last one in plain torch, on a CPU
        layer = PQTensorFieldLayer("1x0e", "2x0e + 1x1o", p_radius=3.0, backend=backend)
        layer(torch.ones(18, 3, 1), graph).sum().backward()
        print("layer", backend)
    print("network", type(load_network(LesionCommands().included_weights())).__name__)
    print("version", tripq.__version__)


if __name__ == "__main__":
    main()
