"""The page of a subject shows the right numbers, and voxels where they are."""

from __future__ import annotations

import gzip
import json
from base64 import b64decode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine

from tripq.report.sphere import nearest_angles, seen_from, view_shells
from tripq.scans import read_dwi
from tripq.tasks.lesions.listing import find_candidates
from tripq.tasks.lesions.names import HEALTHY_HEADS
from tripq.tasks.lesions.pages.subject import write_subject_report


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, case: Any, read: Callable[[Path], Any]) -> Any:
    path = tmp_path_factory.mktemp("page") / "page.html"
    settings = {"network": "equivariant"}
    write_subject_report(
        path, case.dwi, case.probability, threshold=0.5, settings=settings, lesion=case.truth
    )
    return read(path)


def data(page: Any, name: str) -> Any:
    (script,) = (e for e in page.root.iter("script") if e.get("id") == name)
    return json.loads(script.text)


def test_the_candidates_are_in_the_table(page: Any, case: Any) -> None:
    candidates = find_candidates(case.dwi, case.probability, 0.5)
    assert [candidate.voxels for candidate in candidates] == [27, 8, 1]
    first, second, third = page.table("candidate-table")
    x, y, z = (f"{c:.1f}".replace("-", "−") for c in candidates[0].centre_mm)
    assert first == ["1", "3.375", "27", "right", x, y, z, "0.90", "0.90", "100", "Show"]
    assert second[:4] == ["2", "1.000", "8", "left"]
    assert third[-2] == "0"  # % of voxels that are known


def test_the_totals_are_those_of_the_candidates(page: Any) -> None:
    cards = page.cards()
    assert cards["lesion candidates"] == "3"
    assert cards["in total"] == "4.50 ml"
    assert cards["the largest"] == "3.38 ml"
    assert (cards["highest probability"], cards["threshold"]) == ("0.90", "0.500")


def test_the_truth_is_compared(page: Any) -> None:
    cards = page.cards()
    assert (cards["lesions known"], cards["of them marked"]) == ("2", "1")
    assert cards["sensitivity, lesions"] == "0.500"
    assert cards["precision, lesions"] == "0.333"
    assert cards["Dice"] == f"{2 * 27 / (36 + 35):.3f}"


def test_what_was_measured_is_told(page: Any) -> None:
    for words in (
        "b0 3 volumes",
        "28 × 34 × 26 voxels",
        "Negative intensities set to 0: <b>7</b>.",
        "b = 700 s/mm², 6 directions",
        "b = 2,000 s/mm², 12 directions",
        "network equivariant",
    ):
        assert words in page.text


def test_slices_are_described_for_those_who_cannot_see_them(page: Any) -> None:
    alternatives = [e.get("alt") for e in page.root.iter("img") if e.get("alt")]
    slices = [words for words in alternatives if words.startswith("Axial slice at z = ")]
    assert 3 <= len(slices) <= 6
    for number in "123":
        assert any(words.endswith(f"mm: candidate {number}") for words in slices)
    heights = [int(w.split(" = ")[1].split(" mm")[0].replace("−", "-")) for w in slices]
    assert heights == sorted(heights, reverse=True)


def test_volumes_in_the_page_lie_where_the_scan_lies(page: Any, case: Any) -> None:
    expected = {
        "probability": case.probability,
        "b0": np.minimum(case.dwi.b0 / np.percentile(case.dwi.b0, 99.5), 1),
    }
    volumes = data(page, "volumes")
    assert set(volumes) == {"b0", "weighted", "probability"}
    places = case.dwi.voxel_centres()
    for name, values in expected.items():
        image = nib.Nifti1Image.from_bytes(gzip.decompress(b64decode(volumes[name])))
        assert image.get_data_dtype() == np.uint8
        voxels = apply_affine(np.linalg.inv(image.affine), places)
        np.testing.assert_allclose(voxels, np.rint(voxels), atol=1e-4)
        shown = image.get_fdata()[tuple(np.rint(voxels).astype(int).T)]
        np.testing.assert_allclose(shown, values, atol=0.5 / 255 + 1e-6)
        assert image.get_fdata().sum() == pytest.approx(shown.sum())


def test_the_view_opens_in_the_first_candidate(page: Any, case: Any) -> None:
    settings = data(page, "viewer-settings")
    peak = find_candidates(case.dwi, case.probability, 0.5)[0].peak_mm
    np.testing.assert_allclose(settings["start"], peak)
    assert settings["threshold"] == 0.5


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("highest", [0.3, 0.0])
def test_where_nothing_is_found_the_page_says_so(
    tmp_path: Path, case: Any, read: Callable[[Path], Any], highest: float
) -> None:
    probability = np.minimum(case.probability, highest)
    write_subject_report(tmp_path / "page.html", case.dwi, probability, threshold=0.5, settings={})
    page = read(tmp_path / "page.html")
    assert (
        f"No lesion candidate. No voxel reaches the threshold of 0.500; the highest "
        f"probability is {highest:.3f}." in page.text
    )
    assert page.cards()["lesion candidates"] == "0"
    assert not [e for e in page.root.iter("table") if e.get("id") == "candidate-table"]
    assert len([e for e in page.root.iter("img") if "no candidate" in e.get("alt")]) >= 1


@pytest.mark.usefixtures("undrawn")
def test_candidates_below_the_minimum_volume_are_not_listed(
    tmp_path: Path, case: Any, read: Callable[[Path], Any]
) -> None:
    path = tmp_path / "page.html"
    common = (path, case.dwi, case.probability)
    sentence = "On 15 scans it marked a median of 0.05 ml <b>."
    settings = {HEALTHY_HEADS: sentence}
    write_subject_report(*common, threshold=0.5, settings=settings, min_volume=1.0)
    page = read(path)
    assert [row[2] for row in page.table("candidate-table")] == ["27", "8"]
    assert page.cards()["lesion candidates"] == "2"
    assert page.cards()["minimum volume"] == "1.000 ml"
    assert "connected by faces, edges or corners, together at least 1.000 ml" in page.text
    assert page.text.count(f"Healthy heads: {sentence}") == 1
    write_subject_report(*common, threshold=0.5, settings={}, min_volume=9.0)
    page = read(path)
    assert (
        "No lesion candidate. No connected voxels that reach the threshold of 0.500 have 9.000 ml "
        "or more together; the highest probability is 0.900." in page.text
    )
    assert "Healthy heads" not in page.text


@pytest.mark.usefixtures("undrawn")
def test_candidates_are_numbered_by_probability_times_volume(
    tmp_path: Path, case: Any, read: Callable[[Path], Any]
) -> None:
    """8 voxels of .9 come before 27 of .25, and the largest is the second."""
    probability = np.where(case.probability == 0.9, 0.25, case.probability)
    probability[case.probability == 0.7] = 0.9
    path = tmp_path / "page.html"
    write_subject_report(path, case.dwi, probability, threshold=0.22, settings={})
    page = read(path)
    assert [row[2] for row in page.table("candidate-table")] == ["8", "27", "1"]
    assert page.cards()["the largest"] == "3.38 ml"


def test_a_map_of_another_scan_is_refused(tmp_path: Path, case: Any) -> None:
    with pytest.raises(ValueError, match="need one probability for each"):
        write_subject_report(tmp_path / "page.html", case.dwi, [0.5], threshold=0.5, settings={})
    with pytest.raises(ValueError, match="one label for each voxel"):
        write_subject_report(
            *(tmp_path / "page.html", case.dwi, case.probability),
            **{"threshold": 0.5, "settings": {}, "lesion": [True]},
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("undrawn")
def test_a_scan_without_a_file_has_a_page(
    tmp_path: Path, case: Any, read: Callable[[Path], Any]
) -> None:
    dwi = replace(case.dwi, path=None, notes=())
    write_subject_report(tmp_path / "page.html", dwi, case.probability, threshold=0.5, settings={})
    assert "Notes of the reader none" in read(tmp_path / "page.html").text


# Spheres of directions


def test_the_sphere_shows_every_direction_and_its_opposite(case: Any) -> None:
    first, second = view_shells(case.dwi)
    assert (first.b_value, first.directions, second.directions) == (700, 6, 12)
    measured = [(p.x, p.y, p.z) for p in first.points if not p.antipode]
    opposite = [(p.x, p.y, p.z) for p in first.points if p.antipode]
    q = case.dwi.q[1:7]
    np.testing.assert_allclose(measured, q / np.linalg.norm(q, axis=1, keepdims=True))
    np.testing.assert_allclose(opposite, -np.array(measured))


@pytest.mark.parametrize(("azimuth", "elevation"), [(0, 0), (35, 20), (-120, 80)])
def test_the_axes_of_the_picture_are_those_of_a_reader(azimuth: float, elevation: float) -> None:
    axes = seen_from(azimuth, elevation)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(axes) == pytest.approx(1)
    right, up, towards = axes
    assert right[2] == 0  # the horizon is level
    assert up[2] >= 0
    assert towards[2] == pytest.approx(np.sin(np.radians(elevation)))


def test_from_in_front_the_left_of_the_head_is_on_the_right() -> None:
    np.testing.assert_allclose(seen_from(0, 0) @ [-1, 0, 0], [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(seen_from(0, 0) @ [0, 1, 0], [0, 0, 1], atol=1e-12)


def test_a_direction_that_was_measured_twice_has_angle_0() -> None:
    unit = np.array([[0.6, 0.8, 0], [-0.6, -0.8, 0], [0, 0, 1]])
    np.testing.assert_allclose(nearest_angles(unit), [0, 0, 90], atol=1e-5)


def test_the_page_of_a_real_scan_is_small(
    shared_data: Path, tmp_path: Path, read: Callable[[Path], Any]
) -> None:
    folder = shared_data / "real_dwi" / "tractseg_example"
    dwi = read_dwi(folder / "Diffusion.nii.gz", mask=folder / "nodif_brain_mask.nii.gz")
    probability = np.zeros(len(dwi.b0))
    x, y, z = (dwi.voxel_centres() - dwi.voxel_centres().mean(axis=0)).T
    probability[x**2 + (y - 10) ** 2 + (z - 10) ** 2 < 36] = 0.8
    path = tmp_path / "page.html"
    write_subject_report(path, dwi, probability, threshold=0.5, settings={})
    assert path.stat().st_size < 4e6
    page = read(path)
    assert page.cards()["lesion candidate"] == "1"
    assert page.table("candidate-table")[0][3] == "midline"
    assert "b = 1,000 s/mm², 32 directions" in page.text
