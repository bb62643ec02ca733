"""The comparison with dipy's deconvolution, with everything small."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from tests.tasks.fibres.conftest import small_anatomy

PROGRAM = Path(__file__).parents[2] / "examples" / "fibre_rivals.py"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fibre_rivals", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.exhaustive
def test_all_methods_are_scored_and_a_second_run_resumes(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "ORDERS", (4,))
    monkeypatch.setattr(program, "SINGLE_FIBRE", 0.4)
    small = partial(program.FibreNetwork, p_features="3x0e + 1x2e")
    monkeypatch.setattr(program, "FibreNetwork", small)
    plan = {"heads": 2, "tests": 1, "radius": 6.0, "steps": 2, "seed": 0}
    rows = program.compare(tmp_path, small_anatomy(), **plan)
    assert [(row["method"], row["directions"]) for row in rows] == [
        (method, number)
        for number in (32, 12)
        for method in ("network", "voxelwise", "CSD, order 4")
    ]
    csd = rows[2]
    assert 0.5 < csd["angular_correlation"] < 1
    assert csd["single_error"] < 15
    assert "CSD, order 4 | 12" in program.table_of(rows)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("both networks are trained already")

    monkeypatch.setattr(program, "train", never)
    program.trained("network", 6.0, [], tmp_path, steps=2, seed=0)
