"""Small heads of four classes: fibres, cortex, fluid, and a few voxels of lesion."""

from __future__ import annotations

import numpy as np

from tripq.scans import DWI
from tripq.simulate import GradientTable
from tripq.tasks.tissue.classes import UNLABELLED, Classes
from tripq.tasks.tissue.scans import LabelledScan

CLASSES = Classes(("white matter", "grey matter", "fluid", "lesion"), ("WM", "GM", "CSF", "lesion"))
SHAPE = (9, 8, 8)


def head(
    seed: int, directions: int = 12, turn: np.ndarray | None = None, noise: float = 0.03
) -> LabelledScan:
    """A ball whose fibres, and the table, are turned; a tenth of its voxels has no label."""
    rng = np.random.default_rng(seed)
    turn = np.eye(3) if turn is None else turn
    table = GradientTable.from_shells([1000.0], [directions])
    q = np.where(table.b0[:, None], 0.0, table.directions) @ turn.T
    place = np.indices(SHAPE).reshape(3, -1).T - (np.array(SHAPE) - 1) / 2
    radius = np.linalg.norm(place, axis=1)
    mask = radius < 4
    place, radius = place[mask], radius[mask]
    labels = np.where(radius > 3, 1, np.where(place[:, 0] < -1.5, 2, 0))
    labels[np.linalg.norm(place - [1.5, 0.5, 0.5], axis=1) < 1.3] = 3
    angle = 0.2 * place[:, 1] + rng.uniform(0, np.pi)
    along = np.stack([np.cos(angle), np.sin(angle), np.full_like(angle, 0.4)], axis=1) @ turn.T
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    mean, anisotropy = np.array([[0.3, 1.4], [0.8, 0.0], [2.8, 0.0], [0.7, 0.7]])[labels].T
    exponent = mean[:, None] * (q**2).sum(axis=1) + anisotropy[:, None] * (along @ q.T) ** 2
    signal = np.exp(-exponent) + noise * rng.normal(size=exponent.shape)
    signal[:, 0] = 1.0
    dwi = DWI(
        signal=signal.clip(min=0).astype(np.float32),
        b_values=table.b_values,
        q=q,
        mask=mask.reshape(SHAPE),
        affine=np.diag([2.0, 2.0, 2.0, 1.0]),
        b0=np.full(len(signal), 1000, np.float32),
    )
    labels[rng.uniform(size=len(labels)) < 0.1] = UNLABELLED
    return LabelledScan(f"sub-{seed:02}", dwi, labels.astype(np.int8), CLASSES)
