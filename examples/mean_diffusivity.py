"""Train a network for a map of mean diffusivity, on one simulated head; score it on another."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch.nn import functional as F
from torchmetrics import MeanAbsoluteError

from tripq.networks import VoxelNetwork
from tripq.networks.blocks import graph_radius
from tripq.simulate import GradientTable, default_anatomy, simulate_scan
from tripq.training import Budget, PatchDataModule, Task, score_scans, train


class MeanDiffusivity(Task):
    """Mean diffusivity in um2/ms, one number for every voxel."""

    name = "mean-diffusivity"
    score = "mean absolute error"
    mode = "min"

    def target(self, scan):
        """(V, 1): a third of the trace of D in signal = exp(-q D q), by least squares."""
        x, y, z = scan.dwi.q.T
        products = np.stack([x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z])
        tensors = -np.log(scan.dwi.signal.clip(0.01)) @ np.linalg.pinv(products)
        return tensors[:, :3].mean(axis=1, keepdims=True)

    def loss(self, output, target):
        """Mean squared error."""
        return F.mse_loss(output, target)

    def metric(self):
        """Mean absolute error."""
        return MeanAbsoluteError()


def main() -> None:
    """Train on one head, and print the error on the other before and after."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    torch.manual_seed(0)
    anatomy = default_anatomy(5.0).within((-60, -60, 0), (60, 60, 40))
    table = GradientTable.from_shells([1000.0], [20])
    scans = [simulate_scan(anatomy, table, seed) for seed in (1, 2)]
    task = MeanDiffusivity()
    network = VoxelNetwork(q_features="8x0e + 4x2e", p_features="8x0e + 2x1o", n_p_layers=1).eval()
    print(f"before: {score_scans(network, task, scans[1:]):.3f} um2/ms")
    patches = PatchDataModule(scans[:1], task, radius=graph_radius(network), box_size=12)
    train(network, patches, Budget(steps=parser.parse_args().steps))
    print(f"after: {score_scans(network, task, scans[1:]):.3f} um2/ms")


if __name__ == "__main__":
    main()
