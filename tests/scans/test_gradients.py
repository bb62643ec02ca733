from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trust.bounds import bounded
from tripq.infra.files import MAX_TEXT_BYTES
from tripq.scans import DWIError
from tripq.scans.gradients import (
    MAX_B_VALUE,
    UNIT_TOLERANCE,
    find_b0,
    has_only_b0,
    read_bval,
    read_bvec,
    read_mrtrix,
    unit_directions,
)

B_VALUES = np.array([0.0, 1000.0, 2000.0, 1000.0])
B0 = np.array([True, False, False, False])
DIRECTIONS = np.array([[0, 0, 0], [1, 0, 0], [0, 0.6, 0.8], [0, 0, -1]])


@pytest.fixture
def text_file(tmp_path):
    def write(text, name="table.txt"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    "text",
    [
        "0 1000 2000.5 5e2",
        "0 1000 2000.5 5e2\n\n",
        "0\n1000\n2000.5\n500\n",
        "0,1000,\t2000.50 , 5.0e+02\r\n",
        "\ufeff0 1000 2000.5 500 # from the scanner",
    ],
    ids=["row", "empty lines", "column", "commas", "byte order mark and comment"],
)
def test_b_values_in_row_or_column(text_file, text):
    np.testing.assert_array_equal(read_bval(text_file(text)), [0, 1000, 2000.5, 500])


@pytest.mark.parametrize("columns", [False, True])
@given(count=st.integers(1, 12).filter(lambda n: n != 3), seed=st.integers(0, 2**32 - 1))
def test_directions_in_rows_or_columns(tmp_path_factory, columns, count, seed):
    directions = np.random.default_rng(seed).normal(size=(count, 3))
    path = tmp_path_factory.mktemp("bvec") / "dwi.bvec"
    np.savetxt(path, directions if columns else directions.T, fmt="%.17g")
    np.testing.assert_array_equal(read_bvec(path), directions)


def test_three_directions_are_read_as_fsl_writes_them(text_file):
    np.testing.assert_array_equal(
        read_bvec(text_file("1 2 3\n4 5 6\n7 8 9")), [[1, 4, 7], [2, 5, 8], [3, 6, 9]]
    )


def test_mrtrix_table(text_file):
    b_values, directions = read_mrtrix(text_file("# mrconvert\n0 0 0 0\n0 0.6 -0.8 1000\n"))
    np.testing.assert_array_equal(b_values, [0, 1000])
    np.testing.assert_array_equal(directions, [[0, 0, 0], [0, 0.6, -0.8]])


@pytest.mark.parametrize("read", [read_bval, read_bvec, read_mrtrix])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0 1000 b=2000", r"line 1: 'b=2000' is not a number"),
        ("1 2 3\n4 five 6\n", r"line 2: 'five' is not a number"),
        ("1 2 3\n4 5\n", r"rows differ in length: 3, 2"),
        ("\n# nothing\n", r"contains no numbers"),
    ],
)
def test_text_that_is_no_table(text_file, read, text, reason):
    path = text_file(text)
    with pytest.raises(DWIError, match=reason) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("read", "text", "reason"),
    [
        (read_bval, "1 0 0\n0 1 0\n0 0 1", "3 rows of 3 numbers; .* Is this the bvec file?"),
        (read_bvec, "0 1000 1000 1000", "1 rows of 4 numbers"),
        (read_mrtrix, "1 0 0\n0 1 0\n", "rows of 3 numbers; .* rows of 4"),
    ],
)
def test_tables_of_another_kind(text_file, read, text, reason):
    with pytest.raises(DWIError, match=reason):
        read(text_file(text))


@pytest.mark.parametrize("read", [read_bval, read_bvec, read_mrtrix])
def test_files_that_are_no_text(tmp_path, read):
    path = tmp_path / "dwi.nii.gz"
    path.write_bytes(b"\x1f\x8b\x08\x00\xff")
    with pytest.raises(DWIError, match="not a text file"):
        read(path)
    with pytest.raises(DWIError, match=r"missing\.bval: cannot be read: No such file"):
        read(tmp_path / "missing.bval")


@pytest.mark.parametrize("threshold", [0.0, 50.0, 200.0])
def test_threshold_belongs_to_b0(threshold):
    values = np.array([threshold, np.nextafter(threshold, np.inf), 3000])
    np.testing.assert_array_equal(find_b0(values, threshold), [True, False, False])


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([0, -1000, 1000], r"volume 1 \(counted from 0\): .* not -1000"),
        ([0, 1000, np.nan], r"volume 2 .* not nan"),
        ([0, np.inf, 1000], r"volume 1 .* not inf"),
        ([0, 1e9, 1e9], r"read in s/mm2, and the largest is 1e\+09"),
        ([0, 1, 2], r"no diffusion-weighted volume: the largest b-value is 2"),
        ([700, 1000], r"no b0 volume: the smallest b-value is 700 .* raise b0_threshold"),
    ],
)
def test_b_values_that_are_none(values, reason):
    with pytest.raises(DWIError, match=reason):
        find_b0(np.array(values, dtype=float))


def test_the_largest_b_value_is_one():
    np.testing.assert_array_equal(find_b0(np.array([0.0, MAX_B_VALUE])), [True, False])


@pytest.mark.parametrize(("text", "expected"), [("0 5 50", True), ("0 50.5 5", False)])
def test_a_scan_for_the_correction_of_distortions_has_only_b0(text_file, text, expected):
    assert has_only_b0(text_file(text)) is expected


@pytest.mark.parametrize("threshold", [-1.0, np.nan])
def test_threshold_is_checked(threshold):
    with pytest.raises(DWIError, match="must not be negative"):
        find_b0(B_VALUES, threshold)


@pytest.mark.parametrize("decimals", [2, 3, 6])
@given(seed=st.integers(0, 2**32 - 1))
def test_rounded_directions_become_unit_vectors(decimals, seed):
    exact = np.random.default_rng(seed).normal(size=(4, 3))
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    unit = unit_directions(exact.round(decimals), B_VALUES, B0)
    np.testing.assert_allclose(np.linalg.norm(unit[1:], axis=1), 1, rtol=1e-15)
    np.testing.assert_allclose(unit[1:], exact[1:], rtol=0, atol=2 * 10.0**-decimals)


@pytest.mark.parametrize("rubbish", [0.0, np.nan, np.inf, 7.0])
def test_directions_of_b0_volumes_are_ignored(rubbish):
    table = DIRECTIONS.copy()
    table[0] = rubbish
    np.testing.assert_array_equal(unit_directions(table, B_VALUES, B0), DIRECTIONS)


@pytest.mark.parametrize("length", [1 + 1.01 * UNIT_TOLERANCE, 1 - 1.01 * UNIT_TOLERANCE, 0.5**0.5])
def test_directions_of_another_length_name_the_volume_and_a_cause(length):
    table = DIRECTIONS.copy()
    table[2] *= length
    reason = rf"volume 2 \(counted from 0\): .* length {length:.4g} .*b = b_max \|g\|\^2"
    with pytest.raises(DWIError, match=reason):
        unit_directions(table, B_VALUES, B0)


@pytest.mark.parametrize("rubbish", [0.0, np.nan, np.inf])
def test_directions_that_are_missing_name_the_volumes(rubbish):
    table = DIRECTIONS.copy()
    table[[1, 3]] = rubbish
    with pytest.raises(DWIError, match=r"volumes 1, 3 .* b = 1000 s/mm2 but no direction"):
        unit_directions(table, B_VALUES, B0)


@pytest.mark.parametrize("read", [read_bval, read_bvec, read_mrtrix])
def test_what_is_no_file_is_not_read(tmp_path, read):
    """A pipe would be waited for, and a device has no end."""
    os.mkfifo(tmp_path / "pipe.bval")
    (tmp_path / "zero.bval").symlink_to("/dev/zero")
    (tmp_path / "folder.bval").mkdir()
    what = {"pipe": "a pipe or a device", "zero": "a pipe or a device", "folder": "a folder"}
    for name, kind in what.items():
        expected = rf"{name}\.bval: cannot be read: {kind}, not a file\."
        with bounded(5, 10), pytest.raises(DWIError, match=expected):
            read(tmp_path / f"{name}.bval")


def test_tables_are_short(text_file):
    path = text_file("1 " * (MAX_TEXT_BYTES // 2) + "1")
    with bounded(10, 30), pytest.raises(DWIError, match=r"table\.txt: too large"):
        read_bval(path)


def test_the_message_about_ragged_rows_is_short(text_file):
    with pytest.raises(DWIError, match=r"rows differ in length: 1, 1, 1, 1, \.\.\.\.$"):
        read_bvec(text_file("1\n" * 1000 + "1 2"))
