"""The list of real heads: names, files, and what is read of them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def program() -> ModuleType:
    import paper.real_heads

    return paper.real_heads


def test_names_are_distinct_and_series_of_one_person_are_of_one_scanner(
    program: ModuleType,
) -> None:
    names = [head.name for head in program.HEADS]
    assert len(set(names)) == len(names)
    scanners: dict[str, set[str]] = {}
    for head in program.HEADS:
        scanners.setdefault(head.person, set()).add(head.scanner)
    assert len(scanners) == 7
    assert all(len(found) == 1 for found in scanners.values())


def test_every_head_is_among_the_data(program: ModuleType, shared_data: Path) -> None:
    folder = shared_data / "real_dwi"
    for head in program.HEADS:
        path = folder / head.scan
        assert path.is_file()
        assert head.mask is None or (path.parent / head.mask).is_file()


def test_a_head_is_read(program: ModuleType, shared_data: Path) -> None:
    (head,) = [head for head in program.HEADS if head.name == "uihPA6"]
    dwi = head.head(shared_data / "real_dwi").read()
    assert 15_000 < len(dwi.b0) < 40_000
    assert [len(shell) for shell in dwi.shells] == [16]
