"""The task: prediction of measured signal along directions that are hidden from the network."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import MeanSquaredError, Metric

from tripq.nn import all_modules
from tripq.scans import DWI
from tripq.tasks.signal.encoder import SignalEncoder
from tripq.tasks.signal.network import SignalPredictor
from tripq.training.batch import Batch
from tripq.training.task import Scan, Task

FEWEST, MOST = 6, 24
"""Directions of a shell that a network is shown in training."""

TRIALS = (6, 12, 20)
"""Directions of a shell that a network is shown in validation."""

_LEAST_ERROR = 1e-4  # of b0; for the derivative of the root


def spread(q: NDArray[np.floating], number: int, start: int = 0) -> NDArray[np.intp]:
    """Rows of well spread directions: each is the farthest from those before it.

    Parameters
    ----------
    q : (Q, 3) array
        Of any length but 0; opposite directions are the same.
    number : int
        Directions to choose, from 1 to Q.
    start : int
        The first.

    Returns
    -------
    (number,) int array
        Ascending.

    Examples
    --------
    >>> spread(np.array([[1.0, 0, 0], [1.0, 0.1, 0], [0, 1.0, 0], [0, 0, 1.0]]), 3)
    array([0, 2, 3])
    """
    unit = q / np.linalg.norm(q, axis=1, keepdims=True)
    chosen = [start]
    nearest = np.abs(unit @ unit[start])
    while len(chosen) < number:
        nearest[chosen[-1]] = np.inf
        chosen.append(int(np.argmin(nearest)))
        nearest = np.maximum(nearest, np.abs(unit @ unit[chosen[-1]]))
    return np.sort(chosen)


class SignalTask(Task):
    """Prediction of the signal of hidden directions, divided by b0.

    In training a random number of directions of each shell is shown, `FEWEST` to `MOST`, about
    evenly spread or at random; the others are hidden.  In validation `TRIALS` of them are shown.
    """

    name = "signal"
    score = "RMS error"
    mode = "min"

    def target(self, scan: Scan) -> NDArray[np.float32]:
        """The signal of every sample, (V, Q)."""
        return scan.dwi.signal

    def hidden(self, scan: Scan, rng: np.random.Generator) -> NDArray[np.intp]:
        """Directions that are not drawn; at least one of every shell is drawn."""
        shown = []
        for shell in scan.dwi.shells:
            if len(shell) == 1:
                shown.append(shell.indices)
                continue
            most = min(MOST, len(shell) - 1)
            few = min(FEWEST, most)
            number = int(np.exp(rng.uniform(np.log(few), np.log(most + 1))))
            # chosen from few directions they are spread at random, chosen from all of them evenly
            pool = rng.permutation(shell.indices)[: rng.integers(number, len(shell) + 1)]
            shown.append(pool[spread(scan.dwi.q[pool], number)])
        return _others(scan.dwi, shown)

    def trials(self, scan: Scan) -> Sequence[NDArray[np.intp]]:
        """For each number of `TRIALS`, the directions that are not among as many of each shell."""
        found = []
        for number in TRIALS:
            shells = [shell for shell in scan.dwi.shells if len(shell) > number]
            if shells:
                shown = [s.indices[spread(scan.dwi.q[s.indices], number)] for s in shells]
                whole = [s.indices for s in scan.dwi.shells if len(s) <= number]
                found.append(_others(scan.dwi, [*shown, *whole]))
        return found

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean over the voxels of the root mean square error of their hidden directions.

        The root lets noisy scans and voxels count less than their squares would.
        """
        known = ~target.isnan()
        error = torch.where(known, output - target.nan_to_num(), 0.0)
        squares = error.square().sum(dim=-1) / known.sum(dim=-1).clamp(min=1)
        return (squares + _LEAST_ERROR**2).sqrt().mean()

    def metric(self) -> Metric:
        """Root mean square error over all voxels and hidden directions of all trials."""
        metric = MeanSquaredError(squared=False)
        metric.update(torch.empty(0), torch.empty(0))  # has a value without a scan
        return metric

    @torch.no_grad()
    def initialise(
        self, network: nn.Module, batch: Batch, kept: Collection[nn.Module] = ()
    ) -> None:
        """Measure the scales of the network, and scale the weights."""
        if isinstance(network, SignalPredictor) and network.blocks not in all_modules(kept):
            network.measure(batch.signal, batch.graph)
        if isinstance(network, SignalEncoder):
            network.measure(batch.signal, batch.graph, batch.target)
        super().initialise(network, batch, kept)

    def check(self, scans: Sequence[Scan], purpose: Literal["training", "validation"]) -> None:
        """Reject scans of which no direction can be hidden."""
        for scan in scans:
            if not any(len(shell) > FEWEST for shell in scan.dwi.shells):
                raise ValueError(
                    f"{scan.dwi.path or 'scan'}: no shell has more than {FEWEST} directions; "
                    f"{purpose} shows {FEWEST} or more of them and predicts the others"
                )


def _others(dwi: DWI, shown: Sequence[NDArray[np.intp]]) -> NDArray[np.intp]:
    """The diffusion-weighted samples that are not shown."""
    return cast(
        "NDArray[np.intp]", np.setdiff1d(np.arange(1, len(dwi.b_values)), np.concatenate(shown))
    )
