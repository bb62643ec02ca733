"""User files: bounded reading, atomic writing, and checksums."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NoReturn
from uuid import uuid4

if sys.platform != "win32":
    import fcntl

MAX_TEXT_BYTES = 2**22
"""Size of a text file that is read at once, at most: tables, settings and sidecars have far less.
"""

_STAGE = ".tripq-part-"  # prefix of the hidden folders of `staged`, which nobody else would use


def printable(text: str) -> str:
    r"""Text on one line, with control characters escaped.

    For untrusted text: file names and the notes of checkpoints.

    >>> print(printable("sub-01\n\x1b[2J"))
    sub-01\n\x1b[2J
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def shortened(word: str, most: int = 30) -> str:
    """Untrusted text, shortened for a message.

    >>> shortened("1" * 5000, most=5)
    '11111...'
    """
    return word if len(word) <= most else f"{word[:most]}..."


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file under a temporary name and then move it, so no partial file is left.

    Yields the hidden path to write at, in the same folder and with the same suffix.

    Parameters
    ----------
    path : Path
        An existing file is replaced.

    Raises
    ------
    OSError
        If it cannot be written; it names `path`.
    """
    # not the number of the process, which other machines and containers can have, too
    part = path.with_name(f".{uuid4().hex}.{path.name}")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        raise _naming(error, path) from error
    finally:
        with suppress(OSError):
            part.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file by `replacing`.

    Parameters
    ----------
    path : Path
        An existing file is replaced; a missing folder is made.
    content : bytes
        Of the whole file.

    Raises
    ------
    OSError
        If it cannot be written; it names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8 by `write_bytes`; undecodable bytes of names are escaped."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON by `write_text`."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def check_regular(path: Path) -> None:
    """Check that a path is a regular file.

    Opening a pipe waits until somebody writes to it, and devices such as ``/dev/zero`` never end.

    Raises
    ------
    OSError
        If it is missing, a folder, a pipe or a device; the error names it.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "a folder, not a file", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a pipe or a device, not a file", str(path))


def require_file(path: Path) -> None:
    """Check that a file to read is there, and a regular file; see `check_regular`.

    Raises
    ------
    ValueError
        If it is not; the message names it.
    """
    try:
        check_regular(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file.") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}.") from error


def check_writable(folder: Path) -> None:
    """Check that files can be written to a folder, which may not exist yet.

    Raises
    ------
    OSError
        If the folder, or the one that it would be made in, is no folder or read-only; the error
        names it.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        reason = errno.EEXIST if there == folder else errno.ENOTDIR  # as of mkdir
        raise OSError(reason, os.strerror(reason), str(there))
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))


def read_text(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Read a small text file: UTF-8, with or without a byte order mark.

    Parameters
    ----------
    path : Path
        The file.
    max_bytes : int, optional
        Its size, at most.

    Raises
    ------
    OSError
        If it cannot be read, see `check_regular`; the error names it.
    ValueError
        If it is larger or no text; the message names it.
    """
    check_regular(path)
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{path}: too large: more than {max_bytes:,} bytes.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file: {error}.") from error


def read_json(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> dict[str, Any]:
    """Read JSON that holds names and values, by `read_text` and `parse_json`."""
    return parse_json(read_text(path, max_bytes), str(path))


def parse_json(text: str, name: str) -> dict[str, Any]:
    """Names and values from JSON; `name` is what errors call it.

    Its whole numbers fit into 64 bits, and all others are finite, so that arithmetic with them
    raises no errors of its own.

    >>> parse_json('{"Threshold": 1e400}', "map.json")
    Traceback (most recent call last):
    ...
    ValueError: map.json: not valid JSON: 1e400 is too large.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    try:
        content = json.loads(
            text, parse_int=whole_number, parse_float=_finite, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name}: not valid JSON: no object with names and values.")
    return content


def whole_number(digits: str) -> int:
    """A whole number of 64 bits, as JSON and TOML write it.

    Raises
    ------
    ValueError
        If it is larger.
    """
    if len(digits) > 20 or not -(2**63) <= (number := int(digits)) < 2**63:
        raise ValueError(f"{shortened(digits)} is too large")
    return number


@contextmanager
def staged(folder: Path, last: str) -> Iterator[Path]:
    """Write several files together: all of them, or none after an error.

    Yields a hidden folder to write in.  At the end its files move to `folder`.  After an error no
    file moves, and the error names the intended file.

    Parameters
    ----------
    folder : Path
        Made where it is missing; files of the same names are replaced.
    last : str
        Name of the file that moves last and whose old version is removed first: if it exists, the
        other files belong to it.

    Raises
    ------
    OSError
        If nothing can be written there; it names the file or the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    with _hidden_folder(folder) as part:
        try:
            yield part
        except (OSError, ValueError) as error:
            _reveal(error, part, folder)
            raise
        (folder / last).unlink(missing_ok=True)
        for file in sorted(part.iterdir(), key=lambda file: file.name == last):
            target = folder / file.name
            try:
                os.replace(file, target)
            except OSError as error:
                raise _naming(error, target) from error


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits.

    Raises
    ------
    OSError
        If it cannot be read, see `check_regular`.
    """
    check_regular(path)
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        return digest.hexdigest()


def _finite(digits: str) -> float:
    """A number of JSON with a point or an exponent."""
    if not math.isfinite(number := float(digits)):
        raise ValueError(f"{shortened(digits)} is too large")
    return number


def _no_constant(name: str) -> NoReturn:
    """Python writes NaN and Infinity; JSON does not have them."""
    raise ValueError(f"{name} is not a number")


def _naming(error: OSError, path: Path) -> OSError:
    """The same error with the name of the file that the user gave."""
    return OSError(error.errno, error.strerror or str(error), str(path))


def _reveal(error: Exception, hidden: Path, folder: Path) -> None:
    """Let an error name the folder that the user gave."""
    old, new = str(hidden), str(folder)
    error.args = tuple(a.replace(old, new) if isinstance(a, str) else a for a in error.args)
    if isinstance(error, OSError) and error.filename is not None:
        error.filename = str(error.filename).replace(old, new)


@contextmanager
def _hidden_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder; `_remove_abandoned` keeps it while it is locked."""
    try:
        part = Path(mkdtemp(prefix=_STAGE, dir=folder))
    except OSError as error:
        raise _naming(error, folder) from error
    try:
        with _locked(part):
            yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """Remove the folders of killed processes, which are no longer locked."""
    for part in folder.glob(f"{_STAGE}*"):
        with suppress(OSError), _locked(part, wait=False) as sure:
            # a folder without a file may be new and not yet locked
            if sure and any(part.iterdir()):
                shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Lock a folder; yield False if the file system has no locks.

    Raises
    ------
    BlockingIOError
        If another process has locked it and `wait` is False.
    """
    if sys.platform == "win32":
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)
