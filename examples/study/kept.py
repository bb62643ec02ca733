"""Results that are kept as JSON: data classes of numbers, texts and mappings, and rows of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tripq.infra.files import write_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Row = TypeVar("Row", bound="DataclassInstance")


def write(path: Path, result: DataclassInstance) -> None:
    """Write a result."""
    _write(path, asdict(result))


def write_rows(path: Path, rows: Iterable[DataclassInstance]) -> None:
    """Write several results as a list."""
    _write(path, [asdict(row) for row in rows])


def _write(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def read(path: Path) -> Any:
    """The content of a file."""
    return json.loads(path.read_text(encoding="utf-8"))


def rows_of(kind: type[Row], content: Iterable[dict[str, Any]]) -> tuple[Row, ...]:
    """Rows from their fields."""
    return tuple(kind(**fields) for fields in content)


def read_or_make(path: Path, kind: type[Row], make: Callable[[], Iterable[Row]]) -> tuple[Row, ...]:
    """The rows in a file; if it is missing, they are made and written first."""
    if not path.is_file():
        write_rows(path, make())
    return rows_of(kind, read(path))
