"""Files that are whole or not there, and their fingerprints."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under another name and move it, so that there is never half of it.

    Parameters
    ----------
    path : Path
        An existing file is replaced; a missing folder is made.
    content : bytes
        Of the whole file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8 by `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON by `write_text`."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def staged(folder: Path, last: str) -> Iterator[Path]:
    """Write several files as if at once.

    Yields a hidden folder to write in.  At the end its files move to `folder`.  If anything goes
    wrong before, none does.

    Parameters
    ----------
    folder : Path
        Made where it is missing; files of the same names are replaced.
    last : str
        Name of the file that moves last, and whose old version goes first: where it stands, the
        others are those that belong to it.

    Raises
    ------
    OSError
        If nothing can be written there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part = Path(mkdtemp(prefix=".tripq-", dir=folder))
    try:
        yield part
        (folder / last).unlink(missing_ok=True)
        for file in sorted(part.iterdir(), key=lambda file: file.name == last):
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        return digest.hexdigest()
