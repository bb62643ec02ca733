"""Lesions of real patients implanted into scans of real, healthy heads, as a BIDS dataset.

The outlines are brought from the template onto a head by `tripq.simulate.registration`, kept to its
brain and out of its fluid, and the signal is changed by
`tripq.tasks.lesions.simulate.implant_lesions`.  A head is registered once: the result is kept in a
file beside the subjects.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from scipy.ndimage import gaussian_filter

from tripq.infra.files import read_json, replacing
from tripq.scans import DWI, cubic_edge
from tripq.scans.nifti import open_nifti, read_volumes
from tripq.scans.noise import noise_level
from tripq.scans.resampling import blur_between
from tripq.scans.tensor import tensor_maps
from tripq.simulate import Anatomy
from tripq.simulate.grid import interpolate
from tripq.simulate.registration import VOXEL_SIZE, register_anatomy
from tripq.tasks.layout import TRUTH, DatasetError, Layout, digest
from tripq.tasks.lesions.datasets.cohort import LabelledSubject
from tripq.tasks.lesions.datasets.heads import cohort_anatomy, lesion_coverage
from tripq.tasks.lesions.datasets.layout import volume_ml, write_files
from tripq.tasks.lesions.datasets.sources import LICENCES, OpenMS
from tripq.tasks.lesions.simulate import ImplantStatistics, Subject, draw_effects, implant_lesions

SOLID, FLUID = 1.1e-3, 1.6e-3
"""Mean diffusivities in mm2/s: tissue up to the first, fluid from the second on, else a mixture."""

IMPLANTED = (
    "IMPLANTED lesions. The diffusion signal is that of real, healthy heads, and the outlines are "
    "those of real patients, registered to the heads; in the lesions the signal is changed by a "
    "model. For research on methods only: nothing in it is a measurement of a patient. The scans "
    "have the licences of their sources, which the table of participants names."
)
"""Description of every cohort with implanted lesions."""

_LAYOUT = Layout(
    title="Healthy heads with IMPLANTED lesions: real signal, real outlines, modelled lesions",
    truth_title="Implanted lesions and brains",
    notice=IMPLANTED,
    kind="an implanted",
    section="Implantation",
    licences=LICENCES,
    columns={
        "head": "Name of the scan into which the lesions were implanted",
        "person": "The healthy person; one person can have several scans",
        "scanner": "The scanner",
        "licence": "Licence of the scan",
        "patient": "Number of the patient of Lesjak et al. (2017) whose outlines they are",
        "seed": "Seed of the effects of the lesions and of the noise",
        "lesion_ml": "Volume of the voxels that are covered by half or more, in ml",
    },
)


@dataclass(frozen=True)
class Head:
    """A scan of a healthy head.

    Parameters
    ----------
    name : str
        Letters and digits.
    person, scanner : str
        Who and which: for splits in which both are new.
    licence : str
        Of the scan.
    read : callable
        Reads the brain of the head as a `DWI`.
    """

    name: str
    person: str
    scanner: str
    licence: str
    read: Callable[[], DWI]


def outline_on_head(
    coverage: NDArray[np.float32], anatomy: Anatomy, dwi: DWI, points: NDArray[np.floating]
) -> NDArray[np.float32]:
    """Bring outlines onto a head.

    Parameters
    ----------
    coverage : (X, Y, Z) float32 array
        Lesion fraction of each voxel of the anatomy.
    anatomy : Anatomy
        The anatomy.
    dwi : DWI
        The head, V voxels.
    points : (V, 3) array
        Of `tripq.simulate.registration.register_anatomy`, with any voxel size of the same anatomy.

    Returns
    -------
    (V,) float32 array
        Lesion fraction of each voxel of the head, at most its share of tissue: 1 up to a mean
        diffusivity of `SOLID`, 0 from `FLUID` on.
    """
    ratio = cubic_edge(dwi.affine) / anatomy.grid.voxel_size.mean()
    blurred = gaussian_filter(coverage, blur_between(ratio))
    found = interpolate(blurred, anatomy.grid.to_voxels(points))
    _, md = tensor_maps(dwi)
    tissue = np.clip((FLUID - md) / (FLUID - SOLID), 0, 1)
    return np.clip(np.minimum(found, tissue), 0, 1).astype(np.float32)


def write_implanted(
    folder: str | PathLike[str],
    heads: Sequence[Head],
    sources: OpenMS,
    *,
    seeds: Sequence[int] = (0,),
    patients: Sequence[str] | None = None,
    statistics: ImplantStatistics | None = None,
    progress: bool = True,
) -> list[str]:
    """Implant the lesions of patients into heads, and write the subjects.

    Existing subjects are kept, and a head all of whose subjects exist is not read.  The same
    arguments give the same bytes, and a subject is independent of the others.

    Parameters
    ----------
    folder : path
        Created if it does not exist.  ``.registrations`` in it holds one file for each head.
    heads : sequence of Head
        The healthy heads.
    sources : OpenMS
        Sources from `open_ms`.
    seeds : sequence of int, optional
        One subject for each head, patient and seed.
    patients : sequence of str, optional
        Patients; by default all of the sources.
    statistics : ImplantStatistics, optional
        Ranges of the effects of lesions.
    progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    list of str
        Names of the subjects, such as ``sub-nlsamP06S0``; `load_cohort` reads them.

    Raises
    ------
    DatasetError
        If a patient is not among the sources, two heads have one name, or the folder contains other
        files or a cohort with other settings.
    tripq.scans.DWIError, tripq.simulate.SimulationError
        If a head or a source cannot be read; the message names the file.
    """
    folder = Path(folder)
    chosen = sources.choose(patients)
    labels = [head.name for head in heads]
    if wrong := sorted({n for n in labels if labels.count(n) > 1 or not n.isalnum()}):
        raise DatasetError(f"names of heads must be distinct letters and digits, not {wrong}.")
    statistics = statistics or ImplantStatistics()
    settings = {name: list(limits) for name, limits in asdict(statistics).items()}
    _LAYOUT.describe(folder, settings)

    def name_of(head: Head, patient: str, seed: int) -> str:
        return f"sub-{head.name}P{patient}S{seed}"

    names = []
    for head in track(heads, "implanting lesions", disable=not progress):
        wanted = [(patient, seed) for patient in chosen for seed in seeds]
        names += [name_of(head, *each) for each in wanted]
        wanted = [each for each in wanted if not (folder / name_of(head, *each)).is_dir()]
        if not wanted:
            continue
        dwi = head.read()
        noise = noise_level(dwi)
        points = find_points(folder / ".registrations" / f"{head.name}.npz", sources, dwi)
        for patient, seed in wanted:
            subject = implant_patient(
                dwi, points, sources, patient, seed, statistics=statistics, noise=noise
            )
            about = {
                "head": head.name,
                "person": head.person,
                "scanner": head.scanner,
                "licence": head.licence,
                "patient": patient,
                "seed": str(seed),
                "lesion_ml": f"{volume_ml(subject):.3f}",
            }
            name = name_of(head, patient, seed)
            write_files(_LAYOUT, folder, name, subject, settings, about)
            _LAYOUT.write_participants(folder)
    return names


def implant_patient(
    dwi: DWI,
    points: NDArray[np.floating],
    sources: OpenMS,
    patient: str,
    seed: int,
    *,
    statistics: ImplantStatistics | None = None,
    noise: NDArray[np.float32] | None = None,
) -> Subject:
    """Implant the lesions of one patient into a head.

    Parameters
    ----------
    dwi : DWI
        The head, V voxels.
    points : (V, 3) array
        Of `find_points`.
    sources : OpenMS
        Sources from `open_ms`.
    patient : str
        One of `OpenMS.patients`.
    seed : int
        Together with the patient it determines the effects of the lesions and the noise.
    statistics, noise : optional
        Arguments of `tripq.tasks.lesions.simulate.implant_lesions`.

    Returns
    -------
    Subject
        Without a lesion voxel if all lesions of the patient are outside the field of view.
    """
    anatomy = _anatomy(sources.fibres, 2.0)
    coverage = outline_on_head(_coverage(sources, patient), anatomy, dwi, points)
    key = np.random.SeedSequence(seed, spawn_key=(int(patient),)).generate_state(1)
    return implant_lesions(dwi, coverage, int(key[0]), statistics=statistics, noise=noise)


def healthy_subject(head: Head) -> LabelledSubject:
    """The head as it is: a labelled subject without a lesion."""
    dwi = head.read()
    return LabelledSubject(f"sub-{head.name}", dwi, np.zeros(len(dwi.b0), dtype=bool))


def load_severity(folder: str | PathLike[str], subject: LabelledSubject) -> NDArray[np.float32]:
    """Severity of the implanted lesions of a subject.

    Parameters
    ----------
    folder : path
        Of `write_implanted`.
    subject : LabelledSubject
        One of `load_cohort`, V voxels.

    Returns
    -------
    (V,) float32 array
        Share of the tissue that water replaces in the core of the lesion at each voxel, 0 outside
        lesions: see `tripq.tasks.lesions.simulate.ImplantStatistics`.

    Raises
    ------
    DatasetError
        If the sidecar of the subject does not say how the lesions were made.
    tripq.scans.DWIError
        If a file is missing or damaged; the message names it.
    """
    name, dwi = subject.name, subject.dwi
    sidecar = Path(folder) / name / "dwi" / f"{name}_dwi.json"
    path = Path(folder) / TRUTH / name / "dwi" / f"{name}_label-lesion_probseg.nii.gz"
    try:
        settings = read_json(sidecar)[_LAYOUT.section]
        limits = {field.name: tuple(settings[field.name]) for field in fields(ImplantStatistics)}
        seed = int(settings["SubjectSeed"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DatasetError(f"{sidecar}: it does not say how lesions were implanted.") from error
    (coverage,) = read_volumes(open_nifti(path), path)
    values = coverage[dwi.mask].astype(np.float32)
    return draw_effects(dwi, values, seed, ImplantStatistics(**limits)).severity


def find_points(path: Path, sources: OpenMS, dwi: DWI) -> NDArray[np.float32]:
    """Points of the template at the voxels of a head, from a file or by registration.

    Parameters
    ----------
    path : Path
        File of an earlier registration, ``.npz``.  If it is missing, damaged or of another head or
        template, the head is registered and the file replaced.
    sources : OpenMS
        Sources from `open_ms`.
    dwi : DWI
        The head, V voxels.

    Returns
    -------
    (V, 3) float32 array
        See `tripq.simulate.registration.register_anatomy`.
    """
    anatomy = _anatomy(sources.fibres, VOXEL_SIZE)
    key = digest(dwi.mask, dwi.affine, dwi.b0, dwi.q, anatomy.wm, anatomy.csf, anatomy.weights)
    try:
        with np.load(path) as stored:
            if str(stored["key"]) == key:
                return stored["points"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        pass
    points = register_anatomy(anatomy, dwi)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        np.savez(part, key=key, points=points)
    return points


@lru_cache(maxsize=2)
def _anatomy(fibres: Path, voxel_size: float) -> Anatomy:
    return cohort_anatomy(fibres, voxel_size)


@lru_cache(maxsize=64)
def _coverage(sources: OpenMS, patient: str) -> NDArray[np.float32]:
    return lesion_coverage(sources, patient, _anatomy(sources.fibres, 2.0))
