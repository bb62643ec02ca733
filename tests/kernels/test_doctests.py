"""The examples in the docstrings of the kernels, which are installed inside `tripq`."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import tripq.kernels

MODULES = [m.name for m in pkgutil.walk_packages(tripq.kernels.__path__, "tripq.kernels.")]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("_triton")])
def test_examples_run(name: str) -> None:
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    assert doctest.testmod(importlib.import_module(name), optionflags=options).failed == 0
