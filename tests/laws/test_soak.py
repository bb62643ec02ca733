"""`perf/soak.py`: memory that grows, and results that change, are seen."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from itertools import count
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import typer
from torch import nn

pytestmark = pytest.mark.usefixtures("few_settling")


@pytest.fixture(scope="module")
def soak(perf_modules: None) -> ModuleType:
    return import_module("soak")


def test_a_short_run_is_flat_and_ends_as_it_began(soak: ModuleType, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    result = soak.soak(20, 6, tmp_path / "work", report=lambda *what: seen.append(what))
    assert result.is_good, result
    assert [len(phase.memory) for phase in result.phases] == [20, 5]
    assert seen[-1] == ("segmentations", 5, 5)
    assert {path.suffix for path in (tmp_path / "work/map").iterdir()} == {".gz", ".json", ".html"}
    assert str(result).count("identical") == 2

    soak.write(result, tmp_path)
    kept = json.loads((tmp_path / "soak.json").read_text())
    assert kept["phases"][0]["memory"] == list(result.phases[0].memory)
    assert (tmp_path / "soak.png").stat().st_size > 10_000


@pytest.mark.exhaustive
def test_a_leak_and_other_results_are_seen(
    soak: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that keeps 2 MB of each step and takes new weights each time, and another map."""
    kept: list[torch.Tensor] = []

    def leaking() -> nn.Module:
        network = soak.make_network()
        torch.seed()
        nn.init.normal_(next(network.parameters()))
        network.head.register_forward_hook(lambda *_: kept.append(torch.ones(500_000)))
        return network

    number = count()
    monkeypatch.setattr(soak, "_segment", lambda *_: {"map": str(next(number))})
    result = soak.soak(12, 4, tmp_path, make=leaking)
    training, segmenting = result.phases
    assert not training.is_flat
    assert training.slope > 1.5e6
    assert segmenting.is_flat
    assert not result.same_weights
    assert not result.same_files
    assert not result.is_good
    assert "NOT FLAT" in str(training)
    assert str(result).count("THEY DIFFER") == 2


def test_what_is_flat(soak: ModuleType) -> None:
    rng = np.random.default_rng(0)

    def phase(memory: np.ndarray) -> object:
        return soak.Phase("steps", 20, tuple(memory))

    flat = 700e6 + 1e6 * rng.random(100)
    rising = np.linspace(0, 1, 100)
    assert phase(flat).is_flat
    assert phase(flat + 50e6 * np.minimum(rising * 5, 1)).is_flat  # in the first fifth
    assert phase(flat - 50e6 * rising).is_flat
    leak = phase(flat + 20 * 100 * 5e3 * rising)  # 5 kB a step
    assert not leak.is_flat
    assert leak.slope == pytest.approx(5e3, rel=0.1)
    assert leak.rise == pytest.approx(7.5e6, rel=0.1)
    high = flat.copy()
    high[60] += 25e6
    assert phase(high).is_flat
    high[60] += 25e6
    assert not phase(high).is_flat


@pytest.mark.parametrize("change", [None, "same_weights", "same_files"])
def test_the_exit_status_tells(
    change: str | None, soak: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = tuple(soak.Phase(name, 1, 9 * (1e8,)) for name in ("training steps", "segmentations"))
    result = soak.Soak(phases, True, True)
    if change is not None:
        result = replace(result, **{change: False})
    monkeypatch.setattr(soak, "soak", lambda *arguments, **options: result)
    monkeypatch.setenv(soak.CACHE, "8")
    with pytest.raises(typer.Exit) as ended:
        soak.main(steps=8, segmentations=9)
    assert ended.value.exit_code == (0 if change is None else 1)
