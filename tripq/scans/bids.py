"""Diffusion scans of a BIDS dataset, their derivatives, and the paths of results.

The Brain Imaging Data Structure (https://bids-specification.readthedocs.io) names files by
entities: ``sub-01_ses-02_run-1_dwi.nii.gz``.  A table can be beside the scan, or in a folder above
and apply to several scans (the inheritance principle).

There is no index: the few folders with diffusion scans are listed when they are needed.
"""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from urllib.parse import quote

from tripq.infra.files import read_json
from tripq.scans import Frame
from tripq.scans.gradients import MRTRIX_SUFFIX

BIDS_VERSION = "1.10.0"
"""The version of the specification that results follow."""

_log = logging.getLogger("tripq")
_EXTENSIONS = (".nii.gz", ".nii")
_ORDER = ("sub", "ses", "sample", "task", "acq", "ce", "rec", "dir", "run", "echo", "part", "space")
_NO_MAGNITUDE = {"phase", "real", "imag"}  # values of the entity "part"
_MOST_LISTED = 10  # labels in a message
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
        for extension in _EXTENSIONS:
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


def find_scans(
    root: Path, participants: Sequence[str] = (), sessions: Sequence[str] = ()
) -> list[BIDSScan]:
    """Diffusion scans of a dataset: ``sub-*/[ses-*/]dwi/*_dwi.nii[.gz]``.

    Phase images and real and imaginary parts are left out.

    Parameters
    ----------
    root : Path
        Of the dataset.
    participants, sessions : sequence of str, optional
        Labels, with or without ``sub-`` and ``ses-``; by default all.

    Returns
    -------
    list of BIDSScan
        By name.

    Raises
    ------
    BIDSError
        If there is none, or none of a participant or of the sessions that were asked for; it names
        those that there are.
    """
    found = _list(root, "sub-*/dwi/sub-*_dwi", "sub-*/ses-*/dwi/sub-*_dwi")
    scans = [scan for scan in found if scan.name.entities.get("part") not in _NO_MAGNITUDE]
    if not scans:
        raise BIDSError(
            f"{root}: no diffusion scans sub-*/[ses-*/]dwi/*_dwi.nii.gz in this folder."
        )
    of_participants = _of_participants(scans, participants, f"{root}: no diffusion scan")
    of_session = _labels(sessions, "ses-")
    chosen = [scan for scan in of_participants if not of_session or scan.session in of_session]
    if not chosen:
        known = {scan.session for scan in of_participants if scan.session}
        raise BIDSError(
            f"{root}: no diffusion scan of session {', '.join(sorted(of_session))}; there are "
            f"{_listed(known) or 'no sessions'}."
        )
    return chosen


def find_maps(root: Path, label: str, participants: Sequence[str] = ()) -> list[BIDSScan]:
    """Maps of a dataset of derivatives: ``sub-*/**/*_label-<label>[_*]_probseg.nii[.gz]``.

    Parameters
    ----------
    root, participants
        As in `find_scans`.
    label : str
        Of what the maps show.

    Returns
    -------
    list of BIDSScan
        By name.

    Raises
    ------
    BIDSError
        If there is none, or none of a participant that was asked for; it names those that there
        are.
    """
    maps = _list_label(root, label, "*_probseg")
    return _of_participants(maps, participants, f"{root}: no {label} map")


def find_masks(root: Path, label: str, participants: Sequence[str] = ()) -> list[Path]:
    """Masks of a dataset of derivatives: ``sub-*/**/*_label-<label>_mask.nii[.gz]``.

    Parameters are those of `find_maps`; a participant may have no mask.

    Raises
    ------
    BIDSError
        If there is none of anybody.
    """
    wanted = _labels(participants, "sub-")
    masks = _list_label(root, label, "_mask")
    return [found.path for found in masks if not wanted or found.subject in wanted]


def find_images(root: Path, ending: str, participants: Sequence[str] = ()) -> list[BIDSScan]:
    """Images of a dataset of derivatives: ``sub-*/**/sub-*_<ending>.nii[.gz]``.

    Parameters and errors are those of `find_maps`, but for the ending of the names.
    """
    images = _list(root, f"sub-*/**/sub-*_{ending}")
    if not images:
        raise BIDSError(f"{root}: no sub-*/**/*_{ending}.nii.gz in this folder.")
    return _of_participants(images, participants, f"{root}: no {ending} image")


def find_brain_mask(scan: BIDSScan, usual: Path, chosen: Path | None = None) -> Path | None:
    """The brain mask of a scan or a map that may have none; see `BIDSScan.brain_mask`.

    Parameters
    ----------
    scan : BIDSScan
        The scan.
    usual : Path
        Dataset that may have a mask.
    chosen : Path, optional
        Dataset that must have one; the other is then not used.

    Raises
    ------
    BIDSMissingError
        If `chosen` has none.
    BIDSError
        If two apply equally.
    """
    if chosen is not None:
        return scan.brain_mask(chosen)
    try:
        return scan.brain_mask(usual)
    except BIDSMissingError:
        return None


def find_namesakes(
    scans: Sequence[BIDSScan], name: Callable[[BIDSScan], Hashable]
) -> dict[Path, str]:
    """Scans whose name another scan has, too.

    Parameters
    ----------
    scans : sequence of BIDSScan
        Of one dataset.
    name : callable
        Gives the name of a scan, such as that of its result.

    Returns
    -------
    dict of Path to str
        The path of each below the root, and the others of its name.

    Examples
    --------
    >>> root = Path("data")
    >>> paths = [root / f"sub-01_{end}" for end in ("dwi.nii", "dwi.nii.gz", "acq-x_dwi.nii")]
    >>> scans = [BIDSScan(root, path) for path in paths]
    >>> shared = find_namesakes(scans, lambda scan: scan.result("WM", "mask", ".nii.gz"))
    >>> {path.name: others for path, others in shared.items()}
    {'sub-01_dwi.nii': 'sub-01_dwi.nii.gz', 'sub-01_dwi.nii.gz': 'sub-01_dwi.nii'}
    """
    groups: dict[Hashable, list[Path]] = defaultdict(list)
    for scan in scans:
        groups[name(scan)].append(scan.relative)
    return {
        path: _listed(other.as_posix() for other in group if other != path)
        for group in groups.values()
        if len(group) > 1
        for path in group
    }


def dataset_name(root: Path, usual: str) -> str:
    """What a dataset is called where results refer to it.

    Parameters
    ----------
    root : Path
        Of the dataset.
    usual : str
        The name, unless its description says that it is one of derivatives.

    Returns
    -------
    str
        Of derivatives the program that made them, such as ``"qsiprep"``, or ``"derivatives"`` where
        that is not said.
    """
    try:
        about = read_json(root / "dataset_description.json")
    except (OSError, ValueError):
        return usual
    if about.get("DatasetType") != "derivative":
        return usual
    try:
        program = about["GeneratedBy"][0]["Name"].lower()
    except (LookupError, TypeError, AttributeError):
        program = ""
    return re.sub("[^a-z0-9]", "", program) or "derivatives"


def bids_uri(dataset: str, path: PurePath) -> str:
    """Address of a file in a dataset that ``DatasetLinks`` names; ``""`` is the dataset itself.

    >>> bids_uri("raw", PurePath("sub-01/dwi/sub-01_dwi.nii.gz"))
    'bids:raw:sub-01/dwi/sub-01_dwi.nii.gz'
    """
    return f"bids:{dataset}:{quote(os.fsencode(path.as_posix()))}"


def _of_participants(
    scans: Sequence[BIDSScan], participants: Sequence[str], without: str
) -> list[BIDSScan]:
    """Items of some participants, or of all if none is named; `without` begins an error message."""
    wanted = _labels(participants, "sub-")
    known = {scan.subject for scan in scans}
    if missing := sorted(wanted - known):
        raise BIDSError(
            f"{without} of participant {', '.join(missing)}; there are {_listed(known)}."
        )
    return [scan for scan in scans if not wanted or scan.subject in wanted]


def _listed(labels: Iterable[str]) -> str:
    """Labels in a row, the first of many.

    >>> _listed(f"{number:02}" for number in range(14))
    '00, 01, 02, 03, 04, 05, 06, 07, 08, 09, ... (14)'
    """
    ordered = sorted(labels)
    more = f", ... ({len(ordered)})" if len(ordered) > _MOST_LISTED else ""
    return ", ".join(ordered[:_MOST_LISTED]) + more


def check_folder(root: Path) -> None:
    """Check that a dataset exists.

    Raises
    ------
    BIDSError
        If there is no such folder.
    """
    if not root.is_dir():
        raise BIDSError(f"{root}: no such folder.")


def _list(root: Path, *patterns: str) -> list[BIDSScan]:
    """Images in a folder whose paths without extension match one of the patterns, by name.

    Hidden folders, in which `tripq.infra.files.staged` works, are left out, and so are names that
    are not made of entities and one extension.
    """
    check_folder(root)
    files = [
        file
        for pattern in patterns
        for extension in _EXTENSIONS
        for file in root.glob(f"{pattern}{extension}")
        if not any(part.startswith(".") for part in file.relative_to(root).parts)
    ]
    tables: dict[tuple[Path, str], list[Path]] = {}
    scans = [BIDSScan(root, file, _tables=tables) for file in sorted(files)]
    for scan in scans:
        if "sub" not in scan.name.entities:
            _log.warning("%s: ignored: not a BIDS name.", scan.path)
    return [scan for scan in scans if "sub" in scan.name.entities]


def _list_label(root: Path, label: str, ending: str) -> list[BIDSScan]:
    """At least one image of a label in derivatives; the ending is a pattern behind the label."""
    found = _list(root, f"sub-*/**/sub-*_label-{label}{ending}")
    images = [image for image in found if image.name.entities.get("label") == label]
    if not images:
        ending = ending.removeprefix("*")
        raise BIDSError(f"{root}: no sub-*/**/*_label-{label}{ending}.nii.gz in this folder.")
    return images


def _labels(given: Iterable[str], prefix: str) -> set[str]:
    return {label.removeprefix(prefix) for label in given}


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
