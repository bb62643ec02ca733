"""Implanted lesions: the signal is that of a real, healthy head, the lesion is modelled.

Sources of the ranges, all about multiple sclerosis:

* Guo et al., Radiology 222:729-736 (2002), 26 patients: fractional anisotropy .280 in plaques, .383
  around them, .493 in normal-appearing white matter; mean diffusivity 1.025, .786 and .739 in 1e-3
  mm2/s.  In a plaque FA is thus 43 % lower and MD 39 % higher.
* Filippi et al., Neurology 56:304-311 (2001), 4846 lesions of 78 patients: lesions that are dark on
  T1-weighted images have a higher MD and a lower FA than the others, so severity varies.
* Tievsky et al., AJNR 20:1491-1499 (1999), 12 patients: high diffusivity and reduced anisotropy in
  the centre of acute plaques, intermediate values in chronic ones.
* Miller et al., Magn Reson Med 11:331-336 (1989): T2 of lesions is raised and varies widely.  With
  a T2 of 75 ms in white matter and 90 to 120 ms in lesions, b0 rises by a factor of 1.2 to 1.5 at
  an echo time of 85 ms.  (The T2 values are round numbers, not those of the paper.)

With `ImplantStatistics`, white matter of FA .45 and MD 0.75e-3 mm2/s gets, from the lowest to the
highest severity, an FA that is 20 to 75 % lower, an MD that is 15 to 95 % higher, and a b0 that is
5 to 60 % higher (tensor fit at b = 1000 s/mm2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tripq.scans import DWI
from tripq.simulate import SimulationError, implant
from tripq.tasks.lesions.simulate.draw import draw_per_lesion
from tripq.tasks.lesions.simulate.subject import Subject


@dataclass(frozen=True)
class ImplantStatistics:
    """Ranges from which each connected lesion draws; uniform and independent.

    Parameters
    ----------
    severity : (float, float)
        Share of the tissue that water replaces in the core of a lesion.
    diffusivity : (float, float)
        Of that water, in mm2/s: below that of free water, 3.0e-3, because the tissue that is left
        hinders it.
    b0_rise : (float, float)
        Relative rise of b0 where water replaces all tissue.
    """

    severity: tuple[float, float] = (0.2, 0.8)
    diffusivity: tuple[float, float] = (1.4e-3, 2.0e-3)
    b0_rise: tuple[float, float] = (0.25, 0.75)


def implant_lesions(
    dwi: DWI,
    coverage: NDArray[np.float32],
    seed: int,
    *,
    statistics: ImplantStatistics | None = None,
    noise: ArrayLike | None = None,
) -> Subject:
    """Implant lesions into the scan of a healthy head.

    Parameters
    ----------
    dwi : DWI
        The scan, V voxels.  It is not changed.
    coverage : (V,) float32 array
        Lesion fraction of each voxel.
    seed : int
        Seed of the effects of the lesions and of the added noise.
    statistics : ImplantStatistics, optional
        Ranges of the effects.
    noise : float or (V,) array-like, optional
        Noise level of the scan, see `tripq.simulate.implant`.

    Returns
    -------
    Subject

    Raises
    ------
    SimulationError
        If the coverage is outside [0, 1], or not one value for each voxel.

    Examples
    --------
    >>> from tripq.simulate import GradientTable, default_anatomy, simulate_scan
    >>> anatomy = default_anatomy(5.0).within((-40, -40, 0), (40, 40, 30))
    >>> healthy = simulate_scan(anatomy, GradientTable.from_shells([1000.0], [12]), seed=0).dwi
    >>> distance = np.linalg.norm(healthy.voxel_centres() - [25, -20, 20], axis=1)
    >>> subject = implant_lesions(healthy, (distance < 8).astype(np.float32), seed=0)
    >>> bool(subject.dwi.b0[subject.lesion].mean() > healthy.b0[subject.lesion].mean())
    True
    """
    effects = draw_effects(dwi, coverage, seed, statistics)
    _, of_noise = np.random.SeedSequence(seed).spawn(2)
    changed = implant(
        dwi,
        coverage,
        effects.severity,
        diffusivity=effects.diffusivity,
        b0_rise=effects.b0_rise,
        noise=noise,
        seed=int(of_noise.generate_state(1)[0]),
    )
    return Subject(changed, coverage, seed)


@dataclass(frozen=True, eq=False)
class ImplantEffects:
    """Effects of implanted lesions in every voxel, (V,) float32 arrays; 0 outside lesions.

    The fields are those of `ImplantStatistics`.
    """

    severity: NDArray[np.float32]
    diffusivity: NDArray[np.float32]
    b0_rise: NDArray[np.float32]


def draw_effects(
    dwi: DWI,
    coverage: NDArray[np.float32],
    seed: int,
    statistics: ImplantStatistics | None = None,
) -> ImplantEffects:
    """Effects that `implant_lesions` draws for each lesion.

    Parameters and errors are those of `implant_lesions`.
    """
    statistics = statistics or ImplantStatistics()
    if coverage.shape != dwi.b0.shape:
        raise SimulationError(
            f"lesion coverage has shape {coverage.shape}; the scan needs {dwi.b0.shape}."
        )
    of_effects, _ = np.random.SeedSequence(seed).spawn(2)
    rng = np.random.default_rng(of_effects)
    volume = dwi.volume(coverage)
    return ImplantEffects(
        *(
            draw_per_lesion(volume, limits, rng)[dwi.mask]
            for limits in (statistics.severity, statistics.diffusivity, statistics.b0_rise)
        )
    )
