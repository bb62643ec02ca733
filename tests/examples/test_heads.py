"""Training with real heads, and measurements in them, with everything small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from tests.conftest import FEW_SETTLING
from tests.tasks.lesions.open_ms import write_sources
from tripq.networks.checkpoint import load_network, read_notes
from tripq.scans import DWI, write_dwi, write_map
from tripq.simulate import Anatomy, GradientTable, default_anatomy, simulate_scan
from tripq.tasks.lesions.datasets import cohort_anatomy, implanted, open_ms
from tripq.tasks.lesions.segmentation import load_model

CENTRES = {
    "01": (-26.0, -20.0, 25.0),
    "02": (26.0, -20.0, 25.0),
    "03": (-26.0, -20.0, 25.0),
}


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """examples/measure_weights.py, imported as Python imports it when it is started."""
    import measure_weights

    return measure_weights


@pytest.fixture(scope="module")
def studio(program: ModuleType, slabs: None, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """Two heads of two people, of which one network each has seen the other."""
    from paper.mixture import Mixture
    from paper.plan import USUAL, Condition, Split
    from paper.real_heads import RealHead
    from paper.recipes import EQUIVARIANT, Stage
    from train_on_heads import PLAN, Cohorts, Studio

    folder = tmp_path_factory.mktemp("weights")
    write_sources(folder / "sources", CENTRES, radius=45, edge=2)
    anatomy = default_anatomy(4.0).within((-50, -50, 0), (50, 20, 50))
    for name, number in (("a", 12), ("b", 15)):
        table = GradientTable.from_shells([1000.0], [number])
        (folder / name).mkdir()
        scan = simulate_scan(anatomy, table, seed=number, deformation=0.0).dwi
        write_dwi(scan, folder / name / "dwi.nii.gz")
        write_map(np.ones(len(scan.b0), bool), scan, folder / name / "mask.nii.gz")
    heads = tuple(
        RealHead(
            name,
            f"person {name}",
            f"scanner {name}",
            "CC0",
            f"{name}/dwi.nii.gz",
            mask="mask.nii.gz",
        )
        for name in "ab"
    )
    thick = Condition(
        "thick",
        "15 directions in slices",
        GradientTable.from_shells([2000.0], [15]),
        voxel_size=(4.0, 4.0, 5.0),
        randomised=True,
    )
    cohorts = Cohorts(
        open_ms(local=folder / "sources", accept_licences=True),
        Split(("01",), ("02",), ("03",)),
        folder / "out",
        folder,
        Mixture((USUAL, thick), (USUAL,), n_patients=1),
        5.0,
        heads,
    )
    plan = replace(PLAN, box_size=6)
    recipe = replace(EQUIVARIANT, base=Stage(4, 5e-3, every=2), with_heads=Stage(2, 2e-3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tripq.training.module.N_SETTLING", FEW_SETTLING)
        patch.setattr("train_on_heads.IMPLANTED", {"training": 1, "validation": 1, "test": 1})
        patch.setattr(implanted, "register_anatomy", in_place)
        patch.setattr(implanted, "cohort_anatomy", lambda fibres, _: cohort_anatomy(fibres, 4.0))
        for cache in (implanted._anatomy, implanted._coverage):
            cache.cache_clear()
        yield Studio(cohorts, recipe, plan)
        for cache in (implanted._anatomy, implanted._coverage):
            cache.cache_clear()


def in_place(anatomy: Anatomy, dwi: DWI) -> np.ndarray:
    """No registration: heads are in place."""
    return dwi.voxel_centres().astype(np.float32)


def test_networks_say_what_they_have_seen(studio) -> None:  # type: ignore[no-untyped-def]
    base = studio.base()
    without = studio.without("person a")
    assert any(
        not torch.equal(a, b) for a, b in zip(base.parameters(), without.parameters(), strict=True)
    )
    notes = read_notes(studio.network_without("person a"))
    assert notes["voxel_size_mm"] == "4 5"
    assert notes["b_values"] == "1000 2000"
    assert notes["fewest_directions"] == "15"  # those of person b
    assert "not on scans of patients" in notes["caution"]
    names = [path.name for path in (studio.cohorts.folder / "implanted").glob("sub-*")]
    assert names
    assert not any(name.startswith("sub-a") for name in names)


def test_a_finished_network_is_read(studio, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    first = studio.base()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("train_on_heads.train", never)
    again = studio.base()
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_results_and_page(program, studio, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from paper import head_page
    from paper.head_tests import Repeat, Tests
    from paper.recipes import EQUIVARIANT

    def unseen(person: str):  # type: ignore[no-untyped-def]
        studio.without(person)
        return load_model(studio.network_without(person))

    tests = program.measure(studio.cohorts, unseen, tmp_path)
    people = ["person a", "person b"]
    assert [row.person for row in tests.healthy] == people
    assert [row.person for row in tests.implanted] == people
    assert [row.person for row in tests.simulated] == people
    assert {path.name for path in tmp_path.glob("*.png")} == {"a.png", "b.png"}
    for row in tests.implanted:
        assert sum(row.voxels) > 1000
        assert 0 < sum(row.lesion_voxels) < sum(row.voxels)

    tests = replace(tests, repeats=(Repeat("a", "b", "head turned", 12.0, 0.5),))
    tests.write(tmp_path / "results.json")
    Tests.read(tmp_path / "results.json").write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (tmp_path / "results.json").read_text()
    page = tmp_path / "page.md"
    page.write_text((program.DOCS / "real-heads.md").read_text())
    head_page.write_page({EQUIVARIANT: tests}, page)
    text = page.read_text()
    assert "| b | scanner b | 4 x 4 x 4 | 15 at 1000 |" in text
    assert "| b | a | head turned | 12 | 0.50 |" in text
    assert head_page.summary(tests) in text
    assert "| CNN on tensor maps and b0 | not yet run |" in text


def test_average_precision_of_several_subjects_is_that_of_their_voxels(program) -> None:  # type: ignore[no-untyped-def]
    from paper.head_tests import BINS, Implanted, pooled_average_precision
    from paper.results import curve_of
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(0)
    rows, lesions, maps = [], [], []
    for size, share in ((20_000, 0.2), (30_000, 0.002)):
        lesion = rng.random(size) < share
        logit = rng.normal(2.0 * lesion - 3, 1.5)
        probability = 1 / (1 + np.exp(-logit))
        voxels, sick = (np.histogram(p, BINS)[0] for p in (probability, probability[lesion]))
        curve = curve_of(probability, lesion)
        counts = (tuple(voxels), tuple(sick), (0.0,) * len(voxels))
        rows.append(Implanted(f"sub-{size}", "a", 0, 0, (), 0.0, 0.0, *counts, curve))
        lesions.append(lesion)
        maps.append(probability)
    expected = average_precision_score(np.concatenate(lesions), np.concatenate(maps))
    assert pooled_average_precision(rows) == pytest.approx(expected, abs=2e-3)


def test_a_rival_sees_the_same_heads_on_voxels_of_its_own(studio) -> None:  # type: ignore[no-untyped-def]
    from paper.recipes import RECIPES, Stage

    brief = {"base": Stage(2, 1e-3, every=1), "with_heads": Stage(2, 1e-3)}
    rival = replace(studio, recipe=replace(RECIPES["tensor"], voxel_size=5.0, **brief))
    assert rival.without("person a") is not None
    path = rival.network_without("person a")
    assert path.parent.parent.name == "tensor"
    notes = read_notes(path)
    assert notes["voxel_size_mm"] == "5"
    ((subject, probability), *_) = rival._unseen("person a")
    assert subject.dwi.voxel_size.tolist() == [4, 4, 4]
    assert probability.shape == subject.dwi.b0.shape
    assert 0 < probability.min() < probability.max() < 1


def test_a_network_with_the_heads_of_all(studio) -> None:  # type: ignore[no-untyped-def]
    studio.with_all()
    for person in studio.cohorts.people:
        studio.without(person)
    studio.choose_limits()
    notes = read_notes(studio.folder("all") / "network.safetensors")
    assert notes["fewest_directions"] == "12"
    assert float(notes["min_volume_ml"]) >= 0


def test_people_with_many_scans_do_not_decide_the_median() -> None:
    from paper.head_page import median_of_people
    from paper.head_tests import Healthy

    def row(person: str) -> Healthy:
        return Healthy(person, person, "", "", "", 0, 0.0, 0, 0.0, 1.0, ())

    rows = [row(person) for person in ("a", "b", "c", "c", "c", "c", "c")]
    assert median_of_people(rows, [0.3, 0.2, 0.0, 0.0, 0.0, 0.0, 0.5]) == pytest.approx(0.2)


def test_a_threshold_for_healthy_heads_marks_no_more_than_its_volume(studio) -> None:  # type: ignore[no-untyped-def]
    """On voxels of 0.064 ml there is room for one; with a lower threshold there would be two."""
    from train_on_heads import QUIET, Limits, quiet_threshold

    (healthy,) = studio.cohorts.healthy(studio.cohorts.heads[:1])
    volume = float(np.prod(healthy.dwi.voxel_size)) / 1000
    rng = np.random.default_rng(0)
    maps = [rng.random(len(healthy.lesion)).astype(np.float32) ** power for power in (1, 3, 9)]
    found = [quiet_threshold(healthy, map) for map in maps]
    for threshold, map in zip(found, maps, strict=True):
        assert volume * np.count_nonzero(map >= threshold) <= QUIET
        assert volume * np.count_nonzero(map >= threshold - 2e-4) > QUIET
    lesion = np.zeros_like(healthy.lesion)
    lesion[:20] = True
    sick = replace(healthy, lesion=lesion)
    subjects, of_all = [healthy] * 3 + [sick], [*maps, lesion.astype(np.float32)]
    assert Limits.choose(subjects, of_all).threshold == pytest.approx(np.median(found))


def test_weights_to_ship_come_with_a_card(studio, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import ship_weights
    from paper.head_tests import Tests
    from paper.plan import USUAL
    from paper.recipes import EQUIVARIANT

    from tripq.tasks.lesions.weights import weights_header

    studio.with_all()
    weights, card = tmp_path / "weights.safetensors", tmp_path / "weights.md"
    real = Tests.read(ship_weights.results_of(EQUIVARIANT))
    ship_weights.ship(studio, real, (USUAL,), weights, card)
    trained = studio.folder("all") / "network.safetensors"
    sentence = "healthy people, networks trained like this one, but without the person"
    assert sentence in read_notes(weights).pop("healthy_heads")
    assert read_notes(trained).items() <= read_notes(weights).items()
    for a, b in zip(
        load_network(trained).state_dict().values(),
        load_network(weights).state_dict().values(),
        strict=True,
    ):
        assert torch.equal(a, b)
    text = card.read_text()
    assert text.startswith(weights_header(read_notes(weights)) + "\n# ")
    assert "| Canon Galan 3T | 6 |" in text
    assert "| usual pose | 0." in text
    assert "| steps | 4 on simulated scans" in text
    assert "\n- CC0: scanner a, scanner b\n" in text
