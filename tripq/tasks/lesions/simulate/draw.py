"""Lesions of multiple sclerosis: number, size, position, shape and damage.

The numbers are statistics of the consensus outlines of 22 patients of Lesjak et al.,
Neuroinformatics (2017), doi:10.1007/s12021-017-9348-7 (CC-BY), scaled to the size of the ICBM152
template, on a grid of 2 mm.  A lesion is a connected component (26 neighbours) of the voxels with
a coverage of half or more.  The 22 patients have 6 to 191 lesions (median 40) with a total of 0.2
to 64 ml (median 15 ml), 64 to 95 % of it in white matter (median 85 %).  The lesions of a patient
have a median size of 4 voxels and a heavy tail up to 49 ml, where lesions have merged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from tripq.simulate import Anatomy, Grid, SimulationError, random_field


@dataclass(frozen=True)
class LesionStatistics:
    """Distribution of lesions.

    The sizes of a subject follow a power law, ``P(size > v) = (v / smallest) ** (-1 / m)``, that
    is, log(size / smallest) is exponential with mean m.  This single parameter per subject
    reproduces the mean, the spread and the tail of the measured sizes, and the correlation between
    patients of the mean and the standard deviation of log(size) (0.82).

    Parameters
    ----------
    count_log_mean, count_log_sd : float
        Mean and standard deviation of the natural logarithm of the number of lesions of a subject.
    tail_log_mean, tail_log_sd : float
        Mean and standard deviation of the natural logarithm of m; measured 0.51 and 0.29 above
        8 mm3, one voxel.
    smallest, largest : float
        Range of sizes in mm3.  These two and `tail_log_mean` are set so that the connected
        components of drawn lesions, some of which merge, are as large as those of the outlines.
    far_density, far_size, near_range : float
        Density in white matter of the starting points of lesions of size v, at distance d from the
        ventricles: proportional to ``far_density / (1 + v / far_size) + exp(-d / near_range)``, in
        mm3 and mm.  Small lesions occur everywhere, large ones near the ventricles.
    severity : (float, float)
        Range of the damage in the core of a lesion, uniform between lesions.  The values are
        assumed, because outlines contain no severity.
    """

    count_log_mean: float = 3.69
    count_log_sd: float = 0.97
    tail_log_mean: float = 0.42
    tail_log_sd: float = 0.28
    smallest: float = 11.0
    largest: float = 25_000.0
    far_density: float = 0.6
    far_size: float = 500.0
    near_range: float = 8.0
    severity: tuple[float, float] = (0.2, 0.8)

    def draw_sizes(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Sizes in mm3 of the lesions of one subject, largest first.

        Parameters
        ----------
        rng : numpy.random.Generator
            Random number generator.

        Returns
        -------
        (lesions,) array
            Sizes of at least one lesion.
        """
        count = max(1, round(rng.lognormal(self.count_log_mean, self.count_log_sd)))
        tail = rng.lognormal(self.tail_log_mean, self.tail_log_sd)
        # inverse of the distribution function of an exponential variable truncated at `limit`
        limit = np.log(self.largest / self.smallest) / tail
        exponent = -tail * np.log1p(rng.random(count) * np.expm1(-limit))
        return np.sort(self.smallest * np.exp(exponent))[::-1]


def draw_lesions(
    anatomy: Anatomy, rng: np.random.Generator, statistics: LesionStatistics | None = None
) -> NDArray[np.float32]:
    """Draw the lesions of one subject.

    A lesion starts at a point of the white matter, preferably near the ventricles, and fills the
    voxels that are nearest in an individual distance: that of a random ellipsoid, modulated by a
    smooth random field, and larger in grey matter than in white matter, so that the lesion stops at
    the cortex.  Fluid is never filled.  Lesions can touch and merge.

    Parameters
    ----------
    anatomy : Anatomy
        The head.
    rng : numpy.random.Generator
        Random number generator.
    statistics : LesionStatistics, optional
        Distribution of the lesions.

    Returns
    -------
    (X, Y, Z) float32 array
        Coverage: the lesion fraction of each voxel, with soft edges.

    Raises
    ------
    SimulationError
        If the anatomy has no white matter.
    """
    statistics = statistics or LesionStatistics()
    white = np.where((anatomy.wm > 0.25) & (anatomy.csf <= 0.5), anatomy.wm, 0.0)
    if not white.any():
        raise SimulationError("the anatomy has no white matter for lesions to start in.")
    everywhere = np.cumsum(white, dtype=np.float64)
    near = white * np.exp(-anatomy.ventricle_distance / statistics.near_range)
    near_ventricles = np.cumsum(near, dtype=np.float64)
    coverage = np.zeros(anatomy.mask.shape, dtype=np.float32)
    for size in statistics.draw_sizes(rng):
        far = statistics.far_density / (1 + size / statistics.far_size)
        cumulative = far * everywhere + near_ventricles
        seed = np.searchsorted(cumulative, cumulative[-1] * rng.random(), side="right")
        centre = np.array(np.unravel_index(seed, coverage.shape))
        box, lesion = _grow(anatomy, centre, size, rng)
        np.maximum(coverage[box], lesion, out=coverage[box])
    return coverage


def lesion_damage(
    coverage: NDArray[np.float32], severity: tuple[float, float], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Damage by lesions: coverage times the severity of each lesion.

    Parameters
    ----------
    coverage : (X, Y, Z) float32 array
        Lesion fraction of each voxel, drawn or from real outlines.
    severity : (float, float)
        Range between 0 and 1 for the severity of every connected lesion.
    rng : numpy.random.Generator
        Random number generator.

    Returns
    -------
    (X, Y, Z) float32 array
        Damage; 0 where the coverage is 0.

    Raises
    ------
    SimulationError
        If the coverage is outside [0, 1].

    Examples
    --------
    >>> coverage = np.zeros((5, 1, 1), np.float32)
    >>> coverage[[0, 1, 4], 0, 0] = 1.0, 0.5, 1.0
    >>> lesion_damage(coverage, (0.5, 0.5), np.random.default_rng(0)).ravel()
    array([0.5 , 0.25, 0.  , 0.  , 0.5 ], dtype=float32)
    """
    return coverage * draw_per_lesion(coverage, severity, rng)


def draw_per_lesion(
    coverage: NDArray[np.float32], limits: tuple[float, float], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Draw one number for each connected lesion.

    Parameters
    ----------
    coverage : (X, Y, Z) float32 array
        Lesion fraction of each voxel.
    limits : (float, float)
        Range of the numbers; uniform.
    rng : numpy.random.Generator
        Random number generator.

    Returns
    -------
    (X, Y, Z) float32 array
        The number of its lesion in each covered voxel, and 0 elsewhere.

    Raises
    ------
    SimulationError
        If the coverage is outside [0, 1].
    """
    if not (coverage.min() >= 0 and coverage.max() <= 1):
        raise SimulationError(
            f"lesion coverage must be between 0 and 1, not between {coverage.min():g} and "
            f"{coverage.max():g}; a file of uint8 is scaled by read_coverage."
        )
    components, count = ndimage.label(coverage > 0, np.ones((3, 3, 3)))
    drawn = rng.uniform(*limits, size=count)
    return np.concatenate([[0.0], drawn]).astype(np.float32)[components]


def _grow(
    anatomy: Anatomy, centre: NDArray[np.intp], size: float, rng: np.random.Generator
) -> tuple[tuple[slice, ...], NDArray[np.float32]]:
    """Coverage by one lesion of a given size in mm3, in a box around its starting point."""
    grid = anatomy.grid
    radius = (3 * size / (4 * np.pi)) ** (1 / 3)
    reach = np.ceil(3 * radius / grid.voxel_size).astype(int) + 2
    lower = np.maximum(centre - reach, 0)
    upper = np.minimum(centre + reach + 1, anatomy.mask.shape)
    box = tuple(slice(*ends) for ends in zip(lower, upper, strict=True))
    x, y, z = (upper - lower).tolist()

    offsets = (np.indices((x, y, z)).reshape(3, -1).T + lower - centre) * grid.voxel_size
    axes = Rotation.from_quat(rng.standard_normal(4)).as_matrix()
    stretch = np.exp(rng.normal(0.0, 0.3, 3))
    scaled = offsets @ axes / (radius * stretch / np.cbrt(stretch.prod()))
    distance = np.linalg.norm(scaled, axis=1).reshape(x, y, z)
    roughness = random_field(Grid((x, y, z), grid.affine), max(radius / 2, 1.0), rng)
    # white matter is filled first, fluid never; lesions grow along the ventricles more than away
    away = np.minimum(anatomy.ventricle_distance[box], 100.0) / 15
    barrier = (1 + 1.5 * (1 - anatomy.wm[box])) * (1 + away)
    distance = distance * np.exp(0.3 * roughness) * barrier
    distance[anatomy.csf[box] > 0.5] = np.inf

    ordered = np.sort(distance[np.isfinite(distance)])
    count = int(np.clip(round(size / grid.voxel_volume), 1, len(ordered)))
    edge = ordered[count - 1 : count + 1].mean()  # coverage of half, so `count` voxels have more
    # coverage falls from 1 to 0 over three voxels, as in the outlines on a grid of 2 mm
    width = 3 * grid.voxel_size.mean() / radius * barrier[distance <= edge].mean()
    lesion = np.clip(0.5 + (edge - distance) / width, 0, 1)
    part = min(1.0, size / grid.voxel_volume)  # a lesion smaller than a voxel fills a part of it
    return box, (part * lesion).astype(np.float32)
