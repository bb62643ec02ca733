"""Labelled scans in BIDS layout, and the open cohort of patients with multiple sclerosis.

In the cohort, lesion outlines and fibre directions are real, and the diffusion signal is simulated.

>>> from tripq.tasks.lesions.datasets import load_cohort, open_ms, write_cohort
>>> from tripq.simulate import GradientTable
>>> table = GradientTable.from_shells([1000.0], [32])
>>> def make(folder: str) -> None:  # the first line downloads 10 MB
...     sources = open_ms(accept_licences=True)
...     write_cohort(folder, sources, table, seed=0, snr=20.0)
...     subjects = load_cohort(folder)  # for tripq.training and tripq.tasks.lesions.scores
"""

from __future__ import annotations

from tripq.tasks.datasets import draw_validation, range_of_voxels
from tripq.tasks.layout import DatasetError, Licence
from tripq.tasks.lesions.datasets.cohort import (
    LabelledSubject,
    load_cohort,
    load_subject,
    write_cohort,
)
from tripq.tasks.lesions.datasets.heads import (
    brain_scale,
    cohort_anatomy,
    lesion_coverage,
    read_fibres,
)
from tripq.tasks.lesions.datasets.implanted import (
    Head,
    find_points,
    healthy_subject,
    implant_patient,
    load_severity,
    outline_on_head,
    write_implanted,
)
from tripq.tasks.lesions.datasets.labelled import (
    LabelledFiles,
    find_labelled,
    read_labelled,
)
from tripq.tasks.lesions.datasets.sources import LICENCES, SOURCES, OpenMS, Source, open_ms

__all__ = [
    "LICENCES",
    "SOURCES",
    "DatasetError",
    "Head",
    "LabelledFiles",
    "LabelledSubject",
    "Licence",
    "OpenMS",
    "Source",
    "brain_scale",
    "cohort_anatomy",
    "draw_validation",
    "find_labelled",
    "find_points",
    "healthy_subject",
    "implant_patient",
    "lesion_coverage",
    "load_cohort",
    "load_severity",
    "load_subject",
    "open_ms",
    "outline_on_head",
    "range_of_voxels",
    "read_fibres",
    "read_labelled",
    "write_cohort",
    "write_implanted",
]
