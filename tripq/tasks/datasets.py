"""Datasets of all tasks: scans, description, and the participants for validation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tripq.infra.files import read_json, sha256
from tripq.scans import Frame
from tripq.scans.bids import BIDSError, BIDSMissingError, BIDSScan, find_namesakes, find_scans
from tripq.scans.gradients import has_only_b0
from tripq.scans.nifti import open_nifti
from tripq.tasks import Bar, Cohort
from tripq.tasks.shelf import Shelf, shelf_key

if TYPE_CHECKING:
    from tripq.domain.quadrature import Quadrature
    from tripq.training.config import SplitConfig

_log = logging.getLogger("tripq")


@dataclass(frozen=True)
class ScanFiles:
    """Files of a scan for training; the class of a task adds its masks and its truth.

    Parameters
    ----------
    name : str
        Entities of the scan, such as ``sub-01_ses-a``.
    participant : str
        Label without ``sub-``.
    scan : Path
        The scan.
    bval : Path or None
        Its b-values; None for an MRtrix table.
    bvec : Path
        Its directions, or its MRtrix table.
    """

    name: str
    participant: str
    scan: Path
    bval: Path | None
    bvec: Path

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file, in the order of the fields."""
        return tuple(value for value in vars(self).values() if isinstance(value, Path))

    @classmethod
    def added(cls, scan: BIDSScan, truth: Path) -> Mapping[str, Path | None]:
        """The files that a task adds, by field, from derivatives with the truth; here none.

        Raises
        ------
        tripq.scans.bids.BIDSMissingError
            If one that is needed is missing: the scan is left out.
        """
        return {}

    @classmethod
    def find(cls: type[Files], data: Path, truth: Path, frame: Frame = "fsl") -> FoundScans[Files]:
        """Find the scans of a dataset that are suitable for training, and warn about the others.

        Parameters
        ----------
        data : Path
            The dataset.
        truth : Path
            Derivatives with the truth of its scans; see `added`.
        frame : {"fsl", "voxel", "world"}
            Frame of the gradient tables; see `tripq.scans.bids.BIDSScan.gradient_table`.

        Returns
        -------
        FoundScans
            Scans without a file that is needed, with b0 volumes only, or with the name of another
            scan are left out.

        Raises
        ------
        tripq.scans.bids.BIDSError
            If no scan is suitable, a table is missing, or two files apply equally to a scan.
        """
        files: list[Files] = []
        left_out: dict[str, str] = {}
        scans = find_scans(data)
        shared = find_namesakes(scans, lambda scan: frozenset(_name(scan).split("_")))
        for scan in scans:
            place = scan.relative.as_posix()
            if scan.relative in shared:
                other = shared[scan.relative]
                left_out[place] = f"it has the same name as {other}: keep one of them"
                continue
            bval, bvec = scan.gradient_table(frame)
            if has_only_b0(bval or bvec):
                left_out[place] = "no diffusion-weighted volume"
                continue
            try:
                added = cls.added(scan, truth)
            except BIDSMissingError as error:
                left_out[place] = str(error)
                continue
            files.append(cls(_name(scan), scan.subject, scan.path, bval, bvec, **added))
        if not files:
            raise BIDSError(
                f"{data}: none of its {len(left_out)} scans is suitable for training; reason for "
                f"the first: {next(iter(left_out.values()))}"
            )
        for place, reason in left_out.items():
            _log.warning("%s: left out: %s", place, reason)
        return FoundScans(tuple(files), left_out)


Files = TypeVar("Files", bound=ScanFiles)


@dataclass(frozen=True)
class ReadableFiles(ScanFiles):
    """Files of a scan that are enough to read it."""

    def read(self, frame: Frame) -> Any:
        """Read the scan, with its table in a frame.

        Raises
        ------
        tripq.scans.DWIError
            If a file is damaged; the message names it.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class FoundScans(Generic[Files]):
    """Scans of a dataset that are suitable for training.

    Parameters
    ----------
    files : tuple of ScanFiles
        Files of each scan, sorted by name.
    left_out : mapping of str to str
        Reason of exclusion by the path of every other scan.
    """

    files: tuple[Files, ...]
    left_out: Mapping[str, str]

    @property
    def participants(self) -> tuple[str, ...]:
        """Distinct labels, sorted."""
        return tuple(sorted({files.participant for files in self.files}))


def _name(scan: BIDSScan) -> str:
    return scan.path.name.partition(".")[0].removesuffix("_dwi")


def voxel_edges(files: Sequence[ScanFiles]) -> Mapping[Path, NDArray[np.float64]]:
    """Edges of the voxels of each scan in mm, (3,); only headers are read."""
    return {item.scan: nib.affines.voxel_sizes(open_nifti(item.scan).affine) for item in files}


def range_of_edges(edges: Mapping[Path, NDArray[np.float64]]) -> tuple[float, float]:
    """Shortest and longest edge of all scans in mm."""
    found = np.array(list(edges.values()))
    return round(float(found.min()), 3), round(float(found.max()), 3)


def range_of_voxels(files: Sequence[ScanFiles], *, common: bool = False) -> tuple[float, float]:
    """Shortest and longest edge of the voxels of all scans in mm; only headers are read.

    Parameters
    ----------
    files : sequence of ScanFiles
        Of the scans.
    common : bool
        Whether all voxels must be cubes of one size, as a network whose layers are sums needs them:
        edges may differ from the median by `VOXEL_TOLERANCE` of `tripq.networks.apply`.  It is then
        both edges.

    Raises
    ------
    BIDSError
        If an edge differs by more; the message names the scan.
    tripq.scans.DWIError
        If a scan cannot be read.
    """
    from tripq.networks.apply import VOXEL_TOLERANCE

    edges = voxel_edges(files)
    size = float(np.median([np.prod(lengths) ** (1 / 3) for lengths in edges.values()]))
    others = {
        path: lengths
        for path, lengths in edges.items()
        if np.any(np.abs(lengths - size) > VOXEL_TOLERANCE * size)
    }
    if not others:
        return round(size, 3), round(size, 3)
    if common:
        path, lengths = next(iter(others.items()))
        shown = " x ".join(f"{edge:.3g}" for edge in lengths)
        raise BIDSError(
            f'{path}: voxels of {shown} mm, but quadrature = "sum" needs cubic voxels of one size, '
            f'here {size:.3g} mm: choose quadrature = "integral", or resample the scan and its '
            "masks (see tripq.scans.resampling)."
        )
    return range_of_edges(edges)


def describe_dataset(data: Path) -> tuple[str, bool]:
    """Name of a dataset, and whether its signal is simulated."""
    path = data / "dataset_description.json"
    if not path.is_file():
        return data.resolve().name, False
    try:
        about = read_json(path)
        return str(about.get("Name", data.resolve().name)), "Simulation" in about
    except ValueError:
        _log.warning("%s: cannot be read.", path)
        return data.resolve().name, False


def read_cohort(
    data: Path,
    found: FoundScans[Files],
    split: SplitConfig,
    read: Callable[[Files, list[str]], Any],
    bar: Bar,
    *,
    quadrature: Quadrature,
) -> Cohort:
    """Split and read the scans of a training; headers are checked first, as reading is slow.

    Parameters
    ----------
    data : Path
        The dataset.
    found : FoundScans
        Files of each scan.
    split : SplitConfig
        Settings of the choice of participants for validation; see `choose_validation`.
    read : callable
        Reads a scan, given its files and their SHA-256; see `in_memory` and `on_shelf`.
    bar : callable
        See `tripq.tasks.TaskCommands.read_cohort`.
    quadrature : {"integral", "sum"}
        Of the network; sums need cubic voxels of one size, see `range_of_voxels`.

    Raises
    ------
    BIDSError, ConfigError, ValueError, tripq.scans.DWIError
        As by `range_of_voxels`, `choose_validation` and `read`.
    """
    files = found.files
    voxel_sizes = range_of_voxels(files, common=quadrature == "sum")
    held_out = choose_validation(data, found.participants, split)
    training: list[Any] = []
    validation: list[Any] = []
    fingerprints: dict[str, dict[str, list[str]]] = {"scans": {}, "validation_scans": {}}
    with bar("reading", "scans") as update:
        for number, item in enumerate(files):
            update(number, len(files))
            digests = [sha256(path) for path in item.all]
            is_held_out = item.participant in held_out
            (validation if is_held_out else training).append(read(item, digests))
            kind = "validation_scans" if is_held_out else "scans"
            fingerprints[kind][item.name] = digests
    name, simulated = describe_dataset(data)
    return Cohort(name, simulated, training, validation, held_out, voxel_sizes, fingerprints)


def read_all(
    kind: type[ReadableFiles],
    data: Path,
    truth: Path,
    frame: Frame,
    memory: float,
    split: SplitConfig,
    bar: Bar,
    *,
    quadrature: Quadrature,
) -> Cohort:
    """Find, split and read the scans of a training, all of them in memory.

    Parameters
    ----------
    kind : type
        Files of a scan.
    data, truth, frame
        As in `ScanFiles.find`.
    memory : float
        Bytes that all scans may take; see `in_memory`.
    split, bar, quadrature
        As in `read_cohort`.

    Raises
    ------
    BIDSError, ConfigError, ValueError, tripq.scans.DWIError
        As by `ScanFiles.find`, `read_cohort` and `in_memory`.
    """
    found = kind.find(data, truth, frame)
    read = in_memory(partial(kind.read, frame=frame), memory)
    return read_cohort(data, found, split, read, bar, quadrature=quadrature)


def in_memory(read: Callable[[Files], Any], memory: float) -> Callable[[Files, list[str]], Any]:
    """A reader for `read_cohort` of scans that all stay in memory.

    Parameters
    ----------
    read : callable
        Reads a scan, given its files.
    memory : float
        Bytes that all scans may take.

    Raises
    ------
    ValueError
        By the reader, if the scans up to one take more.
    """
    size = 0

    def read_within(files: Files, digests: list[str]) -> Any:
        nonlocal size
        scan = read(files)
        arrays = (scan.dwi.signal, *vars(scan).values())
        size += sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))
        if size > memory:
            raise ValueError(
                f"{files.scan}: the scans up to this one take {size / 1e9:.2f} GB, more than "
                "--memory: allow more, or train on fewer scans."
            )
        return scan

    return read_within


def on_shelf(
    read: Callable[[Files], Any], shelf: Shelf[Any], frame: Frame, *about: str
) -> Callable[[Files, list[str]], Any]:
    """A reader for `read_cohort` of scans that stay in memory or in files.

    Parameters
    ----------
    read : callable
        Reads a scan into memory, given its files.
    shelf : Shelf
        Keeps the scans.
    frame : {"fsl", "voxel", "world"}
        Frame of the gradient tables.
    about : str
        What a scan depends on besides its files and the frame.
    """

    def read_once(files: Files, digests: list[str]) -> Any:
        key = shelf_key(files.name, frame, *digests, *about)
        return shelf.keep(key, partial(read, files))

    return read_once


def choose_validation(
    data: Path, participants: Sequence[str], split: SplitConfig
) -> tuple[str, ...]:
    """Labels of the participants for validation: those of the settings, or drawn.

    Parameters
    ----------
    data : Path
        The dataset, for messages.
    participants : sequence of str
        Labels of those with scans for training, without ``sub-``.
    split : SplitConfig
        Settings.

    Raises
    ------
    ConfigError
        If a label is unknown, or no participant is left for training.
    ValueError
        If there are fewer than two participants.
    """
    from tripq.training.config import ConfigError

    if split.validation is None:
        held_out = draw_validation(participants, split.share, split.seed)
    else:
        held_out = tuple(label.removeprefix("sub-") for label in split.validation)
        if missing := sorted(set(held_out) - set(participants)):
            raise ConfigError(
                f"[split] validation: {data} has no scans suitable for training of "
                f"{', '.join(missing)}."
            )
        if not set(participants) - set(held_out):
            raise ConfigError("[split] validation: no participant is left for training.")
    _log.info("validation participants: %s.", ", ".join(held_out))
    return held_out


def draw_validation(
    participants: Sequence[str], share: float = 0.2, seed: int = 0
) -> tuple[str, ...]:
    """Draw the participants for validation.

    Parameters
    ----------
    participants : sequence of str
        Labels.
    share : float
        Fraction for validation; at least one is drawn, and at least one remains for training.
    seed : int
        Seed of the draw.

    Raises
    ------
    ValueError
        If there are fewer than two.

    Examples
    --------
    >>> len(draw_validation(["01", "02", "03", "04", "05"], share=0.4))
    2
    """
    if len(participants) < 2:
        raise ValueError(
            f"participants with scans suitable for training: {len(participants)}; one is needed "
            "for training and another for validation."
        )
    number = min(max(1, round(share * len(participants))), len(participants) - 1)
    drawn = np.random.default_rng(seed).permutation(sorted(participants))[:number]
    return tuple(sorted(map(str, drawn)))
