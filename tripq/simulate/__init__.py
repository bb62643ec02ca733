"""Simulated diffusion scans of heads, with known tissue and fibres.

A task adds its targets as a `Modifier` of the tissue.  `Randomisation` draws tissue, noise and
artefacts of many scanners; see `tripq.simulate.artefacts` for how a scan is made.

>>> from tripq.simulate import GradientTable, default_anatomy, simulate_scan
>>> table = GradientTable.from_shells([1000.0], [32])
>>> scan = simulate_scan(default_anatomy(4.0), table, seed=0)
>>> scan.dwi.signal.shape == (len(scan.tissue), 33)
True
"""

from __future__ import annotations

from tripq.simulate.anatomy import (
    Anatomy,
    default_anatomy,
    fibres_from_peaks,
    read_anatomy,
    read_coverage,
)
from tripq.simulate.artefacts import Artefacts
from tripq.simulate.errors import SimulationError
from tripq.simulate.fibres import estimate_fibres
from tripq.simulate.fields import random_field
from tripq.simulate.grid import Grid
from tripq.simulate.implantation import implant
from tripq.simulate.modifier import Modifier, ReadMap
from tripq.simulate.noise import add_chi_noise, add_rician_noise
from tripq.simulate.pose import Pose, random_pose, random_rotation
from tripq.simulate.randomisation import Randomisation, ScanConditions
from tripq.simulate.scan import (
    Heterogeneity,
    ScanSettings,
    SimulatedScan,
    random_settings,
    simulate_scan,
)
from tripq.simulate.signal import Constants, Tissue, diffusion_signal
from tripq.simulate.tables import GradientTable, spread_directions

__all__ = [
    "Anatomy",
    "Artefacts",
    "Constants",
    "GradientTable",
    "Grid",
    "Heterogeneity",
    "Modifier",
    "Pose",
    "Randomisation",
    "ReadMap",
    "ScanConditions",
    "ScanSettings",
    "SimulatedScan",
    "SimulationError",
    "Tissue",
    "add_chi_noise",
    "add_rician_noise",
    "default_anatomy",
    "diffusion_signal",
    "estimate_fibres",
    "fibres_from_peaks",
    "implant",
    "random_field",
    "random_pose",
    "random_rotation",
    "random_settings",
    "read_anatomy",
    "read_coverage",
    "simulate_scan",
    "spread_directions",
]
