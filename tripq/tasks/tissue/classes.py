"""Classes of label images: their names, and the tables that give them numbers.

A label image has a number in every voxel, and the table beside it a name for every number, as in
BIDS (https://bids-specification.readthedocs.io, *Image-derived labels*)::

    index   name            abbreviation
    1       white matter    WM
    2       grey matter     GM

Voxels without a label have the number `UNLABELLED`, or one that the table names "unlabelled".  They
count neither in training nor in scores.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tripq.infra.files import parse_json, printable, read_text, shortened
from tripq.networks.apply import Model
from tripq.networks.checkpoint import CheckpointError
from tripq.scans.bids import BIDSError

UNLABELLED = -1
"""Number of a voxel without a label, in memory and in label images."""

MOST_CLASSES = 100
"""Largest number of classes; a label image fits into 8 bits."""

MAX_NAME = 100
"""Characters of the name of a class, at most."""

_UNLABELLED_NAME = "unlabelled"
_NOTE = "classes"
_MISSING = ("", "n/a")


@dataclass(frozen=True)
class Classes:
    """The classes of a network or of a label image, in order.

    Parameters
    ----------
    names : tuple of str
        Distinct names, such as ``white matter``.
    labels : tuple of str
        Their labels in the names of files, such as ``WM``: letters and digits, distinct even
        without their case.

    Raises
    ------
    ValueError
        If there is no class or more than `MOST_CLASSES`, or a name or label is not as above.

    Examples
    --------
    >>> classes = Classes.named(["white matter", "lesion"], ["WM", ""])
    >>> classes.labels
    ('WM', 'lesion')
    >>> print(classes.table.expandtabs(14))
    index         name          abbreviation
    1             white matter  WM
    2             lesion        lesion
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= MOST_CLASSES:
            raise ValueError(f"{len(self.names)} classes; from 1 to {MOST_CLASSES} are possible")
        for name in self.names:
            if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
                raise ValueError(f"{shortened(printable(name))!r} is not a name of a class")
        for name, label in zip(self.names, self.labels, strict=True):
            if not re.fullmatch(f"[A-Za-z0-9]{{1,{MAX_NAME}}}", label):
                raise ValueError(
                    f"{shortened(printable(label))!r} is not a label of the class "
                    f"{shortened(name)!r}: a label has letters and digits only"
                )
        for kind, values in (("name", self.names), ("label", self.labels)):
            folded = [value.casefold() for value in values]
            if shared := sorted({value for value in folded if folded.count(value) > 1}):
                raise ValueError(f"two classes have the {kind} {shortened(shared[0])!r}")

    @classmethod
    def named(cls, names: Sequence[str], abbreviations: Sequence[str]) -> Classes:
        """Classes of some names; without an abbreviation the label is made from the name."""
        labels = (
            re.sub("[^A-Za-z0-9]", "", name if abbreviation in _MISSING else abbreviation)
            for name, abbreviation in zip(names, abbreviations, strict=True)
        )
        return cls(tuple(names), tuple(labels))

    @classmethod
    def of(cls, model: Model) -> Classes:
        """The classes of a trained network, from the notes of its checkpoint.

        Raises
        ------
        CheckpointError
            If it has no valid classes.
        """
        try:
            note = parse_json(model.notes[_NOTE], _NOTE)
            if not all(isinstance(label, str) for label in note.values()):
                raise ValueError("a label is not text")
            return cls(tuple(note), tuple(note.values()))
        except (LookupError, ValueError) as error:
            reason = "missing" if isinstance(error, LookupError) else error
            raise CheckpointError(f"{model.path}: its {_NOTE}: {reason}.") from error

    @property
    def notes(self) -> dict[str, str]:
        """The note of a checkpoint: labels by name, as JSON."""
        return {_NOTE: json.dumps(dict(zip(self.names, self.labels, strict=True)))}

    @property
    def table(self) -> str:
        """The table of a label image whose numbers are 1, 2, ... in the order of the classes."""
        text = io.StringIO()
        table = csv.writer(text, dialect="excel-tab", lineterminator="\n")
        table.writerow(["index", "name", "abbreviation"])
        pairs = zip(self.names, self.labels, strict=True)
        table.writerows([number, *pair] for number, pair in enumerate(pairs, 1))
        return text.getvalue()


@dataclass(frozen=True)
class ClassTable:
    """The table of a label image.

    Parameters
    ----------
    path : Path
        Its file.
    classes : Classes
        In the order of their numbers in the image.
    indices : tuple of int
        These numbers.
    unlabelled : frozenset of int
        Numbers of voxels without a label.
    """

    path: Path
    classes: Classes
    indices: tuple[int, ...]
    unlabelled: frozenset[int]

    def rank(self, classes: Classes) -> dict[int, int]:
        """Place in `classes` of every number of the image, by name; -1 for no label.

        Raises
        ------
        BIDSError
            If the table has other names.
        """
        own, other = set(self.classes.names), set(classes.names)
        if own != other:
            differing = ", ".join(sorted(own ^ other))
            raise BIDSError(
                f"{self.path}: other classes than the first table ({differing}): all scans need "
                "the same names."
            )
        places = {
            index: classes.names.index(name)
            for index, name in zip(self.indices, self.classes.names, strict=True)
        }
        return places | dict.fromkeys(self.unlabelled, UNLABELLED)


def read_classes(path: Path) -> ClassTable:
    """Read the table of a label image.

    Parameters
    ----------
    path : Path
        Tab-separated values with the columns ``index`` and ``name``, and perhaps ``abbreviation``;
        other columns are not used.

    Raises
    ------
    BIDSError
        If it has not these columns, an index is no whole number or occurs twice, or a name or an
        abbreviation is not as `Classes` has it.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path)), dialect="excel-tab"))
        if not rows or not {"index", "name"} <= rows[0].keys():
            raise BIDSError("it needs the columns index and name, and a row for every class")
        indices = [_index(row) for row in rows]
        if repeated := [index for index in indices if indices.count(index) > 1]:
            raise BIDSError(f"two rows have the index {repeated[0]}")
        named = {
            index: (_cell(row, "name"), _cell(row, "abbreviation"))
            for index, row in sorted(zip(indices, rows, strict=True), key=lambda pair: pair[0])
            if _cell(row, "name").casefold() != _UNLABELLED_NAME
        }
        if UNLABELLED in named:
            raise BIDSError(f"the index {UNLABELLED} is that of voxels without a label")
        names, abbreviations = zip(*named.values(), strict=True) if named else ((), ())
        classes = Classes.named(names, abbreviations)
    except (ValueError, csv.Error) as error:
        reason = str(error).removeprefix(f"{path}: ").rstrip(".")
        raise BIDSError(f"{path}: no table of classes: {reason}.") from error
    return ClassTable(path, classes, tuple(named), frozenset({*indices, UNLABELLED} - {*named}))


def _cell(row: Mapping[str, str | None], column: str) -> str:
    return (row.get(column) or "").strip()


def _index(row: Mapping[str, str | None]) -> int:
    text = _cell(row, "index")
    if not re.fullmatch(r"-?[0-9]{1,9}", text):
        raise BIDSError(f"the index {shortened(printable(text))!r} is not a whole number")
    return int(text)


def number_voxels(
    values: NDArray[np.generic], places: Mapping[int, int], image: Path, table: Path
) -> NDArray[np.int8]:
    """Places of the classes of voxels, from the numbers of a label image.

    Parameters
    ----------
    values : (V,) array
        Numbers in the image.
    places : mapping of int to int
        See `ClassTable.rank`.
    image, table : Path
        Files, for messages.

    Returns
    -------
    (V,) int8 array
        From 0; `UNLABELLED` for no label.

    Raises
    ------
    BIDSError
        If a number is not in the table; the message names it and the image.

    Examples
    --------
    >>> places = {1: 0, 7: 1, -1: -1}
    >>> number_voxels(np.array([1.0, 7.0, -1.0]), places, Path("dseg.nii"), Path("dseg.tsv"))
    array([ 0,  1, -1], dtype=int8)
    """
    found, rows = np.unique(values, return_inverse=True)
    unknown = [value for value in found.tolist() if value not in places]
    if unknown:
        count = np.count_nonzero(~np.isin(values, list(places)))
        raise BIDSError(
            f"{image}: the value {unknown[0]:g} is in the brain and has no name in {table} "
            f"({count} voxels): add a row to the table, named {_UNLABELLED_NAME} if such voxels "
            "have no label."
        )
    numbers = np.array([places[value] for value in found.tolist()], dtype=np.int8)
    return numbers[rows.reshape(-1)]
