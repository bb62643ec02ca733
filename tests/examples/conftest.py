"""The programs of examples/ import what lies beside them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import importable


@pytest.fixture(scope="module", autouse=True)
def example_modules() -> Iterator[None]:
    """Let the modules beside the programs be imported."""
    with importable("examples"):
        yield
