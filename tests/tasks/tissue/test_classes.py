"""Tables of classes: what is read, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.tasks.tissue.conftest import CLASSES
from tripq.networks.checkpoint import CheckpointError
from tripq.scans.bids import BIDSError
from tripq.tasks.tissue.classes import Classes, number_voxels, read_classes


def write(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(row.replace(" ", "\t") for row in rows) + "\n")
    return path


def test_classes_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    path = write(
        tmp_path / "dseg.tsv",
        "color name index abbreviation",
        "#f00 lesion 7 n/a",
        "#fff white 2 WM",
        "#000 Unlabelled 0 n/a",
    )
    table = read_classes(path)
    assert table.classes == Classes(("white", "lesion"), ("WM", "lesion"))
    assert table.indices == (2, 7)
    assert table.unlabelled == {0, -1}
    assert table.rank(Classes(("lesion", "white"), ("l", "w"))) == {2: 1, 7: 0, 0: -1, -1: -1}


def test_a_table_that_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "dseg.tsv"
    path.write_text(CLASSES.table)
    table = read_classes(path)
    assert (table.classes, table.indices) == (CLASSES, (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (["index label", "1 white"], "it needs the columns index and name"),
        (["index name"], "a row for every class"),
        (["index name", "one white"], "the index 'one' is not a whole number"),
        (["index name", "1.5 white"], "the index '1.5' is not a whole number"),
        (["index name", "1 white", "1 grey"], "two rows have the index 1"),
        (["index name", "1 white", "2 White"], "two classes have the name 'white'"),
        (["index name abbreviation", "1 a x", "2 b X"], "two classes have the label 'x'"),
        (["index name abbreviation", "1 a ../x", "2 b ?"], "'' is not a label of the class 'b'"),
        (["index name", "-1 white"], "the index -1 is that of voxels without a label"),
        (["index name", "0 unlabelled"], "0 classes; from 1 to 100 are possible"),
        (["index name", *(f"{n} n{n}" for n in range(101))], "101 classes; from 1 to 100"),
        (["index name", "1"], "'' is not a name of a class"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(
    rows: list[str], reason: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "dseg.tsv", *rows)
    with pytest.raises(BIDSError) as refusal:
        read_classes(path)
    assert str(refusal.value).startswith(f"{path}: no table of classes: ")
    assert reason in str(refusal.value)


def test_tables_must_agree_by_name(tmp_path: Path) -> None:
    table = read_classes(write(tmp_path / "dseg.tsv", "index name", "1 white", "2 grey"))
    with pytest.raises(BIDSError, match=r"dseg\.tsv: other classes .*\(grey, lesion\)"):
        table.rank(Classes(("white", "lesion"), ("w", "l")))


@pytest.mark.parametrize("value", [3.0, 0.0, 1.5, np.nan, 1e30])
def test_a_value_without_a_name_is_named(value: float) -> None:
    values = np.array([1.0, value, value, -1.0])
    image, table = Path("sub-01_dseg.nii.gz"), Path("dseg.tsv")
    wanted = rf"sub-01_dseg\.nii\.gz: the value {value:g} is in the brain .*dseg\.tsv \(2 voxels\)"
    with pytest.raises(BIDSError, match=wanted.replace("+", r"\+")):
        number_voxels(values, {1: 0, -1: -1}, image, table)


def model(**notes: str) -> SimpleNamespace:
    return SimpleNamespace(path=Path("net.safetensors"), notes=notes)


def test_a_checkpoint_keeps_the_classes() -> None:
    assert Classes.of(model(**CLASSES.notes)) == CLASSES  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("notes", "reason"),
    [
        ({}, "missing"),
        ({"classes": "[]"}, "not valid JSON: no object with names"),
        ({"classes": "{}"}, "0 classes"),
        ({"classes": '{"white": 1}'}, "a label is not text"),
        ({"classes": '{"white": "../../white"}'}, "is not a label of the class 'white'"),
        ({"classes": '{"\\u001b[2J": "white"}'}, "is not a name of a class"),
    ],
)
def test_classes_of_a_stranger_are_checked(notes: dict[str, str], reason: str) -> None:
    """Labels become names of files."""
    with pytest.raises(CheckpointError, match=f"net.safetensors: its classes: .*{reason}") as found:
        Classes.of(model(**notes))  # type: ignore[arg-type]
    assert str(found.value).isprintable()
