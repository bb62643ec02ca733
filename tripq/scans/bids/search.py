"""The scans, maps and masks that a BIDS dataset has.

There is no index: the few folders with diffusion scans are listed when they are needed.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

from tripq.infra.files import read_json
from tripq.scans.bids.names import (
    EXTENSIONS,
    BIDSError,
    BIDSMissingError,
    BIDSScan,
)

_log = logging.getLogger("tripq")
_NO_MAGNITUDE = {"phase", "real", "imag"}  # values of the entity "part"
_MOST_LISTED = 10  # labels in a message


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
        for extension in EXTENSIONS
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
