"""Train on the lower half of a brain; compare with tuned harmonics on the upper half."""

from __future__ import annotations

import argparse
from types import SimpleNamespace

import numpy as np

from tripq.networks.blocks import graph_radius, predict_blocks
from tripq.networks.harmonics import HarmonicFit
from tripq.scans import read_dwi
from tripq.tasks.signal.network import SignalPredictor
from tripq.tasks.signal.task import TRIALS, SignalTask
from tripq.training import Budget, PatchDataModule, train
from tripq.training.patches import hide


def error(network, half, hidden):
    """RMS error of directions that are not shown."""
    shown, known, q = hide(half.dwi, half.dwi.signal, hidden)
    return np.sqrt(np.mean((predict_blocks(network, shown, q_out=q) - known) ** 2))


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("files", nargs=4, metavar="FILE", help="scan, bval, bvec and mask")
parser.add_argument("--seconds", type=float, default=300)
given, task = parser.parse_args(), SignalTask()
dwi = read_dwi(*given.files)
dwi = dwi.with_voxels(dwi.volume(dwi.b0 > np.median(dwi.b0) / 3))  # the others are mostly noise
below = dwi.volume(dwi.voxel_centres()[:, 2] < np.median(dwi.voxel_centres()[:, 2]))
lower, upper = (SimpleNamespace(dwi=dwi.with_voxels(half)) for half in (below, ~below))
network = SignalPredictor()
patches = PatchDataModule([lower], task, radius=graph_radius(network), box_size=12, n_boxes=2)
train(network, patches, Budget(seconds=given.seconds), learning_rate=4e-3)
fits = [HarmonicFit(l, w).eval() for l in (2, 4, 6, 8) for w in np.geomspace(5e-4, 0.03, 7)]
for number, hidden in zip(TRIALS, task.trials(lower), strict=False):
    tuned = fits[np.argmin([error(fit, lower, hidden) for fit in fits])]
    errors = f"{error(network, upper, hidden):.4f}, harmonics {error(tuned, upper, hidden):.4f}"
    print(f"{number} directions: network {errors}")
