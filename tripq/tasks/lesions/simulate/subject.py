"""Simulated subjects with multiple sclerosis: a diffusion scan and its true lesions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tripq.scans import DWI, write_dwi, write_map
from tripq.simulate import (
    Anatomy,
    Artefacts,
    Constants,
    GradientTable,
    Grid,
    Heterogeneity,
    default_anatomy,
    random_settings,
    simulate_scan,
)
from tripq.tasks.lesions.simulate.draw import LesionStatistics
from tripq.tasks.lesions.simulate.modifier import LesionEffect, Lesions


@dataclass(frozen=True, eq=False)
class Subject:
    """One simulated subject. V voxels are in the order of ``np.argwhere(dwi.mask)``.

    Parameters
    ----------
    dwi : DWI
        The simulated scan.
    coverage : (V,) float32 array
        Lesion fraction of each voxel.
    seed : int
        Seed of the simulation.
    """

    dwi: DWI
    coverage: NDArray[np.float32]
    seed: int

    @property
    def lesion(self) -> NDArray[np.bool_]:
        """Voxels with a coverage of half or more, (V,)."""
        return self.coverage >= 0.5

    def __repr__(self) -> str:
        return f"Subject(seed={self.seed}, {self.lesion.sum():,} lesion voxels, {self.dwi})"


def simulate_subject(
    anatomy: Anatomy,
    table: GradientTable,
    seed: int,
    *,
    snr: float = 20.0,
    rotation: NDArray[np.floating] | None = None,
    flip: bool = False,
    deformation: float = 3.0,
    lesion_coverage: NDArray[np.float32] | None = None,
    grid: Grid | None = None,
    constants: Constants | None = None,
    heterogeneity: Heterogeneity | None = None,
    artefacts: Artefacts | None = None,
    statistics: LesionStatistics | None = None,
    effect: LesionEffect | None = None,
) -> Subject:
    """Simulate one subject: `tripq.simulate.simulate_scan` with `Lesions` of the same seed.

    Parameters
    ----------
    anatomy : Anatomy
        Anatomy common to all subjects.
    table : GradientTable
        Gradient table, in world axes; it does not rotate with the head.
    seed : int
        Seed of all random numbers.
    snr, rotation, flip, deformation, grid, constants, heterogeneity, artefacts : optional
        Arguments of `tripq.simulate.simulate_scan`.  Lesions move with a distortion: the coverage
        is that seen in the distorted scan.
    lesion_coverage : (X, Y, Z) float32 array, optional
        Real lesions instead of drawn ones: the lesion fraction of each voxel of the anatomy.
    statistics : LesionStatistics, optional
        Distribution of drawn lesions, and severity of all lesions.
    effect : LesionEffect, optional
        Effect of lesions on tissue.

    Returns
    -------
    Subject

    Raises
    ------
    SimulationError
        If an argument is invalid, or no voxel of the mask is on the grid.

    Examples
    --------
    >>> from tripq.simulate import GradientTable, default_anatomy
    >>> table = GradientTable.from_shells([1000.0], [12])
    >>> subject = simulate_subject(default_anatomy(4.0), table, seed=1)
    >>> subject.dwi
    DWI(... voxels of 4 x 4 x 4 mm, 12 directions, shells b=1000 (12))
    """
    lesions = Lesions.draw(
        anatomy, seed, coverage=lesion_coverage, statistics=statistics, effect=effect
    )
    scan = simulate_scan(
        anatomy,
        table,
        seed,
        [lesions],
        snr=snr,
        rotation=rotation,
        flip=flip,
        deformation=deformation,
        grid=grid,
        constants=constants,
        heterogeneity=heterogeneity,
        artefacts=artefacts,
    )
    return Subject(scan.dwi, scan.coverages[0], seed)


def simulate_cohort(
    n: int,
    seed: int,
    *,
    anatomy: Anatomy | None = None,
    table: GradientTable | None = None,
    snr: tuple[float, float] = (15.0, 25.0),
    max_rotation: float = 10.0,
    vary_table: bool = True,
    statistics: LesionStatistics | None = None,
    lesion_coverages: Sequence[NDArray[np.float32]] | None = None,
) -> Iterator[Subject]:
    """Simulate subjects one at a time, of individual shapes, half of them flipped.

    Parameters
    ----------
    n : int
        Number of subjects.
    seed : int
        Seed of all random numbers.  Subject i is independent of n.
    anatomy : Anatomy, optional
        The default is ``default_anatomy()``.
    table : GradientTable, optional
        The default has one b0 volume and 32 directions at b = 1000 s/mm2.
    snr : (float, float), optional
        Range of the signal-to-noise ratio of normal white matter at b = 0; uniform.
    max_rotation : float, optional
        Maximum rotation of a head in degrees.
    vary_table : bool, optional
        Rotate the table at random, and reverse random directions, for every subject.
    statistics : LesionStatistics, optional
        Distribution of drawn lesions, and severity of all lesions.
    lesion_coverages : sequence of (X, Y, Z) arrays, optional
        Real lesions on the grid of the anatomy instead of drawn ones, one for each subject,
        repeated if there are more subjects.

    Yields
    ------
    Subject

    Raises
    ------
    SimulationError
        If an argument is invalid.

    Examples
    --------
    >>> from tripq.simulate import default_anatomy
    >>> small = default_anatomy(4.0).within((-80, -110, 0), (80, 80, 40))
    >>> [subject.dwi.q.shape for subject in simulate_cohort(2, seed=0, anatomy=small)]
    [(33, 3), (33, 3)]
    """
    anatomy = anatomy or default_anatomy()
    cohort = random_settings(
        n, seed, table=table, snr=snr, max_rotation=max_rotation, vary_table=vary_table
    )
    for settings, coverage in zip(cohort, cycle(lesion_coverages or [None]), strict=False):
        yield simulate_subject(
            anatomy, **vars(settings), statistics=statistics, lesion_coverage=coverage
        )


def write_subject(subject: Subject, folder: str | PathLike[str]) -> None:
    """Write a subject in files for `tripq.scans.read_dwi` and other programs.

    ``dwi.nii.gz`` with ``dwi.bval`` and ``dwi.bvec`` (frame of FSL), ``mask.nii.gz``,
    ``lesion.nii.gz`` and ``coverage.nii.gz``. The b0 volumes are averaged to one, the first.

    Parameters
    ----------
    subject : Subject
        The subject.
    folder : path
        Created if it does not exist; files of these names are replaced.
    """
    folder = Path(folder)
    dwi = subject.dwi
    write_dwi(dwi, folder / "dwi.nii.gz")
    write_map(np.ones(len(dwi.b0), dtype=bool), dwi, folder / "mask.nii.gz")
    write_map(subject.lesion, dwi, folder / "lesion.nii.gz")
    write_map(subject.coverage, dwi, folder / "coverage.nii.gz")
