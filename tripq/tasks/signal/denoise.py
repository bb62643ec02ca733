r"""Denoising: every volume is predicted from the others, which do not contain its noise.

The directions of a shell are split into folds, each spread over the sphere, and those of a fold are
predicted from all others:

.. math::
    \hat s_k = f(s_{j},\ j \notin \text{fold}(k)).

The prediction is therefore independent of the noise of the volume itself (the principle of Batson
and Royer, "Noise2Self", ICML 2019, and of Fadnavis et al., "Patch2Self", NeurIPS 2020), and the
residual :math:`s_k - \hat s_k` is that noise and the error of the prediction.  There are `FOLDS`
predictions instead of one for each volume; each hides an eighth of the directions.

The measurement is not averaged with the prediction.  The best weight would be
:math:`\tau^2 / (\tau^2 + \sigma^2)` for noise :math:`\sigma` and errors :math:`\tau` of the
prediction, but both can only be estimated together, from the same residual; a wrong estimate would
return noise, and the result would no longer be independent of it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tripq.domain.batch import pad_rows
from tripq.domain.graph import PQGraph
from tripq.domain.qspace import QShells
from tripq.domain.scan_graph import ScanGraph
from tripq.networks.shell import shared_directions, shells
from tripq.scans import DWI, DWIError
from tripq.scans.shells import count_directions
from tripq.tasks.signal.network import SignalPredictor
from tripq.tasks.signal.task import FEWEST

FOLDS = 8
"""Into which the directions of a shell are split; of fewer directions every one is a fold."""

_ROUNDING = 6  # decimals of cosines: rounding must not decide between directions equally far


def split_folds(q: NDArray[np.floating], number: int = FOLDS) -> list[NDArray[np.intp]]:
    """Split directions into folds of about equal size, each spread over the sphere.

    The folds choose in turn; each takes the direction that is farthest from its own, so that what
    is near a direction is in other folds.  Directions and their opposites are the same, and the
    folds turn with the directions.

    Parameters
    ----------
    q : (Q, 3) array
        Of any length but 0.
    number : int
        Of folds; if there are fewer directions, each is a fold.

    Returns
    -------
    list of (n,) int arrays
        Rows of the directions of each fold, ascending.

    Examples
    --------
    >>> near_x, near_y = [[1.0, 0, 0], [1.0, 0.1, 0]], [[0, 1.0, 0], [0, 1.0, 0.1]]
    >>> split_folds(np.array([*near_x, *near_y]), 2)
    [array([0, 2]), array([1, 3])]
    """
    unit = q / np.linalg.norm(q, axis=1, keepdims=True)
    near = np.abs(unit @ unit.T).round(_ROUNDING)
    nearest = np.zeros((min(number, len(q)), len(q)))  # cosine to the nearest of each fold
    folds: list[list[int]] = [[] for _ in nearest]
    for turn in range(len(q)):
        fold = turn % len(folds)
        chosen = int(np.argmin(nearest[fold]))
        folds[fold].append(chosen)
        nearest[fold] = np.maximum(nearest[fold], near[chosen])
        nearest[:, chosen] = np.inf
    return [np.sort(fold) for fold in folds]


class Denoiser(nn.Module):
    """Prediction of every volume of a scan from the others of its shell.

    Parameters
    ----------
    network : SignalPredictor
        Predicts the folds.

    Examples
    --------
    >>> from tripq.simulate import GradientTable
    >>> q = GradientTable.from_shells([1000.0], [12]).directions
    >>> graph = PQGraph.from_grid(np.ones((5, 5, 5)), np.diag([2.0, 2, 2, 1]), q, 4.0)
    >>> Denoiser(SignalPredictor())(torch.rand(125, 13), graph).shape
    torch.Size([125, 13])
    """

    def __init__(self, network: SignalPredictor) -> None:
        super().__init__()
        self.network = network

    def forward(self, signal: Tensor, graph: PQGraph) -> Tensor:
        """The signal at the directions of the input, each predicted without its own fold.

        Parameters
        ----------
        signal : Tensor of shape (V, Q)
            Signal divided by b0.
        graph : PQGraph
            The voxels and the directions.

        Returns
        -------
        Tensor of shape (V, Q)
            1 at q = 0.
        """
        parts = graph.by_scan(signal)
        return pad_rows([self._on_scan(part, scan) for scan, part in parts])

    def _on_scan(self, signal: Tensor, scan: ScanGraph) -> Tensor:
        space, graph = shared_directions(scan), PQGraph([scan])
        q = space.q_in
        output = torch.ones_like(signal)
        for shell in shells(space):
            for fold in split_folds(q[shell].cpu().numpy()):
                hidden = torch.zeros(len(shell), dtype=torch.bool, device=q.device)
                hidden[torch.from_numpy(fold)] = True
                wanted, shown = shell[hidden], shell[~hidden]
                values = self.network.along(q[wanted], signal[:, shown], q[shown], graph)
                output = output.index_copy(1, wanted, values)
        return output


def check_denoising(dwi: DWI) -> None:
    """Check that every volume can be predicted from others.

    Raises
    ------
    DWIError
        If there is no shell, or one has no more than `tripq.tasks.signal.task.FEWEST` directions.
    """
    if not dwi.shells:
        raise DWIError(f"{dwi.path or 'scan'}: no diffusion-weighted volume to denoise.")
    for member in QShells.of(torch.from_numpy(dwi.q)).member.numpy()[1:]:
        if (count := count_directions(dwi.q[member])) <= FEWEST:
            raise DWIError(
                f"{dwi.path or 'scan'}: b = {dwi.b_values[member].mean():.0f} s/mm2 has {count} "
                f"directions; denoising predicts each from {FEWEST} or more others of its shell. "
                "Choose the shells with --shell."
            )
