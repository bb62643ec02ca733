"""The comparison of starts, with everything small: runs are kept, and validation chooses."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import FEW_SETTLING
from tests.examples.test_heads import in_place
from tests.tasks.lesions.open_ms import write_sources
from tripq.networks import load_network
from tripq.scans import write_dwi, write_map
from tripq.simulate import GradientTable, default_anatomy, simulate_scan
from tripq.tasks.lesions.datasets import cohort_anatomy, implanted, open_ms

EXAMPLES = Path(__file__).parents[2] / "examples"
CENTRES = {f"{i:02}": ((-1) ** i * 26.0, -20.0, 25.0) for i in range(1, 5)}
SMALL = {"q_features": "3x0e + 1x2e", "p_features": "3x0e", "n_p_layers": 1}


@pytest.fixture(scope="module")
def program() -> Iterator[ModuleType]:
    """examples/pretraining.py, imported as Python imports it when it is started."""
    sys.path.insert(0, str(EXAMPLES))
    import pretraining

    yield pretraining
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def study(
    program: ModuleType, slabs: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """Heads of three people, and four patients."""
    from paper.plan import FULL
    from paper.real_heads import RealHead

    folder = tmp_path_factory.mktemp("pretraining")
    write_sources(folder / "sources", CENTRES, radius=45, edge=2)
    anatomy = default_anatomy(4.0).within((-50, -50, 0), (50, 20, 50))
    for name, number in (("a", 12), ("b", 9), ("c", 10)):
        (folder / name).mkdir()
        table = GradientTable.from_shells([1000.0], [number])
        scan = simulate_scan(anatomy, table, seed=number, deformation=0.0).dwi
        write_dwi(scan, folder / name / "dwi.nii.gz")
        write_map(np.ones(len(scan.b0), bool), scan, folder / name / "mask.nii.gz")
    heads = tuple(
        RealHead(name, name, "", "CC0", f"{name}/dwi.nii.gz", mask="mask.nii.gz") for name in "abc"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tripq.training.module.N_SETTLING", FEW_SETTLING)
        patch.setattr(program, "IMPLANTED", dict.fromkeys(program.IMPLANTED, 1))
        patch.setattr(program, "SMALL", SMALL)
        patch.setattr(implanted, "register_anatomy", in_place)
        patch.setattr(implanted, "cohort_anatomy", lambda fibres, _: cohort_anatomy(fibres, 4.0))
        for cache in (implanted._anatomy, implanted._coverage):
            cache.cache_clear()
        yield program.Study(
            open_ms(local=folder / "sources", accept_licences=True),
            folder,
            folder / "out",
            replace(FULL, voxel_size=5.0, n_validation=1, n_test=1, seeds=2),
            steps=4,
            every=2,
            pretraining_steps=2,
            box_size=6,
            heads=heads,
            people={"training": ("a",), "validation": ("b",), "test": ("c",)},
        )
        for cache in (implanted._anatomy, implanted._coverage):
            cache.cache_clear()


def test_nobody_is_in_two_parts(program: ModuleType) -> None:
    from paper.real_heads import HEADS

    people = [person for some in program.PEOPLE.values() for person in some]
    assert sorted(people) == sorted({head.person for head in HEADS})


@pytest.mark.parametrize(
    "cohort", ["implanted", pytest.param("simulated", marks=pytest.mark.exhaustive)]
)
def test_a_run_is_kept_and_read(
    program: ModuleType, study: Any, cohort: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = program.Run(cohort, 1, "encoder", 1e-3, 0)
    first = study.result(run)
    assert [step for step, _ in first.scores] == [2, 4]
    assert set(first.tests) == {"simulated", "turned", "implanted"}
    assert all(scores["lesion_voxels"] > 0 for scores in first.tests.values())
    monkeypatch.setattr(program, "train", None)
    assert study.result(run) == first


def test_the_start_is_the_encoder(
    program: ModuleType, study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network that goes into the training has it, and the same head as from random weights."""
    given = []

    def look(network: torch.nn.Module, *_: object, kept: Any, **__: object) -> None:
        given.append(({n: t.clone() for n, t in network.state_dict().items()}, kept))
        raise InterruptedError

    encoder = load_network(study.encoder(1)).state_dict()
    monkeypatch.setattr(program, "train", look)
    for start in ("random", "encoder"):
        with pytest.raises(InterruptedError):
            study.result(program.Run("simulated", 1, start, 1e-3, 1))
    (random, nothing), (pretrained, kept) = given
    assert not nothing
    assert len(kept) == 1
    for name, tensor in pretrained.items():
        assert torch.equal(tensor, (encoder if name.startswith("blocks") else random)[name])


def made(program: ModuleType, start: str, rate: float, seed: int, best: float, test: float) -> Any:
    run = program.Run("simulated", 1, start, rate, seed)
    scores = {"average_precision": test}
    return program.Result(run, ((2, 0.1), (4, best)), 4, 1.0, {"simulated": scores})


def test_validation_chooses_the_rate(program: ModuleType) -> None:
    """The other rate is better on the test patients, and is not shown."""
    results = [
        made(program, start, rate, seed, best + 0.1 * seed, test + gain)
        for start, gain in (("random", 0.0), ("encoder", 0.02))
        for rate, best, test in ((1e-2, 0.5, 0.6), (1e-3, 0.4, 0.8))
        for seed in (0, 1)
    ]
    (line,) = program.comparison(results).splitlines()[2:]
    assert line == (
        "| simulated | 1 | simulated | 0.600 [0.600, 0.600] (0.01) | 0.620 [0.620, 0.620] (0.01) | "
        "+0.020 [+0.020, +0.020] |"
    )
    again = [program.Result.of(json.loads(json.dumps(asdict(one)))) for one in results]
    assert again == results
