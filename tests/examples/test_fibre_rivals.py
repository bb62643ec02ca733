"""The comparison with dipy's deconvolution, with everything small, and the page of its results."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.tasks.fibres.conftest import angle, small_anatomy
from tripq.simulate import GradientTable
from tripq.tasks.fibres.peaks import find_peaks
from tripq.tasks.fibres.simulate import SimulatedFibres, simulate_fibres


@pytest.fixture
def program() -> ModuleType:
    import fibre_rivals

    return fibre_rivals


@pytest.fixture
def rivals(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    from fibre_study import rivals

    monkeypatch.setattr(rivals, "RESPONSE_VOXELS", 30)
    return rivals


def head(seed: int, number: int = 32, b_value: float = 1000.0) -> SimulatedFibres:
    table = GradientTable.from_shells([b_value], [number])
    return simulate_fibres(small_anatomy(), table, seed, snr=50.0, name=f"head-{seed}")


def test_a_deconvolution_finds_single_fibres_in_world_axes(rivals: ModuleType) -> None:
    one = head(0)
    lengths = np.linalg.norm(one.peaks, axis=-1)
    rows = np.flatnonzero((lengths[:, 0] > 0.6) & (lengths[:, 1] < 0.1))
    peaks = find_peaks(rivals.Deconvolution(6)(one.dwi, rows))
    assert np.median(angle(peaks[:, 0], one.peaks[rows, 0])) < 4


def test_the_response_is_that_of_white_matter(rivals: ModuleType) -> None:
    values, b0 = rivals.response_of(head(0).dwi)
    assert b0 == pytest.approx(1)
    assert values[0] > 3 * values[1] > 0


def test_training_heads_differ_in_all_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from fibre_study import heads

    monkeypatch.setattr(heads, "default_anatomy", lambda edge: small_anatomy())
    monkeypatch.setattr(heads, "SLAB", ((-36, -40, 20), (36, 20, 36)))
    found = list(heads.training_heads(4, seed=0))
    b_values = [one.dwi.b_values.max() for one in found]
    low, high = heads.B_VALUES
    assert sorted(b_values) == b_values
    assert low <= b_values[0] < b_values[-1] <= high
    directions = {len(one.dwi.b_values) - 1 for one in found}
    assert len(directions) > 1
    assert min(directions) >= heads.DIRECTIONS[0]
    again = list(heads.training_heads(4, seed=0))
    assert all(
        np.array_equal(x.dwi.signal, y.dwi.signal) for x, y in zip(found, again, strict=True)
    )


def test_what_is_shown_of_a_head(program: ModuleType) -> None:
    from fibre_study import heads

    few = heads.with_directions(head(0).dwi, 12)
    assert len(few.b_values) == 13
    nearest = np.abs(few.q[1:] @ few.q[1:].T) - np.eye(12)
    assert nearest.max() < 0.95
    rows = heads.white_matter(head(0), 20, seed=0)
    assert len(rows) == 20
    assert head(0).peaks[rows, 0].any(axis=-1).all()


def test_a_picture_shows_the_square_with_most_crossings() -> None:
    from fibre_study.picture import draw_peaks

    one = head(0)
    there = one.dwi.voxel_centres() @ [1.0, 1.0, 0.0]
    crossing = there > np.quantile(there, 0.9)
    peaks = np.zeros((len(there), 2, 3))
    peaks[:, 0, 0] = 1.0
    peaks[crossing, 1, 1] = 1.0
    figure = draw_peaks(one.dwi, {"known": peaks, "found": np.zeros_like(peaks)})
    known, found = (axes.collections for axes in figure.axes)
    across, along = (lines.get_segments() for lines in known)
    assert 0 < len(across) < len(along)
    assert all(np.ptp(line[:, 0]) == 0 and np.ptp(line[:, 1]) > 0 for line in across)
    assert all(np.ptp(line[:, 0]) > 0 and np.ptp(line[:, 1]) == 0 for line in along)
    assert not any(len(lines.get_segments()) for lines in found)


@pytest.mark.exhaustive
def test_results_are_kept_and_written_into_the_page(
    program: ModuleType, rivals: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fibre_study import heads
    from fibre_study.results import TABLES, Results

    page = tmp_path / "page.md"
    page.write_text("\n".join(f"<!-- {n} -->\n\n<!-- end of {n} -->" for n in TABLES))
    monkeypatch.setattr(program, "PAGE", page)
    monkeypatch.setattr(program, "PICTURE", tmp_path / "picture.png")
    monkeypatch.setattr(program, "RESULTS", tmp_path / "all.json")
    monkeypatch.setattr(program, "B_VALUES", (1000.0,))
    monkeypatch.setattr(program, "PATCH_RADII", (1,))
    for name in ("TUNED", "SCORED", "FIRST_BOXES"):
        monkeypatch.setattr(program, name, 20)
    monkeypatch.setattr(program, "all_settings", lambda: [rivals.Deconvolution(4)])
    monkeypatch.setattr(heads, "training_heads", lambda n, seed: (head(i, 14) for i in range(n)))
    monkeypatch.setattr(heads, "other_heads", lambda n, seed, b: (head(9 + i) for i in range(n)))
    small = partial(program.FibreNetwork, p_radius=5.0, p_features="3x0e + 1x2e", channels=2)
    monkeypatch.setattr(program, "make_network", lambda name: small())
    scan = head(5)
    real = program.RealScan(scan.dwi, np.flatnonzero(scan.peaks[:, 0].any(axis=1)), None)
    real = replace(real, peaks=scan.peaks[real.rows])
    monkeypatch.setattr(program.RealScan, "read", lambda folder: real)
    run = partial(
        *(program.main, tmp_path / "runs", tmp_path),
        training=2,
        tests=2,
        steps=2,
        save=True,
        to_ship=False,
    )
    run()
    results = Results.read(tmp_path / "all.json")
    assert [(row.head, row.directions) for row in results.rows] == [
        (name, number) for number in (32, 12) for name in ("head-9", "head-10")
    ]
    csd = results.rows[0].scores["CSD"]
    assert csd["single_error"] < 15
    deconvolutions = [
        "CSD",
        "CSD after MP-PCA",
        "CSD with a ridge",
        "CSD with a ridge after MP-PCA",
    ]
    assert [one.method for one in results.settings] == deconvolutions * 2
    assert [row.method for row in results.real] == list(results.rows[0].scores)
    written = page.read_text()
    assert written.count("| CSD after MP-PCA | 12 |") == 1
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("everything is there already")

    for name in ("train", "tune", "compare"):
        monkeypatch.setattr(program, name, never)
    run()
    assert page.read_text() == written


def test_the_page_has_the_kept_results(program: ModuleType, tmp_path: Path) -> None:
    from fibre_study.results import Results, write_page

    copy = tmp_path / "page.md"
    copy.write_text(program.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    write_page(Results.read(program.RESULTS), copy)
    assert copy.read_text(encoding="utf-8") == program.PAGE.read_text(encoding="utf-8")
