"""Scores of maps against the known maps of the same scans: `tripq evaluate`, for any task.

A `MapScoring` defines which maps a task scores, reads them with the known maps, and computes the
scores.  `ValueScoring` is the one for maps of numbers.
"""

from __future__ import annotations

import csv
import io
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tripq.infra.files import printable
from tripq.scans import DWIError
from tripq.scans.bids import BIDSName, BIDSScan, find_brain_mask, find_images
from tripq.scans.nifti import check_grid, open_nifti, read_mask, read_volumes

POOLED = "all"
"""Name of the scores of all maps together."""

ReadMap = TypeVar("ReadMap")


class ScanScores(Protocol):
    """The scores of one map, or of all."""

    @property
    def name(self) -> str:
        """Of the scan; `POOLED` for all."""

    @property
    def columns(self) -> Mapping[str, float]:
        """All numbers by their names in files; NaN for undefined scores."""


@dataclass(frozen=True)
class Scored:
    """Scores of one map, or of all.

    Parameters
    ----------
    name : str
        Of the scan; `POOLED` for all.
    columns : mapping of str to float
        All numbers by the names that they have in files; NaN for what does not exist.
    """

    name: str
    columns: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The scores of maps.

    Parameters
    ----------
    rows : sequence of ScanScores
        One for each map, and the last for all.
    shown : mapping of str to str
        Titles of the columns that the screen shows.
    caption : str
        Below the table on the screen.
    settings : mapping
        What the scores depend on besides, such as a threshold; of JSON's types.
    write_page : callable
        Writes a page at a path, with settings to show and a title.
    listed : sequence of ScanScores
        Rows on the screen, such as one for each class of a map; `rows` if empty.
    """

    rows: Sequence[ScanScores]
    shown: Mapping[str, str]
    caption: str
    settings: Mapping[str, Any]
    write_page: Callable[[Path, Mapping[str, str], str], None]
    listed: Sequence[ScanScores] = ()


class MapScoring(ABC, Generic[ReadMap]):
    """The interface of a task for `tripq evaluate`.

    Attributes
    ----------
    needed : tuple of str
        Packages of the extras ``ms`` and ``scores`` that it needs.
    known : str
        Name of what the maps are compared with, in the plural, in messages.
    """

    needed: ClassVar[tuple[str, ...]] = ()
    known: ClassVar[str] = "known maps"

    @abstractmethod
    def find_maps(self, root: Path, participants: Sequence[str]) -> list[BIDSScan]:
        """The maps of a dataset of derivatives; at least one of every participant."""

    @abstractmethod
    def find_known(self, root: Path, participants: Sequence[str]) -> list[Path]:
        """Files of a dataset of derivatives that maps can be compared with."""

    @abstractmethod
    def name(self, found: BIDSScan) -> str:
        """Entities of the scan that a map is about."""

    @abstractmethod
    def read(self, found: BIDSScan, truth: Path, masks: Path | None) -> tuple[ReadMap, Path]:
        """Read a map with the known map of its scan; also return the file of the known map.

        Parameters
        ----------
        found : BIDSScan
            The map.
        truth : Path
            Derivatives with what is known.
        masks : Path or None
            Derivatives with a brain mask for every map; see
            `tripq.scans.bids.find_brain_mask`.

        Raises
        ------
        ValueError, OSError
            If it cannot be scored; the message names the file.
        """

    @abstractmethod
    def score(self, read: Sequence[ReadMap]) -> Evaluation:
        """Scores of at least one map.

        Raises
        ------
        ValueError
            If the maps cannot be scored together.
        """


def scan_name(found: BIDSScan, ending: str) -> str:
    """Entities of the scan of a map, whose name ends so.

    >>> found = BIDSScan(Path("out"), Path("out/sub-01_space-orig_desc-fit_md.nii.gz"))
    >>> scan_name(found, "desc-fit_md")
    'sub-01'
    """
    of_the_map = {("space", "orig"), *BIDSName.parse(ending).entities.items()}
    pairs = (pair for pair in found.name.entities.items() if pair not in of_the_map)
    return printable("_".join(f"{key}-{label}" for key, label in pairs))


def reject_limits(
    maps: str, threshold: float | None, min_volume: float | None, choose_limits: bool = False
) -> None:
    """Reject limits of maps, named in the plural, that have none.

    >>> reject_limits("label images", 0.5, None)
    Traceback (most recent call last):
    ...
    ValueError: --threshold: label images have none.
    """
    given = {
        "--threshold": threshold is not None,
        "--min-volume": min_volume is not None,
        "--choose-limits": choose_limits,
    }
    for option, is_given in given.items():
        if is_given:
            raise ValueError(f"{option}: {maps} have none.")


def json_columns(row: ScanScores) -> dict[str, float | None]:
    """The numbers of a row for JSON, which has no NaN.

    >>> json_columns(Scored("sub-01", {"error": 0.25, "slope": math.nan}))
    {'error': 0.25, 'slope': None}
    """
    return {key: None if math.isnan(value) else value for key, value in row.columns.items()}


def scores_tsv(rows: Sequence[ScanScores]) -> str:
    """Scores as a table of tab-separated values, with a header line; ``n/a`` for NaN.

    Examples
    --------
    >>> print(scores_tsv([Scored("sub-01", {"error": 0.25, "slope": math.nan, "voxels": 8})]))
    scan    error     slope  voxels
    sub-01  0.250000  n/a    8
    """
    text = io.StringIO()
    table = csv.writer(text, dialect="excel-tab", lineterminator="\n")
    table.writerow(["scan", *rows[0].columns])
    for row in rows:
        table.writerow([row.name, *map(_cell, row.columns.values())])
    return text.getvalue()


def _cell(value: float) -> str:
    if math.isnan(value):
        return "n/a"
    return str(value) if isinstance(value, int) else f"{value:.6f}"


@dataclass(frozen=True, eq=False)
class ValueMap:
    """A map of numbers that was read, and the known one.

    Parameters
    ----------
    name : str
        Of the scan.
    found, known : (V, C) float64 arrays
        In the voxels that are scored.
    """

    name: str
    found: NDArray[np.float64]
    known: NDArray[np.float64]


class NamedScoring(MapScoring[ReadMap]):
    """Maps and known maps that are found by the endings of their names.

    Attributes
    ----------
    ending, known_ending : str
        With which the names of maps and of known maps end, such as ``"md"``: ``sub-01_md.nii.gz``.
    """

    ending: str
    known_ending: str

    def find_maps(self, root: Path, participants: Sequence[str]) -> list[BIDSScan]:
        """Images ``sub-*/**/sub-*_<ending>.nii[.gz]``."""
        return find_images(root, self.ending, participants)

    def find_known(self, root: Path, participants: Sequence[str]) -> list[Path]:
        """Images ``sub-*/**/sub-*_<known_ending>.nii[.gz]``."""
        return [image.path for image in find_images(root, self.known_ending, participants)]

    def name(self, found: BIDSScan) -> str:
        """See `scan_name`."""
        return scan_name(found, self.ending)


class ValueScoring(NamedScoring[ValueMap]):
    """Maps of numbers against known ones: errors, bias and correlation.

    Parameters
    ----------
    ending : str
        With which the names of maps and known maps end, such as ``"md"``: ``sub-01_md.nii.gz``.
    unit : str
        Of the values; empty for none.

    Examples
    --------
    >>> scoring = ValueScoring("desc-fit_md")
    >>> scoring.name(BIDSScan(Path("out"), Path("out/sub-01_space-orig_desc-fit_md.nii.gz")))
    'sub-01'
    >>> values = np.array([[1.0], [2.0], [4.0]])
    >>> (row, pooled) = scoring.score([ValueMap("sub-01", values + 1, values)]).rows
    >>> {name: round(value, 3) for name, value in row.columns.items()}
    {'mean_absolute_error': 1.0, 'rms_error': 1.0, 'bias': 1.0, 'correlation': 1.0, 'voxels': 3}
    """

    def __init__(self, ending: str, unit: str = "") -> None:
        self.ending = self.known_ending = ending
        self.unit = unit

    def read(self, found: BIDSScan, truth: Path, masks: Path | None) -> tuple[ValueMap, Path]:
        """Read a map and the known one, on the same grid, in the brain."""
        path = found.image(truth, self.ending)
        image, other = open_nifti(found.path), open_nifti(path)
        if image.shape[3:] != other.shape[3:]:
            raise DWIError(f"{found.path}: shape {image.shape}; {path} has {other.shape}.")
        check_grid(other, image, path, "the known map", f"the map {found.path}")
        brain = find_brain_mask(found, truth, masks)
        inside = np.ones(image.shape[:3], bool) if brain is None else read_mask(brain, image)
        if not inside.any():
            raise DWIError(f"{brain}: the mask of the brain is empty.")
        values = []
        for file, opened in ((found.path, image), (path, other)):
            volumes = [volume[inside] for volume in read_volumes(opened, file)]
            values.append(np.stack(volumes, axis=1).astype(np.float64))
            if not np.isfinite(values[-1]).all():
                raise DWIError(f"{file}: some values in the brain are not finite.")
        return ValueMap(self.name(found), *values), path

    def score(self, read: Sequence[ValueMap]) -> Evaluation:
        """Scores over the values of every map, and over all."""
        everything = ValueMap(
            POOLED,
            np.concatenate([one.found for one in read]),
            np.concatenate([one.known for one in read]),
        )
        rows = [_score_values(one) for one in (*read, everything)]
        unit = f", {self.unit}" if self.unit else ""
        shown = {
            "mean_absolute_error": f"mean absolute error{unit}",
            "rms_error": f"RMS error{unit}",
            "bias": f"bias{unit}",
            "correlation": "correlation",
            "voxels": "voxels",
        }
        return evaluation_of_values(
            rows,
            shown,
            "errors and bias: of the map minus the known map",
            everything.found,
            everything.known,
            unit=self.unit,
            remark="Errors and bias: of the map minus the known map, over all voxels and "
            "components that are scored.",
        )


def evaluation_of_values(
    rows: Sequence[Scored],
    shown: Mapping[str, str],
    caption: str,
    found: NDArray[np.floating],
    known: NDArray[np.floating],
    *,
    unit: str = "",
    remark: str,
) -> Evaluation:
    """Scores of numbers, whose page shows how found and known values agree.

    Parameters
    ----------
    rows, shown, caption
        As in `Evaluation`.
    found, known : (N,) arrays
        All values.
    unit : str
        Of the values.
    remark : str
        Below the table of the page.
    """

    def write_page(path: Path, settings: Mapping[str, str], title: str) -> None:
        from tripq.report.scores import agreement_figure, write_scores_report

        write_scores_report(
            path,
            [(row.name, row.columns) for row in rows],
            shown,
            settings,
            title=title,
            figure=agreement_figure(found, known, unit),
            remark=remark,
        )

    return Evaluation(rows, shown, caption, {}, write_page)


def _score_values(one: ValueMap) -> Scored:
    difference = one.found - one.known
    spread = one.found.std() * one.known.std()
    covariance = np.mean((one.found - one.found.mean()) * (one.known - one.known.mean()))
    return Scored(
        one.name,
        {
            "mean_absolute_error": float(np.abs(difference).mean()),
            "rms_error": float(np.sqrt(np.square(difference).mean())),
            "bias": float(difference.mean()),
            "correlation": float(covariance / spread) if spread > 0 else math.nan,
            "voxels": len(difference),
        },
    )
