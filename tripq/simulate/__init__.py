"""Simulated diffusion scans of heads with multiple sclerosis, with known lesions.

>>> from tripq.simulate import GradientTable, default_anatomy, simulate_subject
>>> table = GradientTable.from_shells([1000.0], [32])
>>> subject = simulate_subject(default_anatomy(4.0), table, seed=0)
>>> subject.dwi.signal.shape == (len(subject.lesion), 33)
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
from tripq.simulate.errors import SimulationError
from tripq.simulate.fibres import estimate_fibres
from tripq.simulate.fields import random_field
from tripq.simulate.grid import Grid
from tripq.simulate.lesions import LesionStatistics, draw_lesions, lesion_damage
from tripq.simulate.noise import add_rician_noise
from tripq.simulate.pose import Pose, random_pose, random_rotation
from tripq.simulate.signal import Constants, Tissue, diffusion_signal
from tripq.simulate.subject import (
    Heterogeneity,
    Subject,
    simulate_cohort,
    simulate_subject,
    write_subject,
)
from tripq.simulate.tables import GradientTable, spread_directions

__all__ = [
    "Anatomy",
    "Constants",
    "GradientTable",
    "Grid",
    "Heterogeneity",
    "LesionStatistics",
    "Pose",
    "SimulationError",
    "Subject",
    "Tissue",
    "add_rician_noise",
    "default_anatomy",
    "diffusion_signal",
    "draw_lesions",
    "estimate_fibres",
    "fibres_from_peaks",
    "lesion_damage",
    "random_field",
    "random_pose",
    "random_rotation",
    "read_anatomy",
    "read_coverage",
    "simulate_cohort",
    "simulate_subject",
    "spread_directions",
    "write_subject",
]
