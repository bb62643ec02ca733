"""Simulated heads of training, validation and tests, and what is shown of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tripq.scans import DWI
from tripq.simulate import GradientTable, Randomisation, default_anatomy, random_rotation
from tripq.tasks.fibres.simulate import SimulatedFibres, simulate_cohort, simulate_fibres
from tripq.tasks.signal.task import spread

SLAB = (-80.0, -110.0, -10.0), (80.0, 80.0, 50.0)
"""Part of the heads of the training, in mm: brain stem to corona radiata."""

TEST_SLAB = (-80.0, -110.0, 10.0), (80.0, 80.0, 30.0)
"""Part of the other heads: corpus callosum, corona radiata, and what crosses there."""

EDGES = (1.8, 2.5, 2.5)
"""Of the voxels of the training, in mm."""

EDGE = 2.5
"""Of the voxels of validation and tests."""

B_VALUES = (700.0, 3000.0)
"""Range of the training, in s/mm2; the heads are evenly spread in its logarithm."""

DIRECTIONS = (12, 64)
"""Range of the training."""

SNR = (12.0, 40.0)
"""Range of the training."""

CROSSINGS = (10.0, 35.0)
"""Range of the training: how much the angles of crossings vary, in degrees."""

VARIED = (
    *("heterogeneity", "gain_sd", "gain_scale", "axial_diffusivity", "stick_fraction"),
    *("gm_diffusivity", "gm_anisotropy", "csf_diffusivity", "gm_s0", "csf_s0"),
    *("crispness", "coherence", "noise_variation", "coils"),
)
"""What differs between the heads of the training besides, as in `Randomisation`."""

TEST_SNR = 20.0

SHOWN = (32, 12)
"""Directions of validation and tests; the second are some of the first."""


def training_heads(number: int, seed: int) -> Iterator[SimulatedFibres]:
    """Heads in all poses, of many tissues, b-values, gradient tables and levels of noise."""
    usual = Randomisation()
    ranges = {name: getattr(usual, name) for name in VARIED}
    randomisation = replace(Randomisation.none(), frequency=1.0, snr=SNR, **ranges)
    low, high = np.log(B_VALUES)
    for index in range(number):
        rng = np.random.default_rng((seed, index))
        b_value = np.exp(low + (high - low) * (index + rng.random()) / number)
        directions = int(rng.integers(DIRECTIONS[0], DIRECTIONS[1] + 1))
        table = GradientTable.from_shells([10 * round(b_value / 10)], [directions])
        yield simulate_fibres(
            default_anatomy(EDGES[index % len(EDGES)]).within(*SLAB),
            table.rotated(random_rotation(rng)),
            int(rng.integers(2**32)),
            name=f"training-{index:02}",
            crossings=rng.uniform(*CROSSINGS),
            rotation=random_rotation(rng),
            flip=bool(rng.integers(2)),
            **vars(randomisation.draw(rng)),
        )


def other_heads(number: int, seed: int, b_value: float) -> Iterator[SimulatedFibres]:
    """Heads of `TEST_SNR` and of the usual tissue: the same ones for every b-value."""
    table = GradientTable.from_shells([b_value], [max(SHOWN)])
    anatomy = default_anatomy(EDGE).within(*TEST_SLAB)
    yield from simulate_cohort(number, seed, anatomy=anatomy, table=table, snr=(TEST_SNR, TEST_SNR))


def with_directions(dwi: DWI, number: int) -> DWI:
    """A scan with so many of its directions, well spread."""
    return dwi.with_samples(np.concatenate([[0], 1 + spread(dwi.q[1:], number)]))


def white_matter(scan: SimulatedFibres, number: int, seed: int) -> NDArray[np.intp]:
    """Rows of so many voxels with known fibres, drawn at random; all, if there are not more."""
    rows = np.flatnonzero(scan.peaks[:, 0].any(axis=-1))
    chosen = np.random.default_rng(seed).permutation(rows)[:number]
    return np.sort(chosen)
