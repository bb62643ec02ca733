"""The programs of examples/ import what lies beside them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import importable
from tripq.tasks.lesions.datasets import cohort_anatomy


@pytest.fixture(scope="module", autouse=True)
def example_modules() -> Iterator[None]:
    """Let the modules beside the programs be imported."""
    with importable("examples"):
        yield


@pytest.fixture(scope="module")
def slabs(example_modules: None) -> Iterator[None]:
    """Simulate a slab with the lesions of the tests, an eighth of the voxels of a head."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "paper.cohort.cohort_anatomy",
            lambda *arguments: cohort_anatomy(*arguments).within((-70, -45, 15), (70, 5, 58)),
        )
        yield
