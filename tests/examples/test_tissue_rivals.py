"""Comparison of the task `tissue` with convolutions: heads, tables, and what is kept."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tripq.networks import VoxelNetwork, load_network, read_notes
from tripq.simulate import default_anatomy

MARKERS = "".join(f"<!-- {name} -->\n\n<!-- end of {name} -->\n" for name in ("trainings", "dice"))


@pytest.fixture
def heads(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Slabs of coarse voxels instead of whole heads."""
    from tissue_study import heads

    slab = default_anatomy(5.0).within((-60, -40, 0), (60, 40, 30))
    monkeypatch.setattr(heads, "anatomy", lambda voxel_size: slab)
    return heads


@pytest.fixture
def study(heads: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program with three small networks, two training heads, and two tests of one head."""
    import tissue_rivals
    from tissue_study import contenders

    usual, turned = (replace(one, heads=1) for one in heads.TESTS[:2])
    training = {
        poses: (replace(training, heads=2), validation)
        for poses, (training, validation) in heads.TRAINING.items()
    }
    one, shipped, other = contenders.CONTENDERS[:3]
    small = partial(VoxelNetwork, q_features="4x0e", p_features="4x0e", n_p_layers=1)
    few = {"pilot_steps": 1, "rates": (1e-3, 1e-2)}
    one = replace(one, build=partial(small, "4x0e"), **few)
    shipped = replace(shipped, build=partial(small, "3x0e"), tuned_as=one, **few)
    some = (one, shipped, replace(other, build=partial(other.build, widths=(6, 4)), **few))
    for module in (heads, contenders, sys.modules["tissue_study.results"]):
        monkeypatch.setattr(module, "TESTS", (usual, turned))
        monkeypatch.setattr(module, "TRAINING", training)
    monkeypatch.setattr(tissue_rivals, "CONTENDERS", some)
    monkeypatch.setattr(tissue_rivals, "USUAL", usual)
    monkeypatch.setattr(sys.modules["tissue_study.real"], "USUAL", usual)
    monkeypatch.setattr(tissue_rivals, "BOX_SIZE", 6)
    for name, path in {
        "PAGE": "page.md",
        "CARD": "card.md",
        "RESULTS": "kept",
        "WEIGHTS": "weights/ours.safetensors",
    }.items():
        monkeypatch.setattr(tissue_rivals, name, tmp_path / path)
    (tmp_path / "page.md").write_text(MARKERS)
    return tissue_rivals


def test_the_same_head_in_another_pose_has_other_labels_and_directions(heads: ModuleType) -> None:
    usual, turned = (heads.simulate(condition, 0) for condition in heads.TESTS[:2])
    assert heads.has_usual_table(usual)
    assert not heads.has_usual_table(turned)
    assert heads.at_usual_table(usual) is usual
    assert heads.has_usual_table(heads.at_usual_table(turned))
    shares = [np.bincount(scan.labels, minlength=4) / len(scan.labels) for scan in (usual, turned)]
    assert min(share.min() for share in shares) > 0
    assert np.abs(shares[0] - shares[1]).max() < 0.1
    assert usual.dwi.mask.shape != turned.dwi.mask.shape


def test_no_head_is_in_two_parts_and_some_are_healthy(heads: ModuleType) -> None:
    training, validation = heads.TRAINING["any"]
    parts = [
        set(range(part.first, part.first + part.heads))
        for part in (training, validation, heads.USUAL)
    ]
    assert len(set.union(*parts)) == sum(map(len, parts))
    ill, healthy = (replace(training, healthy=number) for number in (0, 1))
    assert (heads.simulate(ill, 0).labels == 3).any()
    assert not (heads.simulate(healthy, 0).labels == 3).any()
    assert training.healthy > 1


def test_lesions_have_no_label_in_the_scans_of_three_classes(heads: ModuleType) -> None:
    scan = heads.simulate(heads.USUAL, 0)
    found = heads.without_lesions(scan)
    assert found.classes.labels == ("WM", "GM", "CSF")
    lesion = scan.labels == 3
    assert lesion.any()
    np.testing.assert_array_equal(found.labels, np.where(lesion, -1, scan.labels))


@pytest.mark.usefixtures("few_settling")
def test_results_are_kept_and_written_into_the_page(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    study.main(out, None, seconds=1e-3, save=True)
    ours, shipped, reference = (
        study.Results.read(tmp_path / "kept" / f"{name}.json")
        for name in ("equivariant-any", "tissue-any", "reference-usual")
    )
    assert [(row.test, row.resampled) for row in ours.rows] == [("usual", False), ("turned", False)]
    assert [row.resampled for row in reference.rows] == [False, True]
    for one in (ours, reference):
        assert max(pilot.score for pilot in one.trained.pilots) == next(
            pilot.score for pilot in one.trained.pilots if pilot.rate == one.trained.rate
        )
        assert one.trained.best[1] == max(score for _, score in one.trained.validation)
    assert (shipped.trained.pilots, shipped.trained.rate) == ((), ours.trained.rate)
    assert shipped.trained.steps == ours.trained.steps
    assert {tuple(row.dice) for row in shipped.rows} == {("WM", "GM", "CSF")}
    page = (tmp_path / "page.md").read_text()
    assert page.count("| cannot |") == 1
    assert f"| {ours.of('usual')[0].mean:.3f} (" in page
    assert f"| - | {shipped.tissue('usual'):.3f} (" in page
    notes = read_notes(out / "tissue-any" / "network.safetensors")
    assert notes["b_values"] == "1000"
    assert "lesion" not in notes["classes"]

    monkeypatch.setattr(study.Study, "_trained", None)  # nothing is trained again
    study.main(out, None, seconds=1e-3, save=True)
    assert (tmp_path / "page.md").read_text() == page

    weights = {}

    def measure(path: Path, data: Path) -> list[object]:
        weights[data] = load_network(path)
        return []

    monkeypatch.setattr(study, "measure", measure)
    study.main(out, None, seconds=1e-3, ship=tmp_path)
    assert isinstance(weights[tmp_path], VoxelNetwork)
    assert "| sub-201, known | simulated |" in (tmp_path / "card.md").read_text()


def test_the_page_and_the_card_are_those_of_the_kept_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tissue_rivals

    results = tissue_rivals.kept_results()
    assert len(results) > 1
    page, card = tmp_path / "tissue.md", tmp_path / "card.md"
    page.write_text(tissue_rivals.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    tissue_rivals.write_page(results, page)
    assert page.read_text(encoding="utf-8") == tissue_rivals.PAGE.read_text(encoding="utf-8")
    shipped = tissue_rivals.CARD.read_text(encoding="utf-8")
    monkeypatch.setattr(tissue_rivals, "CARD", card)
    tissue_rivals.describe_shipped(results)
    assert card.read_text(encoding="utf-8") == shipped
