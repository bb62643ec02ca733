"""Domain randomisation: simulated scans of many scanners and many tissues.

A network trained on one model of the signal, with constant tissue and an ideal scanner, relies on
this model and fails on real scans.  With a wide range of tissues, noise and artefacts it must use
features that all of them share (Tobin et al., IROS 2017; for images of brains Billot et al., Med
Image Anal 86:102789, 2023).

`Randomisation` has a range for every number; `Randomisation.draw` returns `ScanConditions`, the
arguments of `tripq.simulate.simulate_scan` for one scan.  `tripq.simulate.artefacts` describes the
artefacts.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from tripq.simulate.artefacts import Artefacts
from tripq.simulate.errors import SimulationError
from tripq.simulate.scan import Heterogeneity
from tripq.simulate.signal import Constants

Range = tuple[float, float]
"""Lowest and highest value; equal for a value that does not vary."""


@dataclass(frozen=True)
class ScanConditions:
    """Tissue, noise and artefacts of one scan: arguments of `tripq.simulate.simulate_scan`.

    Parameters
    ----------
    snr : float
        Signal-to-noise ratio of normal white matter at b = 0.
    constants : Constants
        Of the signal model.
    heterogeneity : Heterogeneity
        How tissue varies.
    artefacts : Artefacts
        Of the scan.
    """

    snr: float = 20.0
    constants: Constants = field(default_factory=Constants)
    heterogeneity: Heterogeneity = field(default_factory=Heterogeneity)
    artefacts: Artefacts = field(default_factory=Artefacts)

    def described(self) -> dict[str, Any]:
        """All numbers, as a sidecar in JSON has them."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return content


@dataclass(frozen=True)
class Randomisation:
    """Ranges of what differs between scans.  Values are uniform in them, SNR in its logarithm.

    The fields have the names, units and meanings of those of `Constants`, `Heterogeneity` and
    `Artefacts`.  The documentation lists the sources (training, "Domain randomisation"); where it
    says *assumed*, there is none.

    Parameters
    ----------
    frequency : float
        Probability of each of the artefacts in a scan; those that a scan does not have are as in
        `Artefacts()`.
    snr : (float, float)
        Signal-to-noise ratio of normal white matter at b = 0.
    heterogeneity : (float, float)
        Factor of the variation of `stick_fraction`, `axial_diffusivity` and `gm_diffusivity` in
        `Heterogeneity`.
    gain_sd, gain_scale : (float, float)
        The bias field, see `Heterogeneity`.
    axial_diffusivity ... water_diffusivity : (float, float)
        See `Constants`.
    phase_axis ... folding : (float, float)
        See `Artefacts`.
    tissue_s0 : (float, float)
        See `Heterogeneity`.
    air : (float, float)
        See `Artefacts`.

    Raises
    ------
    SimulationError
        If a range is not two ascending numbers; the message names it.

    Examples
    --------
    >>> conditions = Randomisation().draw(np.random.default_rng(0))
    >>> 8 <= conditions.snr <= 40
    True

    Only one thing varies:

    >>> from dataclasses import replace
    >>> ghosts = replace(Randomisation.none(snr=20.0), frequency=1.0, ghost=(0.02, 0.08))
    >>> conditions = ghosts.draw(np.random.default_rng(0))
    >>> conditions.snr, 0.02 <= conditions.artefacts.ghost <= 0.08, conditions.artefacts.eddy
    (20.0, True, 0.0)
    """

    frequency: float = 0.7
    snr: Range = (8.0, 40.0)
    heterogeneity: Range = (0.6, 1.8)
    gain_sd: Range = (0.1, 0.5)
    gain_scale: Range = (35.0, 80.0)
    axial_diffusivity: Range = (1.4e-3, 2.2e-3)
    stick_fraction: Range = (0.45, 0.72)
    gm_diffusivity: Range = (0.68e-3, 0.95e-3)
    gm_anisotropy: Range = (0.05, 0.2)
    csf_diffusivity: Range = (2.6e-3, 3.2e-3)
    gm_s0: Range = (1.2, 2.0)
    csf_s0: Range = (1.8, 6.0)
    water_diffusivity: Range = (1.4e-3, 2.6e-3)
    phase_axis: Range = (0, 1)
    crispness: Range = (0.8, 1.8)
    blur: Range = (0.0, 1.5)
    coherence: Range = (0.75, 1.3)
    diffusivity_spread: Range = (0.0, 0.2)
    distortion: Range = (0.0, 4.0)
    distortion_scale: Range = (15.0, 40.0)
    eddy: Range = (0.0, 1.0)
    translation: Range = (0.0, 0.6)
    rotation: Range = (0.0, 0.6)
    drift: Range = (0.0, 0.08)
    slice_dropout: Range = (0.0, 0.03)
    lost: Range = (0.0, 0.05)
    ghost: Range = (0.0, 0.06)
    kept: Range = (0.65, 1.0)
    noise_variation: Range = (0.0, 0.4)
    coils: Range = (1, 8)
    mask_offset: Range = (-3.0, 4.0)
    mask_roughness: Range = (0.0, 1.5)
    folding: Range = (0.0, 2.0)
    tissue_s0: Range = (0.0, 0.2)
    air: Range = (0.0, 0.8)

    def __post_init__(self) -> None:
        if not 0 <= self.frequency <= 1:
            raise SimulationError(f"frequency={self.frequency} must be between 0 and 1.")
        for name, (low, high) in self._ranges():
            if not low <= high < np.inf:
                raise SimulationError(
                    f"{name}=({low:g}, {high:g}) must be a lowest and a highest value."
                )
        if not self.snr[0] > 0:
            raise SimulationError(f"snr={self.snr} must be above 0.")
        for corner in (0.0, 1.0):  # the limits of `Artefacts` are intervals too
            Artefacts(**self._artefacts(dict.fromkeys(_ARTEFACTS, corner)))

    @classmethod
    def none(cls, snr: float = 20.0) -> Randomisation:
        """Nothing varies: every scan as by default, with this signal-to-noise ratio."""
        values = {**asdict(Constants()), **asdict(Artefacts()), "snr": snr, "heterogeneity": 1.0}
        of_head = ("gain_sd", "gain_scale", "tissue_s0")
        values |= {name: getattr(Heterogeneity(), name) for name in of_head}
        names = (f.name for f in fields(cls) if f.name != "frequency")
        ranges: dict[str, Any] = {name: (values[name], values[name]) for name in names}
        return cls(**ranges)

    def draw(self, rng: np.random.Generator) -> ScanConditions:
        """Draw the conditions of one scan.

        Parameters
        ----------
        rng : numpy.random.Generator
            Source of all values.  Each consumes the same random numbers, whatever its range, so
            changing one range leaves the others alone.

        Returns
        -------
        ScanConditions
        """
        seed = int(rng.integers(2**32))
        names = [name for name, _ in self._ranges()]
        drawn = dict(zip(names, rng.random((len(names), 2)), strict=True))
        place = {name: float(first) for name, (first, _) in drawn.items()}
        absent = {name for name, (_, second) in drawn.items() if second >= self.frequency}
        low, high = np.log(self.snr)
        factor = self._at("heterogeneity", place)
        usual = Heterogeneity()
        return ScanConditions(
            float(np.exp(low + place["snr"] * (high - low))) if low < high else self.snr[0],
            Constants(**{f.name: self._at(f.name, place) for f in fields(Constants)}),
            Heterogeneity(
                stick_fraction=factor * usual.stick_fraction,
                axial_diffusivity=factor * usual.axial_diffusivity,
                gm_diffusivity=factor * usual.gm_diffusivity,
                gain_sd=self._at("gain_sd", place),
                gain_scale=self._at("gain_scale", place),
                tissue_s0=self._at("tissue_s0", place),
            ),
            Artefacts(
                seed=seed,
                **{k: v for k, v in self._artefacts(place).items() if k not in absent - _ALWAYS},
            ),
        )

    def _ranges(self) -> list[tuple[str, Range]]:
        return [(f.name, getattr(self, f.name)) for f in fields(self) if f.name != "frequency"]

    def _at(self, name: str, place: dict[str, float]) -> float:
        """The value of a range at its place from 0 to 1."""
        low, high = getattr(self, name)
        return low + place[name] * (high - low)

    def _artefacts(self, place: dict[str, float]) -> dict[str, Any]:
        values = {name: self._at(name, place) for name in _ARTEFACTS}
        return values | {name: round(values[name]) for name in ("phase_axis", "coils")}


_ARTEFACTS = tuple(f.name for f in fields(Artefacts) if f.name != "seed")

_ALWAYS = {"phase_axis", "distortion_scale", "crispness", "coherence", "folding"}
"""Properties that every scan has; the others are absent from some."""
