r"""Diffusion signal of tissue.

White matter is a stick and a zeppelin along each fibre (the naming of Panagiotaki et al.,
NeuroImage 59:2241-2254, 2012), grey matter a weak ellipsoid, fluid the same in all directions, and
so is water that replaces tissue:

.. math::
    S(b, g) &= s_0 \big[ (1 - \omega)\, T(b, g) + \omega\, (w + s_g \gamma)\, e^{-b D_w} \big]
             + s_c\, c\, e^{-b D_c} \\
    T(b, g) &= w \Big[ \sum_k f_k W(b, g \cdot v_k) + f_0 \bar W(b) \Big]
             + s_g\, \gamma \Big[ \sum_k f_k G(b, g \cdot v_k) + f_0\, e^{-b D_g} \Big] \\
    W(b, \mu) &= \nu\, e^{-b D \mu^2} + (1 - \nu)\, e^{-b D_\perp - b (D - D_\perp) \mu^2},
             \qquad D_\perp = (1 - \nu) D \\
    G(b, \mu) &= e^{-b D_g (1 + a (3 \mu^2 - 1))}

with fractions w, :math:`\gamma`, c of white matter, grey matter and fluid, fibre directions
:math:`v_k` with weights :math:`f_k`, and :math:`f_0 = 1 - \sum_k f_k` for the share that is
dispersed evenly over all directions (:math:`\bar W` is the mean of W over them). The diffusivity
across the zeppelin is tied to the stick fraction by the tortuosity of Szafer et al. (Magn Reson Med
33:697-712, 1995), as in NODDI (Zhang et al., NeuroImage 61:1000-1016, 2012). In normal tissue the
share of water :math:`\omega` is 0 and the relative signal :math:`s_0` is 1; a
`tripq.simulate.Modifier` changes them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from tripq.simulate.tables import GradientTable

_CHUNK = 16_384
"""Voxels whose signal is computed at once: with 100 volumes, 6.6 MB per array."""


@dataclass(frozen=True)
class Constants:
    r"""Constants of the signal model; diffusivities in mm2/s, signals relative to white matter.

    Parameters
    ----------
    axial_diffusivity : float
        D: along fibres. 1.7e-3 is the value NODDI fixes (Zhang et al. 2012).
    stick_fraction : float
        :math:`\nu` of normal white matter. NODDI finds 0.5 to 0.7 in healthy adults.
    gm_diffusivity : float
        Of grey matter: 0.80e-3, as measured on the same scan as `gm_s0`, and close to the 0.83e-3
        of Pierpaoli et al. (Radiology 201:637-648, 1996).
    gm_anisotropy : float
        a: diffusion in grey matter is faster along fibres by 2 a and slower across by a. Chosen so
        that low fractional anisotropies spread as in real scans; along one fibre it makes 0.2.
    csf_diffusivity : float
        Of free water at 37 degrees: 3.0e-3 (NODDI).
    gm_s0, csf_s0 : float
        Signal at b = 0, relative to white matter: 1.5 and 3.1 as measured on a whole-brain scan at
        b = 1000 s/mm2 (the example of TractSeg, https://github.com/MIC-DKFZ/TractSeg).
    water_diffusivity : float
        Of water that replaces tissue: between tissue and free water, as the remaining tissue
        hinders it.
    """

    axial_diffusivity: float = 1.7e-3
    stick_fraction: float = 0.6
    gm_diffusivity: float = 0.80e-3
    gm_anisotropy: float = 0.12
    csf_diffusivity: float = 3.0e-3
    gm_s0: float = 1.5
    csf_s0: float = 3.1
    water_diffusivity: float = 2.0e-3


@dataclass(frozen=True, eq=False)
class Tissue:
    """Tissue of the voxels of a scan.

    Parameters
    ----------
    wm, gm, csf : (V,) float32 array
        Fractions.
    directions : (V, K, 3) float32 array
        Of fibres, in world axes; unit vectors, or zeros where the weight is 0.
    weights : (V, K) float32 array
        Share of the white matter along each fibre.
    stick_fraction, axial_diffusivity, gm_diffusivity : (V,) float32 array
        As in `Constants`, voxel by voxel.
    water : (V,) float32 array
        Share of the white and grey matter that isotropic water has replaced; 0 in normal tissue.
    s0 : (V,) float32 array
        Signal of all but the fluid at b = 0, relative to normal tissue: 1 there, or near 1 with
        `tripq.simulate.scan.Heterogeneity.tissue_s0`.
    """

    wm: NDArray[np.float32]
    gm: NDArray[np.float32]
    csf: NDArray[np.float32]
    directions: NDArray[np.float32]
    weights: NDArray[np.float32]
    stick_fraction: NDArray[np.float32]
    axial_diffusivity: NDArray[np.float32]
    gm_diffusivity: NDArray[np.float32]
    water: NDArray[np.float32]
    s0: NDArray[np.float32]

    def __len__(self) -> int:
        """Return the number of voxels."""
        return len(self.wm)

    def __getitem__(self, voxels: slice | NDArray[np.bool_]) -> Tissue:
        """Return some of the voxels."""
        return Tissue(**{name: values[voxels] for name, values in vars(self).items()})


def diffusion_signal(
    tissue: Tissue, table: GradientTable, constants: Constants | None = None
) -> NDArray[np.float32]:
    """Signal without noise, from the formula at the top of this module.

    Parameters
    ----------
    tissue : Tissue
        Of V voxels.
    table : GradientTable
        Of N volumes.
    constants : Constants, optional
        Constants that are not given voxel by voxel.

    Returns
    -------
    (V, N) float32 array
        Relative to white matter at b = 0.

    Examples
    --------
    One voxel of fluid loses 95 % of its signal at b = 1000 s/mm2:

    >>> one, none = np.ones(1, np.float32), np.zeros(1, np.float32)
    >>> no_fibre = np.zeros((1, 0, 3)), np.zeros((1, 0))
    >>> fluid = Tissue(none, none, one, *no_fibre, *[one] * 3, water=none, s0=one)
    >>> table = GradientTable(np.array([0.0, 1000.0]), np.array([[0.0, 0, 0], [0, 0, 1]]))
    >>> diffusion_signal(fluid, table).round(3)
    array([[3.1  , 0.154]], dtype=float32)
    """
    constants = constants or Constants()
    signal = np.empty((len(tissue), len(table)), dtype=np.float32)
    for start in range(0, len(tissue), _CHUNK):
        part = slice(start, start + _CHUNK)
        signal[part] = _signal(tissue[part], table, constants)
    return signal


def _signal(tissue: Tissue, table: GradientTable, constants: Constants) -> NDArray[np.float32]:
    b = table.b_values.astype(np.float32)
    axial = tissue.axial_diffusivity[:, None]
    stick = tissue.stick_fraction[:, None]
    radial = (1 - stick) * axial
    directions = np.where(table.b0[:, None], 0.0, table.directions).astype(np.float32)

    grey_mean = tissue.gm_diffusivity[:, None]
    spread = np.float32(constants.gm_anisotropy)

    loose = (1 - tissue.weights.sum(1))[:, None]
    white = loose * _dispersed(b, stick, axial, radial)
    grey = loose * np.exp(-grey_mean * b)
    for fibre in range(tissue.weights.shape[1]):
        along = b * (tissue.directions[:, fibre] @ directions.T) ** 2
        sticks = stick * np.exp(-axial * along)
        zeppelins = (1 - stick) * np.exp(-radial * b - (axial - radial) * along)
        white += tissue.weights[:, fibre, None] * (sticks + zeppelins)
        ellipsoids = np.exp(-grey_mean * ((1 - spread) * b + 3 * spread * along))
        grey += tissue.weights[:, fibre, None] * ellipsoids
    fluid = constants.csf_s0 * np.exp(np.float32(-constants.csf_diffusivity) * b)

    solid = tissue.wm[:, None] * white + constants.gm_s0 * tissue.gm[:, None] * grey
    normal = tissue.wm[:, None] + constants.gm_s0 * tissue.gm[:, None]  # solid at b = 0
    s0, water = tissue.s0[:, None], tissue.water[:, None]
    changed = replace_by_water(solid, normal, water, s0, b, constants.water_diffusivity)
    return changed + tissue.csf[:, None] * fluid


def replace_by_water(
    signal: NDArray[np.float32],
    at_b0: NDArray[np.float32],
    share: NDArray[np.float32],
    s0: NDArray[np.float32],
    b_values: NDArray[np.float32],
    diffusivity: float | NDArray[np.float32],
) -> NDArray[np.float32]:
    r"""Replace a share of tissue by water that diffuses equally in all directions.

    :math:`s_0 \big[ (1 - \omega)\, S(b, g) + \omega\, S(0)\, e^{-b D_w} \big]`, of simulated tissue
    (`diffusion_signal`) or of a measured signal (`tripq.simulate.implant`).

    Parameters
    ----------
    signal : (V, N) float32 array
        :math:`S(b, g)`, before the change.
    at_b0 : (V, 1) float32 array
        :math:`S(0)`.
    share : (V, 1) float32 array
        :math:`\omega`, between 0 and 1.
    s0 : (V, 1) float32 array
        Factor on the signal at b = 0.
    b_values : (N,) float32 array
        In s/mm2.
    diffusivity : float or (V, 1) float32 array
        :math:`D_w` in mm2/s.

    Returns
    -------
    (V, N) float32 array

    Examples
    --------
    >>> b_values = np.array([0.0, 1000.0], np.float32)
    >>> half, one = np.full((1, 1), 0.5, np.float32), np.ones((1, 1), np.float32)
    >>> tissue = np.array([[1.0, 0.6]], np.float32)
    >>> replace_by_water(tissue, one, half, 1.5 * one, b_values, 2e-3).round(3)
    array([[1.5  , 0.552]], dtype=float32)
    """
    hindered = np.exp(np.asarray(-diffusivity, dtype=np.float32) * b_values)
    return s0 * ((1 - share) * signal + share * at_b0 * hindered)


def _dispersed(
    b: NDArray[np.float32],
    stick: NDArray[np.float32],
    axial: NDArray[np.float32],
    radial: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Mean of sticks and zeppelins over all directions; (N,) and (V, 1) to (V, N)."""
    values, places = np.unique(b, return_inverse=True)
    sticks = stick * _powder(values * axial)
    zeppelins = (1 - stick) * np.exp(-values * radial) * _powder(values * (axial - radial))
    return (sticks + zeppelins)[:, places]


def _powder(exponent: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean of exp(-exponent mu^2) for mu uniform between 0 and 1."""
    root = np.sqrt(np.maximum(exponent, 1e-6))
    return np.sqrt(np.pi / 4).astype(np.float32) * erf(root) / root
