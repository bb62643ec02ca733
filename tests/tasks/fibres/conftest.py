"""Simulated heads with known fibres, so small that a network sees them at once."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from tripq.simulate import Anatomy, GradientTable, default_anatomy
from tripq.tasks.fibres.simulate import FibreScan, simulate_fibres


@cache
def small_anatomy() -> Anatomy:
    """A part of the white matter above the ventricles."""
    return default_anatomy(4.0).within((-36, -40, 20), (36, 20, 36))


@cache
def fibre_head(seed: int, number: int = 14, snr: float = 30.0) -> FibreScan:
    table = GradientTable.from_shells([1000.0], [number])
    return simulate_fibres(small_anatomy(), table, seed, snr=snr)


@cache
def scaled_head(seed: int, number: int = 14) -> FibreScan:
    """In units of its response, as networks take it."""
    return fibre_head(seed, number).scaled()


@pytest.fixture
def head() -> FibreScan:
    return fibre_head(0)


def angle(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Degrees between axes, (..., 3)."""
    across = np.linalg.norm(np.cross(one, other), axis=-1)  # exact for small angles
    return np.degrees(np.arctan2(across, np.abs((one * other).sum(axis=-1))))
