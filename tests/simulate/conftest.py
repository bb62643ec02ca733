from __future__ import annotations

import numpy as np
import pytest

from tripq.simulate import Anatomy, GradientTable, default_anatomy


@pytest.fixture(scope="session")
def anatomy() -> Anatomy:
    """The default anatomy with large voxels, so that a subject takes a moment."""
    return default_anatomy(4.0)


@pytest.fixture(scope="session")
def table() -> GradientTable:
    return GradientTable.from_shells([1000.0], [32])


@pytest.fixture
def block() -> Anatomy:
    """White matter in which two fibres cross, under a layer of grey matter, in voxels of 2 mm."""
    shape = (9, 9, 9)
    wm = np.ones(shape, np.float32)
    gm = np.zeros(shape, np.float32)
    wm[..., -2:], gm[..., -2:] = 0.0, 1.0
    directions = np.zeros((*shape, 2, 3), np.float32)
    directions[..., 0, :] = 1.0, 0.0, 0.0
    directions[..., 1, :] = 0.0, 0.6, 0.8
    weights = np.broadcast_to(np.float32([0.5, 0.3]), (*shape, 2)).copy()
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -8.0
    return Anatomy(
        wm, gm, np.zeros(shape, np.float32), np.ones(shape, bool), directions, weights, affine
    )
