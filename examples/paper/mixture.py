"""Simulated scans with many samplings of the training patients, for a network of all of them.

Each condition has a voxel size, a gradient table and noise of its own, and a few of the patients;
together they cover what research scanners do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from paper.plan import SNR, USUAL, Condition, VoxelSize
from tripq.simulate import GradientTable

#: Anisotropic voxels of the mixture, mm.
SLICES = (1.75, 1.75, 3.0)

#: How many of the training patients are scanned under each condition.
PATIENTS = 5


def _condition(
    number: int,
    voxel_size: VoxelSize,
    shells: dict[int, int],
    snr: float,
    *,
    any_pose: bool = True,
    randomised: bool = False,
) -> Condition:
    """Heads of their own, in any pose with a turned table, or in a usual pose."""
    b_values = " and ".join(f"{b:g}" for b in shells)
    edges = voxel_size if isinstance(voxel_size, tuple) else (voxel_size,)
    size = " x ".join(f"{edge:g}" for edge in edges)
    return Condition(
        f"mixture-{number:02}",
        f"{size} mm, {sum(shells.values())} directions, b = {b_values}"
        + (", randomised" if randomised else ""),
        GradientTable.from_shells(list(shells), list(shells.values())),
        max_rotation=180.0 if any_pose else 10.0,
        pose=10 + number,
        turn_tables=any_pose,
        seed=10 + number,
        voxel_size=voxel_size,
        snr=snr,
        randomised=randomised,
    )


#: b-values in s/mm2 and directions on each shell; signal-to-noise ratios fall with the voxels.
MIXTURE = (
    _condition(1, 2.0, {1000: 32}, 20.0, any_pose=False),
    _condition(2, 2.0, {1000: 64}, 15.0),
    _condition(3, 2.0, {1000: 24, 2000: 24}, 25.0),
    _condition(4, 2.5, {1000: 12}, 30.0),
    _condition(5, 2.5, {1000: 32}, 30.0, any_pose=False),
    _condition(6, 2.5, {700: 16, 1500: 32}, 25.0),
    _condition(7, 1.5, {1000: 24}, 12.0),
    _condition(8, 1.5, {1000: 48}, 15.0, any_pose=False),
    _condition(9, SLICES, {1000: 32}, 25.0),
    _condition(10, SLICES, {1000: 16}, 30.0, any_pose=False),
    _condition(11, 2.5, {2000: 32}, 30.0),
    _condition(12, 2.0, {1500: 20}, 25.0),
    _condition(13, 2.5, {1000: 16}, 35.0),
    _condition(14, 2.0, {1000: 48}, 20.0, any_pose=False),
    _condition(15, SLICES, {1000: 24, 2000: 24}, 20.0),
    _condition(16, 2.5, {1000: 64}, 20.0),
    *(
        _condition(number, voxel_size, shells, SNR, randomised=True)
        for number, voxel_size, shells in (
            (17, 2.0, {1000: 32}),
            (18, 2.0, {1000: 24, 2000: 24}),
            (19, 2.5, {1000: 16}),
            (20, 2.5, {1000: 48}),
            (21, SLICES, {1000: 32}),
            (22, 2.5, {700: 16, 2000: 32}),
            (23, 2.0, {1000: 20}),
            (24, 2.5, {1500: 32}),
        )
    ),
)


def shares(
    mixture: Sequence[Condition], training: Sequence[str], size: int = PATIENTS
) -> Iterator[tuple[Condition, list[str]]]:
    """The patients of each condition, in turn: all patients are scanned equally often.

    Examples
    --------
    >>> [patients for _, patients in shares(MIXTURE[:3], ["01", "02", "03", "04"], size=2)]
    [['01', '02'], ['03', '04'], ['01', '02']]
    """
    for number, condition in enumerate(mixture):
        first = number * size
        some = range(first, first + min(size, len(training)))
        yield condition, [training[i % len(training)] for i in some]


@dataclass(frozen=True)
class Mixture:
    """All simulated scans of a training.

    Parameters
    ----------
    training : tuple of Condition
        Each with `n_patients` of the training patients.
    validation : tuple of Condition
        Each with all validation patients.
    n_patients : int
        See `training`.
    """

    training: tuple[Condition, ...]
    validation: tuple[Condition, ...]
    n_patients: int = PATIENTS


FULL_MIXTURE = Mixture(
    MIXTURE,
    (
        USUAL,
        _condition(30, 2.5, {1000: 20}, 30.0),
        _condition(31, SLICES, {1000: 24, 2000: 24}, 20.0),
    ),
)

#: Scans on other grids that the network is tested with.
GRIDS = tuple(
    _condition(number, voxel_size, {1000: 32}, SNR, any_pose=False)
    for number, voxel_size in ((40, 1.5), (41, 2.5), (42, 3.0), (43, SLICES))
)
