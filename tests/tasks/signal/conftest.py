"""Scans of fibres with noise, in which neighbours know more than a voxel."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from tripq.scans import DWI
from tripq.simulate import GradientTable


def fibres(seed: int, numbers: tuple[int, ...] = (30,), noise: float = 0.05) -> SimpleNamespace:
    """A ball of tensors whose directions turn slowly, with shells of some numbers of directions."""
    rng = np.random.default_rng(seed)
    table = GradientTable.from_shells([1000.0 * (i + 1) for i in range(len(numbers))], numbers)
    shape = (9, 9, 8)
    place = np.indices(shape).reshape(3, -1).T - 4.0
    mask = (place**2).sum(axis=1) < 17
    angle = 0.15 * place[mask] @ rng.normal(size=3) + rng.uniform(0, np.pi)
    along = np.stack([np.cos(angle), np.sin(angle), np.full_like(angle, 0.5)], axis=1)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    q = np.sqrt(table.b_values / 1000)[:, None] * np.where(table.b0[:, None], 0, table.directions)
    exponent = 0.3 * (q**2).sum(axis=1) + 1.2 * (along @ q.T) ** 2
    signal = np.exp(-exponent) + noise * rng.normal(size=exponent.shape)
    signal[:, 0] = 1.0
    dwi = DWI(
        signal=signal.astype(np.float32),
        b_values=table.b_values,
        q=q,
        mask=mask.reshape(shape),
        affine=np.diag([2.0, 2.0, 2.5, 1.0]),
        b0=np.full(len(signal), 1000, np.float32),
    )
    return SimpleNamespace(dwi=dwi, name=f"sub-{seed:02}")


@pytest.fixture
def fibre_scan() -> SimpleNamespace:
    return fibres(0)
