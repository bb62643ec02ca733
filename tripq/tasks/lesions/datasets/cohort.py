"""The cohort as a BIDS dataset, read in the same way as user data.

For the layout see `tripq.tasks.layout`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from tripq.scans import DWI, read_dwi
from tripq.scans.nifti import open_nifti, read_mask
from tripq.simulate import (
    Anatomy,
    GradientTable,
    Randomisation,
    ScanConditions,
    random_rotation,
)
from tripq.tasks.layout import TRUTH, DatasetError, Layout, digest, finished
from tripq.tasks.lesions.datasets.heads import brain_scale, cohort_anatomy, lesion_coverage
from tripq.tasks.lesions.datasets.layout import volume_ml, write_files
from tripq.tasks.lesions.datasets.sources import LICENCES, OpenMS
from tripq.tasks.lesions.simulate import LesionStatistics, simulate_subject

NOTICE = (
    "SIMULATED diffusion signal. The outlines of the lesions are those of real patients and the "
    "directions of the fibres those of a template of real brains; the signal, the severity of the "
    "lesions, the shape and the pose of the heads and the noise are a model's. For research on "
    "methods only: nothing in it is a measurement of a patient."
)
"""Description of every cohort."""

_LAYOUT = Layout(
    title="Patients with multiple sclerosis: real lesions, SIMULATED diffusion signal",
    truth_title="Lesions and brains of the simulated cohort",
    notice=NOTICE,
    kind="a simulated",
    section="Simulation",
    licences=LICENCES,
    columns={
        "patient": "Number of the patient of Lesjak et al. (2017) whose lesions they are",
        "age": "Age of that patient in years",
        "sex": "Sex of that patient",
        "ms_type": "Type of the disease: CIS, RR, SP or PR",
        "edss": "Expanded disability status scale of that patient",
        "scale": "Factor by which the outlines were enlarged to the template",
        "lesion_ml": "Volume of the voxels that are covered by half or more, in ml",
    },
)


@dataclass(frozen=True, eq=False)
class LabelledSubject:
    """A subject of a cohort, for `tripq.training`.

    Parameters
    ----------
    name : str
        Name such as ``sub-01``.
    dwi : DWI
        The scan, V voxels.
    lesion : (V,) bool array
        Lesion voxels, in the order of ``np.argwhere(dwi.mask)``.
    """

    name: str
    dwi: DWI
    lesion: NDArray[np.bool_]

    def __repr__(self) -> str:
        return f"LabelledSubject({self.name}, {self.lesion.sum():,} lesion voxels, {self.dwi})"


def write_cohort(
    folder: str | PathLike[str],
    sources: OpenMS,
    table: GradientTable,
    *,
    seed: int = 0,
    snr: float = 20.0,
    max_rotation: float = 10.0,
    pose: int = 0,
    turn_tables: bool = False,
    deformation: float = 3.0,
    anatomy: Anatomy | None = None,
    statistics: LesionStatistics | None = None,
    randomisation: Randomisation | None = None,
    patients: Sequence[str] | None = None,
    progress: bool = True,
) -> list[str]:
    """Simulate the cohort, one subject for every patient, and write it.

    Existing subjects are kept, so a second call completes an interrupted cohort.  The same
    arguments give the same bytes, and a subject is independent of the others.

    Parameters
    ----------
    folder : path
        Created if it does not exist.
    sources : OpenMS
        Sources from `open_ms`.
    table : GradientTable
        Table of all subjects, in world axes; it does not rotate with the heads.
    seed : int, optional
        Seed of shapes, poses, severities and noise.
    snr : float, optional
        Signal-to-noise ratio of white matter at b = 0; the noise is Rician.
    max_rotation : float, optional
        Maximum rotation of a head in degrees; 180 for any.
    pose : int, optional
        Number of the random pose: another number gives the same heads with other rotations.
    turn_tables : bool, optional
        Also rotate the table of every subject at random.
    deformation : float, optional
        Root mean square of the deformation along each axis in mm.
    anatomy : Anatomy, optional
        The default is ``cohort_anatomy(sources.fibres)``, 2 mm.
    statistics : LesionStatistics, optional
        Only its range of severities is used, from which that of every lesion is drawn.
    randomisation : Randomisation, optional
        Ranges from which tissue, noise and artefacts of every scan are drawn, by default none.
        They replace `snr`; another `pose` is another draw.  The sidecar of a scan lists what was
        drawn.
    patients : sequence of str, optional
        Patients; by default all of the sources.
    progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    list of str
        Names of the subjects, such as ``sub-01``.

    Raises
    ------
    DatasetError
        If a patient is not among the sources, or the folder contains other files or a cohort with
        other settings.
    tripq.simulate.SimulationError, tripq.scans.DWIError
        If a source cannot be read (the message names it), or an argument is invalid.
    """
    folder = Path(folder)
    chosen = sources.choose(patients)
    anatomy = anatomy or cohort_anatomy(sources.fibres)
    statistics = statistics or LesionStatistics()
    settings = {
        "Seed": seed,
        "SNR": snr,
        "MaxRotationDegrees": max_rotation,
        "Pose": pose,
        "TurnedTables": turn_tables,
        "DeformationMillimetres": deformation,
        "Severity": list(statistics.severity),
        "GradientTable": digest(table.b_values, table.directions),
        "Anatomy": digest(
            *(getattr(anatomy, name) for name in ("wm", "gm", "csf", "mask", "affine")),
            *(anatomy.directions, anatomy.weights),
        ),
    }
    if randomisation is not None:
        del settings["SNR"]
        settings["Randomisation"] = json.loads(json.dumps(asdict(randomisation)))  # with lists
    _LAYOUT.describe(folder, settings)
    for patient in track(chosen, "simulating the cohort", disable=not progress):
        name = f"sub-{patient}"
        if not (folder / name).is_dir():
            key = int(patient)
            of_head, of_pose, of_table, of_scan = (
                np.random.default_rng(np.random.SeedSequence(seed, spawn_key=spawn_key))
                for spawn_key in ((key,), (key, pose), (key, pose, 0), (key, pose, 1))
            )
            conditions = (
                ScanConditions(snr) if randomisation is None else randomisation.draw(of_scan)
            )
            turn = random_rotation(of_table) if turn_tables else np.eye(3)
            subject = simulate_subject(
                anatomy,
                table.rotated(turn),
                int(of_head.integers(2**32)),
                **vars(conditions),
                rotation=random_rotation(of_pose, max_rotation),
                deformation=deformation,
                statistics=statistics,
                lesion_coverage=lesion_coverage(sources, patient, anatomy),
            )
            about = {
                "patient": patient,
                **sources.about(patient),
                "scale": f"{brain_scale(sources.brain(patient), anatomy):.4f}",
                "lesion_ml": f"{volume_ml(subject):.3f}",
            }
            drawn = {} if randomisation is None else _drawn(conditions, table)
            write_files(_LAYOUT, folder, name, subject, {**settings, **drawn}, about)
        _LAYOUT.write_participants(folder)
    return [f"sub-{patient}" for patient in chosen]


def load_subject(folder: str | PathLike[str], name: str) -> LabelledSubject:
    """Read one subject of a cohort.

    Parameters
    ----------
    folder : path
        Folder of the cohort.
    name : str
        Name such as ``sub-01``.

    Returns
    -------
    LabelledSubject

    Raises
    ------
    tripq.scans.DWIError
        If a file is missing or damaged; the message names it.
    """
    scan = Path(folder) / name / "dwi" / f"{name}_dwi.nii.gz"
    truth = Path(folder) / TRUTH / name / "dwi"
    dwi = read_dwi(scan, mask=truth / f"{name}_desc-brain_mask.nii.gz")
    lesion = read_mask(truth / f"{name}_label-lesion_mask.nii.gz", open_nifti(scan))
    return LabelledSubject(name, dwi, lesion[dwi.mask])


def load_cohort(
    folder: str | PathLike[str], names: Sequence[str] | None = None
) -> list[LabelledSubject]:
    """Read the subjects of a cohort.

    Parameters
    ----------
    folder : path
        Folder of the cohort.
    names : sequence of str, optional
        Names such as ``["sub-01", "sub-03"]``, for example one part of a split; by default all
        finished subjects, sorted.

    Returns
    -------
    list of LabelledSubject

    Raises
    ------
    DatasetError
        If there is no subject.
    tripq.scans.DWIError
        If a file is missing or damaged; the message names it.
    """
    names = finished(Path(folder)) if names is None else names
    if not names:
        raise DatasetError(f"{folder}: no subject of a cohort, sub-NN, in this folder.")
    return [load_subject(folder, name) for name in names]


def _drawn(conditions: ScanConditions, table: GradientTable) -> dict[str, Any]:
    """What was drawn for one scan, for its sidecar."""
    lost = conditions.artefacts.lost_volumes(table)
    return {"Drawn": conditions.described(), "LostVolumes": lost}
