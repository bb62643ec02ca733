"""Names of files in a BIDS dataset, what belongs to a scan, and the paths of results.

A table can be beside the scan, or in a folder above and apply to several scans (the inheritance
principle).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from urllib.parse import quote

from tripq.scans import Frame
from tripq.scans.gradients import MRTRIX_SUFFIX

BIDS_VERSION = "1.10.0"
"""The version of the specification that results follow."""

EXTENSIONS = (".nii.gz", ".nii")
"""Of images."""

_ORDER = ("sub", "ses", "sample", "task", "acq", "ce", "rec", "dir", "run", "echo", "part", "space")
_OF_IMAGES = {"space", "res", "den", "label", "model", "param", "desc"}  # what it is, not whose

IGNORED_MAPS = "*_dwimap.*"
"""For ``.bidsignore``: names of `model_map`, which the released BIDS standard does not know."""


class BIDSError(ValueError):
    """A dataset violates BIDS, or has no usable file; the message gives the reason."""


class BIDSMissingError(BIDSError):
    """A scan lacks a file; the message gives the folder that was searched."""


@dataclass(frozen=True)
class BIDSName:
    """Name of a file: its entities, its suffix and its extension.

    Examples
    --------
    >>> name = BIDSName.parse("sub-01_run-2_dwi.nii.gz")
    >>> name.entities["run"], name.suffix, name.extension
    ('2', 'dwi', '.nii.gz')
    >>> str(name)
    'sub-01_run-2_dwi.nii.gz'
    """

    entities: Mapping[str, str]
    suffix: str
    extension: str

    @classmethod
    def parse(cls, name: str) -> BIDSName:
        """Take a name apart; parts that are no entities are left out."""
        stem, dot, extension = name.partition(".")
        *pairs, suffix = stem.split("_")
        entities = dict(pair.split("-", 1) for pair in pairs if "-" in pair)
        return cls(entities, suffix, dot + extension)

    def applies_to(self, other: BIDSName) -> bool:
        """Whether the other has the same suffix, and all entities that this one has."""
        return self.suffix == other.suffix and self.entities.items() <= other.entities.items()

    def __str__(self) -> str:
        pairs = [f"{entity}-{label}" for entity, label in self.entities.items()]
        return "_".join([*pairs, self.suffix]) + self.extension


@dataclass(frozen=True)
class BIDSScan:
    """A diffusion scan of a dataset, or a map of a scan in a dataset of derivatives.

    Parameters
    ----------
    root : Path
        Of the dataset.
    path : Path
        Of the scan, below `root`.

    Examples
    --------
    >>> scan = BIDSScan(Path("data"), Path("data/sub-01/ses-1/dwi/sub-01_ses-1_acq-b2_dwi.nii.gz"))
    >>> scan.subject, scan.session
    ('01', '1')
    >>> print(scan.result("WM", "probseg", ".nii.gz").as_posix())
    sub-01/ses-1/dwi/sub-01_ses-1_acq-b2_space-orig_label-WM_probseg.nii.gz
    """

    root: Path
    path: Path
    name: BIDSName = field(init=False)
    _tables: dict[tuple[Path, str], list[Path]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", BIDSName.parse(self.path.name))

    @property
    def subject(self) -> str:
        """Label of the participant."""
        return self.name.entities["sub"]

    @property
    def session(self) -> str | None:
        """Label of the session, if there are sessions."""
        return self.name.entities.get("ses")

    @property
    def relative(self) -> Path:
        """Path below the root of the dataset."""
        return self.path.relative_to(self.root)

    def table(self, extension: str) -> Path:
        """File that describes it, such as its gradient table, by the inheritance principle.

        Parameters
        ----------
        extension : str
            ``.bval``, ``.bvec`` or ``.b`` of a scan, ``.tsv`` of a label image.

        Returns
        -------
        Path
            In the scan's folder or the nearest one above that has one.  Of several in one folder
            the one with most entities.

        Raises
        ------
        BIDSMissingError
            If there is none.
        BIDSError
            If two hold equally.
        """
        for folder in self.path.parents:
            if not folder.is_relative_to(self.root):
                break
            # The root has a folder for each subject: it is listed once for all scans.
            ending = f"{self.name.suffix}{extension}"
            if (folder, ending) not in self._tables:
                self._tables[folder, ending] = [*folder.glob(f"*{ending}")]
            there = self._tables[folder, ending]
            found = [file for file in there if BIDSName.parse(file.name).applies_to(self.name)]
            if found:
                return _most_specific(found, self)
        raise BIDSMissingError(
            f"{self.path}: no {extension} file applies to this scan, in its folder or above, up to "
            f"{self.root}."
        )

    def gradient_table(self, frame: Frame) -> tuple[Path | None, Path]:
        """Files of its b-values and directions, as `tripq.scans.read_dwi` takes them.

        Parameters
        ----------
        frame : {"fsl", "voxel", "world"}
            Of the directions.  A table of MRtrix (``.b``) is in world axes: for ``"world"`` it is
            taken first, and for the others never.

        Returns
        -------
        bval : Path or None
            None for a table of MRtrix, which has both.
        bvec : Path

        Raises
        ------
        BIDSError
            If there is none, or two hold equally.
        """
        try:
            mrtrix = self.table(MRTRIX_SUFFIX)
        except BIDSMissingError:
            return self.table(".bval"), self.table(".bvec")
        if frame == "world":
            return None, mrtrix
        try:
            return self.table(".bval"), self.table(".bvec")
        except BIDSMissingError as error:
            raise BIDSMissingError(
                f"{error} There is {mrtrix}, which is in world axes: use it with --frame world."
            ) from error

    def brain_mask(self, derivatives: Path) -> Path:
        """Its brain mask in a dataset of derivatives, on its own grid.

        Parameters
        ----------
        derivatives : Path
            Root of a dataset such as those of QSIPrep or fMRIPrep.

        Returns
        -------
        Path
            A ``desc-brain_mask`` beside which the scan would lie, of the same space.

        Raises
        ------
        BIDSMissingError
            If there is none.
        BIDSError
            If two hold equally.
        """
        return self.mask(derivatives, "desc-brain")

    def mask(self, derivatives: Path, entity: str) -> Path:
        """Its `image` whose name ends with an entity and ``_mask``, such as ``"desc-brain"``."""
        return self.image(derivatives, f"{entity}_mask")

    def image(self, derivatives: Path, ending: str) -> Path:
        """An image about it in a dataset of derivatives, on its own grid.

        Parameters
        ----------
        derivatives : Path
            Root of the dataset.
        ending : str
            With which the name of the image ends, such as ``"label-WM_mask"`` or ``"md"``.

        Returns
        -------
        Path
            In the folder of the scan, with no entity that the scan has not itself.

        Raises
        ------
        BIDSMissingError
            If there is none.
        BIDSError
            If two hold equally.
        """
        folder = derivatives / self.relative.parent
        spaces = {None, "orig", self.name.entities.get("space")}
        found = []
        for extension in EXTENSIONS:
            for file in folder.glob(f"*_{ending}{extension}"):
                entities = BIDSName.parse(file.name).entities
                whose = {k: v for k, v in entities.items() if k not in _OF_IMAGES}
                if whose.items() <= self.name.entities.items() and entities.get("space") in spaces:
                    found.append(file)
        if not found:
            raise BIDSMissingError(
                f"{self.path}: no *_{ending}.nii.gz in {folder} belongs to this scan."
            )
        return _most_specific(found, self)

    def result(self, label: str, suffix: str, extension: str) -> Path:
        """Path of a result about it, relative to the root of the results.

        Parameters
        ----------
        label : str
            Of what the result is about, such as ``WM`` for white matter.
        suffix, extension : str
            Such as ``mask`` and ``.nii.gz``.
        """
        own = {"space": "orig", **self.name.entities}
        entities = {key: own[key] for key in _ORDER if key in own}
        entities |= {key: label for key, label in own.items() if key not in {*_ORDER, "desc"}}
        entities["label"] = label
        if "desc" in own:
            entities["desc"] = own["desc"]
        return self.relative.parent / str(BIDSName(entities, suffix, extension))


def model_map(model: str, parameter: str) -> str:
    """Ending of the name of a map of a parameter of a model.

    It is that of BIDS extension proposal 16, diffusion derivatives.

    >>> model_map("tensor", "fa")
    'model-tensor_param-fa_dwimap'
    """
    return f"model-{model}_param-{parameter}_dwimap"


def bids_uri(dataset: str, path: PurePath) -> str:
    """Address of a file in a dataset that ``DatasetLinks`` names; ``""`` is the dataset itself.

    >>> bids_uri("raw", PurePath("sub-01/dwi/sub-01_dwi.nii.gz"))
    'bids:raw:sub-01/dwi/sub-01_dwi.nii.gz'
    """
    return f"bids:{dataset}:{quote(os.fsencode(path.as_posix()))}"


def _most_specific(files: Sequence[Path], scan: BIDSScan) -> Path:
    """The file whose name has most entities."""
    ranked = sorted(files, key=lambda file: -len(BIDSName.parse(file.name).entities))
    first, *others = ranked
    count = len(BIDSName.parse(first.name).entities)
    if others and len(BIDSName.parse(others[0].name).entities) == count:
        raise BIDSError(
            f"{scan.path}: both {first.name} and {others[0].name} in {first.parent} apply to it."
        )
    return first
