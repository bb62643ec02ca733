"""Simulated scans of heads with multiple sclerosis, with known lesions.

>>> from tripq.simulate import GradientTable, default_anatomy
>>> from tripq.tasks.lesions.simulate import simulate_subject
>>> table = GradientTable.from_shells([1000.0], [32])
>>> subject = simulate_subject(default_anatomy(4.0), table, seed=0)
>>> subject.dwi.signal.shape == (len(subject.lesion), 33)
True
"""

from __future__ import annotations

from tripq.tasks.lesions.simulate.draw import LesionStatistics, draw_lesions, lesion_damage
from tripq.tasks.lesions.simulate.implanted import (
    ImplantEffects,
    ImplantStatistics,
    draw_effects,
    implant_lesions,
)
from tripq.tasks.lesions.simulate.modifier import LesionEffect, Lesions
from tripq.tasks.lesions.simulate.subject import (
    Subject,
    simulate_cohort,
    simulate_subject,
    write_subject,
)

__all__ = [
    "ImplantEffects",
    "ImplantStatistics",
    "LesionEffect",
    "LesionStatistics",
    "Lesions",
    "Subject",
    "draw_effects",
    "draw_lesions",
    "implant_lesions",
    "lesion_damage",
    "simulate_cohort",
    "simulate_subject",
    "write_subject",
]
