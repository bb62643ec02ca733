"""Files of a simulated or changed cohort as a BIDS dataset.

The layout (https://bids-specification.readthedocs.io)::

    dataset_description.json  README  participants.tsv  participants.json
    sub-01/dwi/sub-01_dwi.nii.gz  .bval  .bvec  .json
    derivatives/truth/dataset_description.json
    derivatives/truth/sub-01/dwi/sub-01_desc-brain_mask.nii.gz, and the truth of the task

A subject is written in a hidden folder and moved when it is complete, the scan last.  A folder
``sub-NN`` is therefore a finished subject.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tripq import __version__
from tripq.infra.files import read_json, write_json, write_text
from tripq.scans.bids import BIDS_VERSION

TRUTH = Path("derivatives") / "truth"
"""Folder of the masks and the truth in a cohort."""


class DatasetError(ValueError):
    """A dataset cannot be downloaded, read or written; the message names file and reason."""


@dataclass(frozen=True)
class Licence:
    """Terms of use of files.

    Parameters
    ----------
    name : str
        Name of the licence.
    covers : str
        Material under this licence.
    terms : str
        Its conditions.
    """

    name: str
    covers: str
    terms: str

    def __str__(self) -> str:
        return f"{self.name}, for {self.covers}: {self.terms}"


ICBM = Licence(
    "ICBM 152 template licence",
    "the template of the heads (ICBM 2009a symmetric, as included in nilearn)",
    "cite Fonov et al., NeuroImage 54:313-327 (2011).",
)
"""Of cohorts that are simulated from the template alone."""


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
    licences : sequence of Licence
        Licences of the sources of the cohort.
    columns : mapping of str to str
        Columns of the table of participants, with their descriptions.
    ignored : str
        For ``.bidsignore`` of the truth: names that the BIDS standard does not have.
    """

    title: str
    truth_title: str
    notice: str
    kind: str
    section: str
    licences: Sequence[Licence]
    columns: Mapping[str, str] = field(default_factory=dict)
    ignored: str = ""

    def describe(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Write the description of the dataset, or check that an existing one is equal.

        Raises
        ------
        DatasetError
            If the folder contains other files, or a cohort with other settings.
        """
        path = folder / "dataset_description.json"
        if path.is_file():
            self._check(path, settings)
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
        if self.ignored:
            write_text(folder / TRUTH / ".bidsignore", f"{self.ignored}\n")
        listed = "\n".join(f"* {licence}" for licence in self.licences)
        write_text(
            folder / "README",
            f"{self.title}\n\n{self.notice}\n\n"
            f"Brain masks and the truth are in {TRUTH.as_posix()}.\n\nLicences:\n{listed}\n",
        )
        # last, because it marks the other files as complete
        write_json(
            path, {"Name": self.title, "DatasetType": "raw", **common, self.section: {**settings}}
        )

    def _check(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Raise a `DatasetError` if the description of a dataset is not that of these settings."""
        try:
            found = read_json(path)[self.section]
            changed = [
                f"{name} is {found.get(name)}, not {settings.get(name)}"
                for name in dict.fromkeys([*settings, *found])
                if found.get(name) != settings.get(name)
            ]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{path}: not the description of {self.kind} cohort.") from error
        if changed:
            raise DatasetError(
                f"{path.parent} contains a cohort with other settings: {'; '.join(changed)}. "
                "Choose another folder."
            )

    def write_subject(
        self,
        folder: Path,
        name: str,
        write: Callable[[Path, Path], None],
        settings: Mapping[str, Any],
        about: Mapping[str, str],
    ) -> None:
        """Write a subject in a hidden folder, and move it to its two folders.

        Parameters
        ----------
        folder : Path
            The dataset.
        name : str
            Of the subject, such as ``sub-01``.  An existing subject of this name is replaced.
        write : callable
            ``write(scan, truth)`` writes ``{name}_dwi.nii.gz`` with its table into the first
            folder, and the brain mask and the truth into the second.
        settings : mapping
            For the sidecar of the scan.
        about : mapping of str to str
            The columns of the table of participants, for the same sidecar.
        """
        part = folder / f".{name}.part"
        shutil.rmtree(part, ignore_errors=True)  # from an interrupted run
        scan, truth = part / "scan" / "dwi", part / "truth" / "dwi"
        scan.mkdir(parents=True)
        truth.mkdir(parents=True)
        write(scan, truth)
        described = {"Description": self.notice, self.section: {**settings}, **about}
        write_json(scan / f"{name}_dwi.json", described)
        # the scan last; a run interrupted between the two moves leaves the truth alone
        for source, target in (("truth", folder / TRUTH / name), ("scan", folder / name)):
            shutil.rmtree(target, ignore_errors=True)
            os.replace(part / source, target)
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
