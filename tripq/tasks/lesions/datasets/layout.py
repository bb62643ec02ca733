"""Files of subjects with lesions in a cohort; see `tripq.tasks.layout`.

The truth of a subject::

    derivatives/truth/sub-01/dwi/sub-01_desc-brain_mask.nii.gz
                                 sub-01_label-lesion_mask.nii.gz
                                 sub-01_label-lesion_probseg.nii.gz
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tripq.scans import voxel_ml, write_dwi, write_map
from tripq.tasks.layout import Layout
from tripq.tasks.lesions.simulate import Subject


def write_files(
    layout: Layout,
    folder: Path,
    name: str,
    subject: Subject,
    settings: Mapping[str, Any],
    about: Mapping[str, str],
) -> None:
    """Write a subject into a cohort: `Layout.write_subject`, with the seed among the settings."""

    def write(scan: Path, truth: Path) -> None:
        dwi = subject.dwi
        write_dwi(dwi, scan / f"{name}_dwi.nii.gz")
        for label, values in (
            ("desc-brain_mask", np.ones(len(dwi.b0), dtype=bool)),
            ("label-lesion_mask", subject.lesion),
            ("label-lesion_probseg", subject.coverage),
        ):
            write_map(values, dwi, truth / f"{name}_{label}.nii.gz")

    layout.write_subject(folder, name, write, {**settings, "SubjectSeed": subject.seed}, about)


def volume_ml(subject: Subject) -> float:
    """Volume of the lesions of a subject in ml."""
    return float(subject.lesion.sum() * voxel_ml(subject.dwi.affine))
