"""A file is whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tripq.files import sha256, staged, write_json, write_text


def test_files_appear_together_with_the_last_at_last(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    with staged(out, last="a.json") as part:
        for name in ("a.json", "b.nii", "c.html"):
            (part / name).write_text(name)
        assert not [path for path in out.iterdir() if not path.name.startswith(".")]
    assert {path.name for path in out.iterdir()} == {"a.json", "b.nii", "c.html"}
    assert (out / "b.nii").read_text() == "b.nii"


def write_all(folder: Path, names: tuple[str, ...], then: Callable[[], None]) -> None:
    with staged(folder, last="a.json") as part:
        for name in names:
            (part / name).write_text("new")
        then()


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError, SystemExit])
def test_an_interruption_leaves_the_old_files(
    interruption: type[BaseException], tmp_path: Path
) -> None:
    def interrupt() -> None:
        raise interruption

    (tmp_path / "a.json").write_text("old")
    with pytest.raises(interruption):
        write_all(tmp_path, ("a.json", "b.nii"), then=interrupt)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.json": "old"}


def test_where_the_last_file_stands_the_others_are_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the moves themselves are interrupted: then there is no last file, not even an old."""
    names = ("a.json", "b.nii", "c.nii")
    moved = []

    def replace_one(source: Path, target: Path) -> None:
        if moved:
            raise KeyboardInterrupt
        moved.append(source.rename(target))

    for name in names:
        (tmp_path / name).write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_all(tmp_path, names, then=lambda: monkeypatch.setattr(os, "replace", replace_one))
    assert [path.read_text() for path in moved] == ["new"]
    assert not (tmp_path / "a.json").exists()
    assert not list(tmp_path.glob(".tripq-*"))


def test_text_replaces_a_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_text(path, "first")
    write_json(path, {"µ": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"µ": 1}
    assert list(path.parent.iterdir()) == [path]


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000  # more than is read at once
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
