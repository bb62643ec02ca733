"""Cohorts of implanted lesions: names, files, what is kept, and what is refused."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tasks.lesions.open_ms import write_sources
from tripq.scans import DWI
from tripq.simulate import Anatomy, GradientTable, default_anatomy, simulate_scan
from tripq.tasks.lesions.datasets import (
    DatasetError,
    Head,
    OpenMS,
    cohort_anatomy,
    find_points,
    healthy_subject,
    implant_patient,
    load_cohort,
    load_severity,
    open_ms,
    outline_on_head,
    write_implanted,
)
from tripq.tasks.lesions.datasets import implanted as module
from tripq.tasks.lesions.simulate import ImplantStatistics, draw_effects

CENTRES = {"01": (-26.0, -20.0, 25.0), "12": (26.0, -20.0, 25.0), "13": (26.0, -20.0, 900.0)}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> OpenMS:
    folder = tmp_path_factory.mktemp("made-up") / "sources"
    write_sources(folder, CENTRES, edge=2)
    return open_ms(local=folder, accept_licences=True)


@pytest.fixture(scope="module")
def dwi() -> DWI:
    """A head that lies in the anatomy as it is."""
    anatomy = default_anatomy(4.0).within((-50, -50, 0), (50, 20, 50))
    table = GradientTable.from_shells([1000.0], [12])
    return simulate_scan(anatomy, table, seed=0, deformation=0.0).dwi


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> list[DWI]:
    """No registration: heads are in place.  The coarse anatomy serves for all."""
    calls: list[DWI] = []

    def register(anatomy: Anatomy, dwi: DWI) -> np.ndarray:
        calls.append(dwi)
        return dwi.voxel_centres().astype(np.float32)

    monkeypatch.setattr(module, "register_anatomy", register)
    module._anatomy.cache_clear()
    module._coverage.cache_clear()
    monkeypatch.setattr(module, "cohort_anatomy", lambda fibres, size: cohort_anatomy(fibres, 4.0))
    return calls


def head(dwi: DWI, name: str = "one", read: Callable[[], DWI] | None = None) -> Head:
    return Head(name, "somebody", "a scanner", "CC0", read or (lambda: dwi))


def test_a_cohort_is_written_and_read(
    tmp_path: Path, sources: OpenMS, dwi: DWI, registered: list[DWI]
) -> None:
    heads = [head(dwi)]
    names = write_implanted(
        tmp_path, heads, sources, patients=["01", "12"], seeds=(0, 1), progress=False
    )
    assert names == ["sub-oneP01S0", "sub-oneP01S1", "sub-oneP12S0", "sub-oneP12S1"]
    assert len(registered) == 1
    subjects = load_cohort(tmp_path)
    assert [subject.name for subject in subjects] == names
    left, again, right, _ = subjects
    np.testing.assert_array_equal(left.lesion, again.lesion)
    assert not np.array_equal(left.dwi.signal, again.dwi.signal)
    for subject, centre in ((left, CENTRES["01"]), (right, CENTRES["12"])):
        middle = subject.dwi.voxel_centres()[subject.lesion].mean(axis=0)
        assert np.linalg.norm(middle - centre) < 12  # outlines are scaled to the template
    with (tmp_path / "participants.tsv").open() as file:
        first = next(csv.DictReader(file, delimiter="\t"))
    assert (first["person"], first["scanner"], first["patient"]) == ("somebody", "a scanner", "01")
    assert float(first["lesion_ml"]) > 0
    assert "IMPLANTED" in (tmp_path / "README").read_text()
    severity = load_severity(tmp_path, left)
    points = find_points(tmp_path / ".registrations" / "one.npz", sources, dwi)
    subject = implant_patient(dwi, points, sources, "01", 0)
    expected = draw_effects(dwi, subject.coverage, subject.seed).severity
    np.testing.assert_array_equal(severity, expected)
    assert (severity[left.lesion] >= 0.2).all()
    assert not severity[subject.coverage == 0].any()


def test_what_exists_is_kept_and_its_head_is_not_read(
    tmp_path: Path, sources: OpenMS, dwi: DWI
) -> None:
    def never() -> DWI:
        raise AssertionError("read again")

    options = {"patients": ["01"], "progress": False}
    write_implanted(tmp_path, [head(dwi)], sources, **options)
    scan = tmp_path / "sub-oneP01S0/dwi/sub-oneP01S0_dwi.nii.gz"
    written = scan.stat().st_mtime_ns
    assert write_implanted(tmp_path, [head(dwi, read=never)], sources, **options) == [
        "sub-oneP01S0"
    ]
    assert scan.stat().st_mtime_ns == written


def test_a_registration_is_made_once_for_each_head(
    tmp_path: Path, sources: OpenMS, dwi: DWI, registered: list[DWI]
) -> None:
    path = tmp_path / "deep" / "one.npz"
    first = find_points(path, sources, dwi)
    np.testing.assert_array_equal(find_points(path, sources, dwi), first)
    assert len(registered) == 1
    find_points(path, sources, replace(dwi, b0=dwi.b0 + 1))  # another head
    assert len(registered) == 2
    path.write_bytes(b"damaged")
    np.testing.assert_array_equal(find_points(path, sources, dwi), first)
    assert len(registered) == 3


def test_outlines_stay_out_of_fluid(sources: OpenMS, dwi: DWI) -> None:
    anatomy = cohort_anatomy(sources.fibres, 4.0)
    everywhere = np.ones(anatomy.mask.shape, np.float32)
    fluid = np.arange(len(dwi.b0)) % 2 == 0
    signal = dwi.signal.copy()
    signal[fluid, 1:] = np.exp(-3.0)
    signal[~fluid, 1:] = np.exp(-0.8)
    found = outline_on_head(everywhere, anatomy, replace(dwi, signal=signal), dwi.voxel_centres())
    np.testing.assert_array_equal(found[fluid], 0)
    assert (found[~fluid] > 0.99).all()
    nowhere = dwi.voxel_centres() + 1000
    assert not outline_on_head(everywhere, anatomy, dwi, nowhere).any()


def test_lesions_outside_the_field_of_view_leave_the_scan_as_it_is(
    sources: OpenMS, dwi: DWI
) -> None:
    subject = implant_patient(dwi, dwi.voxel_centres(), sources, "13", 0)
    assert not subject.lesion.any()
    np.testing.assert_array_equal(subject.dwi.signal, dwi.signal)


def test_a_healthy_head_has_no_lesion(dwi: DWI) -> None:
    subject = healthy_subject(head(dwi))
    assert subject.dwi is dwi
    assert not subject.lesion.any()


def test_what_is_refused(tmp_path: Path, sources: OpenMS, dwi: DWI) -> None:
    def write(heads: list[Head], **options: object) -> None:
        write_implanted(tmp_path, heads, sources, progress=False, **options)  # type: ignore[arg-type]

    with pytest.raises(DatasetError, match="no lesions of patient 99"):
        write([head(dwi)], patients=["99"])
    with pytest.raises(DatasetError, match=r"distinct letters and digits, not \['one'\]"):
        write([head(dwi), head(dwi)], patients=["01"])
    with pytest.raises(DatasetError, match=r"not \['a_b'\]"):
        write([head(dwi, "a_b")], patients=["01"])
    write([], patients=["01"])
    with pytest.raises(DatasetError, match="cohort with other settings: severity"):
        write([], statistics=ImplantStatistics(severity=(0.1, 0.2)))
