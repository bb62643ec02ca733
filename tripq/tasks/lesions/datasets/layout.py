"""Files of a cohort in BIDS layout, for all kinds of signal and truth.

The layout (https://bids-specification.readthedocs.io)::

    dataset_description.json  participants.tsv  participants.json  README
    sub-01/dwi/sub-01_dwi.nii.gz  .bval  .bvec  .json
    derivatives/truth/dataset_description.json
    derivatives/truth/sub-01/dwi/sub-01_desc-brain_mask.nii.gz
                                 sub-01_label-lesion_mask.nii.gz
                                 sub-01_label-lesion_probseg.nii.gz

A subject is written in a hidden folder and moved when it is complete, the scan last.  A folder
``sub-NN`` is therefore a finished subject.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tripq import __version__
from tripq.infra.files import read_json, write_json, write_text
from tripq.scans import voxel_ml
from tripq.scans.bids import BIDS_VERSION
from tripq.tasks.lesions.datasets.errors import DatasetError
from tripq.tasks.lesions.datasets.sources import LICENCES, Licence
from tripq.tasks.lesions.simulate import Subject, write_subject

TRUTH = Path("derivatives") / "truth"
"""Folder of the masks in a cohort."""


@dataclass(frozen=True)
class Layout:
    """Descriptions of one kind of cohort.

    Parameters
    ----------
    title, truth_title : str
        Names of the dataset and of its derivatives.
    notice : str
        What is real and what is modelled, for every description.
    kind : str
        For messages, with its article: "a simulated".
    section : str
        Key of the settings in the descriptions.
    columns : mapping of str to str
        Columns of the table of participants, with their descriptions.
    licences : sequence of Licence
        Licences of what the cohort is made of.
    """

    title: str
    truth_title: str
    notice: str
    kind: str
    section: str
    columns: Mapping[str, str]
    licences: Sequence[Licence] = LICENCES

    def describe(self, folder: Path, settings: dict[str, Any]) -> None:
        """Write the description of the dataset, or check that an existing one is equal."""
        path = folder / "dataset_description.json"
        if path.is_file():
            try:
                found = read_json(path)[self.section]
            except (KeyError, TypeError, ValueError) as error:
                raise DatasetError(f"{path}: not the description of {self.kind} cohort.") from error
            changed = [
                f"{name} is {found.get(name)}, not {settings.get(name)}"
                for name in dict.fromkeys([*settings, *found])
                if found.get(name) != settings.get(name)
            ]
            if changed:
                raise DatasetError(
                    f"{folder} contains a cohort with other settings: {'; '.join(changed)}. "
                    "Choose another folder."
                )
            return
        if folder.exists() and any(folder.iterdir()):
            raise DatasetError(f"{folder} contains other files: choose an empty folder.")
        common = {
            "BIDSVersion": BIDS_VERSION,
            "License": "; ".join(f"{licence.name} ({licence.covers})" for licence in self.licences),
            "GeneratedBy": [{"Name": "tripq", "Version": __version__, "Description": self.notice}],
        }
        truth = {"Name": self.truth_title, "DatasetType": "derivative"}
        write_json(folder / TRUTH / "dataset_description.json", {**truth, **common})
        listed = "\n".join(f"* {licence}" for licence in self.licences)
        write_text(
            folder / "README",
            f"{self.title}\n\n{self.notice}\n\n"
            f"Brain masks and the truth are in {TRUTH.as_posix()}.\n\nLicences:\n{listed}\n",
        )
        # last, because it marks the other files as complete
        write_json(
            path, {"Name": self.title, "DatasetType": "raw", **common, self.section: settings}
        )

    def write_subject(
        self,
        folder: Path,
        name: str,
        subject: Subject,
        settings: dict[str, Any],
        about: dict[str, str],
    ) -> None:
        """Write a subject in a hidden folder, and move it to its two folders."""
        part = folder / f".{name}.part"
        shutil.rmtree(part, ignore_errors=True)  # from an interrupted run
        scan, truth = part / "scan" / "dwi", part / "truth" / "dwi"
        scan.mkdir(parents=True)
        truth.mkdir(parents=True)
        write_subject(subject, part)
        for suffix in ("nii.gz", "bval", "bvec"):
            os.replace(part / f"dwi.{suffix}", scan / f"{name}_dwi.{suffix}")
        for plain, labelled in (
            ("mask", "desc-brain_mask"),
            ("lesion", "label-lesion_mask"),
            ("coverage", "label-lesion_probseg"),
        ):
            os.replace(part / f"{plain}.nii.gz", truth / f"{name}_{labelled}.nii.gz")
        write_json(
            scan / f"{name}_dwi.json",
            {
                "Description": self.notice,
                self.section: {**settings, "SubjectSeed": subject.seed},
                **about,
            },
        )
        target = folder / TRUTH / name
        shutil.rmtree(target, ignore_errors=True)  # from a run interrupted between the two moves
        os.replace(part / "truth", target)
        os.replace(part / "scan", folder / name)
        part.rmdir()

    def write_participants(self, folder: Path) -> None:
        """List the finished subjects, from the files beside their scans, and describe the list."""
        lines = ["\t".join(["participant_id", *self.columns])]
        for name in finished(folder):
            sidecar = folder / name / "dwi" / f"{name}_dwi.json"
            about = read_json(sidecar)
            lines.append("\t".join([name, *(about.get(column, "n/a") for column in self.columns)]))
        write_text(folder / "participants.tsv", "\n".join(lines) + "\n")
        write_json(
            folder / "participants.json",
            {name: {"Description": text} for name, text in self.columns.items()},
        )


def finished(folder: Path) -> list[str]:
    """Names of the finished subjects, sorted."""
    return sorted(path.name for path in folder.glob("sub-*") if path.is_dir())


def digest(*arrays: NDArray[Any]) -> str:
    """SHA-256 of the types, shapes and values of arrays."""
    value = hashlib.sha256()
    for array in arrays:
        value.update(f"{array.dtype.str}{array.shape}".encode())
        value.update(np.ascontiguousarray(array).tobytes())
    return value.hexdigest()


def volume_ml(subject: Subject) -> float:
    """Volume of the lesions of a subject in ml."""
    return float(subject.lesion.sum() * voxel_ml(subject.dwi.affine))
