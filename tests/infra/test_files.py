"""A file is whole or not there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE

import pytest

from tests.trust.bounds import bounded
from tripq.infra.files import (
    printable,
    read_json,
    read_text,
    sha256,
    staged,
    write_bytes,
    write_json,
    write_text,
)


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


@pytest.mark.parametrize("step", ["write", "move"])
def test_a_full_disk_is_told_with_the_name_of_the_file(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the system while it writes names no file, or that of a part."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a.json"
    path.write_text("old")
    monkeypatch.setattr(*((Path, "write_bytes") if step == "write" else (os, "replace")), fail)
    with pytest.raises(OSError, match=r"No space left on device: '.*/a\.json'$"):
        write_text(path, "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "b.nii").mkdir()
    with pytest.raises(IsADirectoryError, match=r"/b\.nii'$"):
        write_all(tmp_path, ("a.json", "b.nii"), then=lambda: None)
    assert [path.name for path in tmp_path.iterdir()] == ["b.nii"]


KILLED = """
import os, signal, sys
from pathlib import Path
from tripq.infra.files import staged
with staged(Path(sys.argv[1]), last="a.json") as part:
    (part / "a.json").write_text("half")
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    print(part, flush=True)
    input()
"""


def test_what_a_killed_process_left_goes_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    command = (sys.executable, "-c", KILLED, str(tmp_path))
    subprocess.run([*command, "killed"], check=False)
    assert len(list(tmp_path.glob(".tripq-*"))) == 1
    with subprocess.Popen([*command, "alive"], stdin=PIPE, stdout=PIPE, text=True) as other:
        assert other.stdout is not None
        living = Path(other.stdout.readline().strip())
        assert list(tmp_path.iterdir()) == [living]  # it has removed what the first one left
        write_all(tmp_path, ("b.nii",), then=lambda: None)
        assert (living / "a.json").is_file()
        other.communicate("go on")
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "b.nii"}


def test_text_of_names_that_are_no_text_is_written(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "sub-\udcff"})
    (tmp_path / "a.json").read_text(encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"name": "sub-\udcff"}


@pytest.mark.parametrize(
    "content",
    [
        *(b"[1]", b"{", b"[" * 100_000, b'{"a":' * 100_000, b""),
        *(b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e400}', b'{"a": -1e9999}'),
        *(b'{"a": 9223372036854775808}', b'{"a": %s}' % (b"1" * 5000)),
    ],
)
def test_other_files_are_no_json(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json: not valid JSON") as refused:
        read_json(tmp_path / "a.json")
    assert len(str(refused.value)) < 300


def test_json_has_numbers_that_can_be_computed_with(tmp_path: Path) -> None:
    content = {"least": -(2**63), "most": 2**63 - 1, "large": 1e308, "text": "\ufeff1e400"}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    (tmp_path / "b.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.json").read_bytes())
    assert read_json(tmp_path / "b.json") == content


@pytest.mark.parametrize("read", [read_text, read_json, sha256])
def test_only_what_has_an_end_is_read(read: Callable[[Path], object], tmp_path: Path) -> None:
    """A pipe would be waited for, and a device goes on for ever."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name, reason in {
        "pipe": "a pipe or a device, not a file",
        "zero": "a pipe or a device, not a file",
        "folder": "a folder, not a file",
        "nothing": "No such file or directory",
    }.items():
        with bounded(5, 10), pytest.raises(OSError, match=reason) as refused:
            read(tmp_path / name)
        assert refused.value.strerror == reason
        assert str(refused.value.filename) == str(tmp_path / name)


def test_text_is_small_and_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"12345")
    assert read_text(path, 5) == "12345"
    with pytest.raises(ValueError, match=r"a\.txt: too large: more than 4 bytes\."):
        read_text(path, 4)
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"a\.txt: not a text file"):
        read_text(path)
    path.write_bytes(b"")
    os.truncate(path, 2**40)  # takes no place on the disk
    with bounded(10, 30), pytest.raises(ValueError, match=r"a\.txt: too large"):
        read_text(path)


def test_nothing_that_steers_a_terminal_is_printable() -> None:
    text = "".join(map(chr, range(0x3000))) + "\u202e\udcff\ufeff"
    assert printable(text).isprintable()
    assert printable("sub-01_dwi.nii.gz: µ – ’") == "sub-01_dwi.nii.gz: µ – ’"


def test_processes_that_do_not_know_of_each_other_write_one_file(tmp_path: Path) -> None:
    """Threads have one process number, as processes of several containers can."""
    path = tmp_path / "all.txt"

    def write(letter: str) -> None:
        for _ in range(50):
            write_bytes(path, letter.encode() * 10_000)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, "abcd"))
    assert path.read_bytes() in {letter.encode() * 10_000 for letter in "abcd"}
    assert list(tmp_path.iterdir()) == [path]
