"""An anatomy found again in a head that was made of it."""

from __future__ import annotations

import numpy as np
import pytest

from tripq.simulate import (
    Anatomy,
    GradientTable,
    default_anatomy,
    random_rotation,
    simulate_scan,
)
from tripq.simulate.pose import random_pose
from tripq.simulate.registration import register_anatomy
from tripq.simulate.scan import MODIFIER_STREAMS


@pytest.mark.exhaustive
@pytest.mark.parametrize("slab", [False, True])
def test_points_of_a_simulated_head_are_found(slab: bool) -> None:
    """The head is turned by 15 degrees and deformed by 3 mm; the truth is its pose."""
    anatomy: Anatomy = default_anatomy(4.0)
    seed, rotation = 1, random_rotation(np.random.default_rng(0), 15.0)
    scanned = anatomy.within((-90, -130, 0), (90, 90, 60)) if slab else anatomy
    table = GradientTable.from_shells([1000.0], [20])
    dwi = simulate_scan(scanned, table, seed, rotation=rotation).dwi
    stream = np.random.SeedSequence(seed).spawn(MODIFIER_STREAMS + 1)[MODIFIER_STREAMS]
    pose = random_pose(
        scanned.grid, scanned.centre, np.random.default_rng(stream), rotation=rotation
    )
    truth = pose.to_anatomy(dwi.voxel_centres())
    found = register_anatomy(anatomy, dwi)
    error = np.linalg.norm(found - truth, axis=1)
    turned = np.linalg.norm(dwi.voxel_centres() - truth, axis=1)
    print(f"median error {np.median(error):.1f} mm, before {np.median(turned):.1f} mm")
    assert np.median(error) < 3.0
    assert np.quantile(error, 0.9) < 6.0
