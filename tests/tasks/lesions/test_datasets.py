"""The open cohort: from sources to BIDS and back."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from scipy.io import savemat

from tests.tasks.lesions.open_ms import write_fibres, write_sources
from tripq.scans import DWIError
from tripq.simulate import (
    Anatomy,
    GradientTable,
    Randomisation,
    SimulationError,
    default_anatomy,
)
from tripq.tasks import layout as layout_module
from tripq.tasks.lesions.datasets import (
    LICENCES,
    SOURCES,
    DatasetError,
    OpenMS,
    brain_scale,
    cohort_anatomy,
    lesion_coverage,
    load_cohort,
    load_subject,
    open_ms,
    read_fibres,
    write_cohort,
)
from tripq.tasks.lesions.datasets import cohort as cohort_module

TABLE = GradientTable.from_shells([1000.0], [6])


@pytest.fixture(scope="session")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources of two patients: round brains of 60 mm, and a lesion each in deep white matter."""
    folder = tmp_path_factory.mktemp("sources")
    write_sources(folder, {"01": (-26.0, -20.0, 25.0), "12": (26.0, -20.0, 25.0)})
    (folder / "open_ms/patient_info.csv").write_text(
        "patient_id,age,sex,ms_type,edss,criteria\n"
        "1,31,F,RR,1.5,McDonald 2010\n12,40,M,N/A,N/A,N/A\n"
    )
    return folder


@pytest.fixture(scope="session")
def sources(made_up: Path) -> OpenMS:
    return open_ms(local=made_up, accept_licences=True)


@pytest.fixture(scope="session")
def small(sources: OpenMS) -> Anatomy:
    """The head in voxels of 5 mm, of which a slab is scanned."""
    return cohort_anatomy(sources.fibres, 5.0).within((-60, -60, 5), (60, 20, 45))


@pytest.fixture(scope="session")
def cohort(sources: OpenMS, small: Anatomy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder, sources, TABLE, anatomy=small, progress=False)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# -- sources -------------------------------------------------------------------------------------


def test_every_source_is_pinned() -> None:
    assert len(SOURCES) == 2 + 2 * 30
    assert len({source.name for source in SOURCES}) == len(SOURCES)
    assert len({source.url for source in SOURCES}) == len(SOURCES)
    assert len({source.sha256 for source in SOURCES}) == len(SOURCES)
    for source in SOURCES:
        commit = source.url.removeprefix("https://raw.githubusercontent.com/").split("/")[2]
        assert len(bytes.fromhex(commit)) == 20
        assert len(bytes.fromhex(source.sha256)) == 32


def test_licences_are_accepted_or_named(made_up: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DatasetError, match="accept_licences=True") as refusal:
        open_ms(local=made_up)
    open_ms(local=made_up, accept_licences=True)
    printed = capsys.readouterr().out
    for licence in LICENCES:
        assert licence.name in str(refusal.value)
        assert str(licence) in printed


def test_a_download_is_left_to_pooch_with_all_that_is_pinned(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = {}

    def create(path: Path, base_url: str, registry: dict, urls: dict) -> SimpleNamespace:
        def fetch(name: str) -> None:
            seen[name] = (urls[name], registry[name])
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).touch()

        return SimpleNamespace(fetch=fetch)

    stand_in = ModuleType("pooch")
    stand_in.create = create  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pooch", stand_in)
    fetched = open_ms(accept_licences=True, cache=tmp_path)
    assert seen == {source.name: (source.url, f"sha256:{source.sha256}") for source in SOURCES}
    assert fetched.patients == tuple(f"{number:02}" for number in range(1, 31))
    assert all(fetched.brain(patient).is_file() for patient in fetched.patients)

    def unreachable(**_: object) -> SimpleNamespace:
        def fetch(name: str) -> None:
            raise OSError("no network")

        return SimpleNamespace(fetch=fetch)

    stand_in.create = unreachable  # type: ignore[attr-defined]
    with pytest.raises(DatasetError, match=r"patient_info\.csv: cannot be downloaded: no network"):
        open_ms(accept_licences=True, cache=tmp_path)


def test_without_pooch_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(DatasetError, match=r"pip install 'tripq\[ms\]'"):
        open_ms(accept_licences=True)


def test_a_local_folder_must_be_whole(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="patientNN_lesions"):
        open_ms(local=tmp_path, accept_licences=True)
    (tmp_path / "open_ms").mkdir()
    (tmp_path / "open_ms/patient07_lesions_MNIrigid_1mm.nii.gz").touch()
    (tmp_path / "ICBM152_adult.fib.gz").touch()
    with pytest.raises(DatasetError, match=r"patient07_brainmask\.nii\.gz: there is no such file"):
        open_ms(local=tmp_path, accept_licences=True)


def test_what_is_known_of_patients(sources: OpenMS) -> None:
    assert sources.patients == ("01", "12")
    assert sources.about("01") == {"age": "31", "sex": "F", "ms_type": "RR", "edss": "1.5"}
    assert sources.about("12") == {"age": "40", "sex": "M"}
    assert OpenMS(Path("nowhere")).about("01") == {}


# -- heads ---------------------------------------------------------------------------------------


def test_fibres_are_turned_from_lps_to_ras(sources: OpenMS) -> None:
    peaks, grid = read_fibres(sources.fibres)
    assert peaks.shape == (80, 100, 80, 3, 3)
    np.testing.assert_allclose(peaks[5, 6, 7, 0], [-0.18, -0.24, 0.0], atol=1e-6)
    np.testing.assert_allclose(peaks[3, 2, 1, 0], [0.0, 0.0, 0.3], atol=1e-6)
    np.testing.assert_allclose(grid.points()[0], [79.5, 81.5, -72.0])


def test_the_anatomy_has_the_fibres_of_the_file(small: Anatomy) -> None:
    inside = small.weights[..., 0] > 0
    assert inside[small.mask].all()
    np.testing.assert_allclose(
        small.directions[inside][:, 0], np.tile([-0.6, -0.8, 0.0], (inside.sum(), 1)), atol=1e-6
    )
    np.testing.assert_allclose(small.weights[inside][:, 0] / small.weights[inside][:, 1], 3)
    assert np.array_equal(small.wm, default_anatomy(5.0).wm)


def test_no_fibres_beyond_the_grid_of_the_file(tmp_path: Path) -> None:
    write_fibres(tmp_path / "half.fib.gz", (80, 100, 40))  # it ends at z = 6 mm
    anatomy = cohort_anatomy(tmp_path / "half.fib.gz", 5.0)
    z = anatomy.grid.points()[:, 2].reshape(anatomy.mask.shape)
    assert not anatomy.weights[z > 7].any()
    assert anatomy.weights[anatomy.mask & (z < 7)].any(axis=-1).all()


def test_brains_are_scaled_to_the_template(sources: OpenMS, small: Anatomy) -> None:
    scale = brain_scale(sources.brain("01"), small)
    template = small.brain.sum() * 5.0**3
    assert scale**3 * 4 / 3 * np.pi * 60**3 == pytest.approx(template, rel=0.01)


def test_lesions_are_scaled_about_the_centre_and_leave_fluid_free(
    sources: OpenMS, small: Anatomy
) -> None:
    scale = brain_scale(sources.brain("12"), small)
    # without fluid the whole lesion is seen
    solid = replace(small, wm=small.wm + small.csf, csf=np.zeros_like(small.csf))
    coverage = lesion_coverage(sources, "12", solid)
    outlined = nib.load(sources.lesions("12")).get_fdata().sum()
    assert coverage.sum() * 5**3 == pytest.approx(scale**3 * outlined, rel=0.01)
    middle = coverage.reshape(-1) @ small.grid.points() / coverage.sum()
    expected = small.centre + scale * (np.array([26.0, -20.0, 25.0]) - small.centre)
    np.testing.assert_allclose(middle, expected, atol=0.2)
    assert (lesion_coverage(sources, "12", small) <= 1 - small.csf + 1e-6).all()


@pytest.mark.parametrize("kind", ["lesions", "brain"])
def test_a_broken_mask_is_named(kind: str, sources: OpenMS, small: Anatomy, tmp_path: Path) -> None:
    broken = OpenMS(tmp_path)
    (tmp_path / "open_ms").mkdir()
    for path in (sources.lesions("01"), sources.brain("01")):
        shutil.copy(path, tmp_path / "open_ms")
    path = getattr(broken, kind)("01")
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises((SimulationError, DWIError), match=f"{path.name}: truncated"):
        write_cohort(tmp_path / "out", broken, TABLE, anatomy=small, progress=False)


def test_a_broken_template_is_named(sources: OpenMS, tmp_path: Path) -> None:
    path = tmp_path / "broken.fib.gz"
    path.write_bytes(sources.fibres.read_bytes()[:-500])
    with pytest.raises(DatasetError, match=r"broken\.fib\.gz: cannot be read"):
        read_fibres(path)


def test_a_file_of_another_kind_is_no_template(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "other.fib.gz", "wb") as file:
        savemat(file, {"dimension": np.int32([[2, 2, 2]])}, format="4")
    with pytest.raises(DatasetError, match=r"other\.fib\.gz: not a fibre template"):
        read_fibres(tmp_path / "other.fib.gz")


# -- files ---------------------------------------------------------------------------------------


def test_names_are_those_of_bids(cohort: Path) -> None:
    subject = ["dwi.bval", "dwi.bvec", "dwi.json", "dwi.nii.gz"]
    truth = ["desc-brain_mask", "label-lesion_mask", "label-lesion_probseg"]
    expected = {"README", "dataset_description.json", "participants.json", "participants.tsv"}
    expected.add("derivatives/truth/dataset_description.json")
    for name in ("sub-01", "sub-12"):
        expected.update(f"{name}/dwi/{name}_{ending}" for ending in subject)
        expected.update(f"derivatives/truth/{name}/dwi/{name}_{e}.nii.gz" for e in truth)
    assert set(contents(cohort)) == expected


def test_every_cohort_says_that_it_is_simulated_and_under_which_licences(cohort: Path) -> None:
    readme = (cohort / "README").read_text()
    description = json.loads((cohort / "dataset_description.json").read_text())
    assert "SIMULATED" in readme
    assert "SIMULATED" in description["Name"]
    for licence in LICENCES:
        assert str(licence) in readme
        assert licence.name in description["License"]
    header, first, second = (
        line.split("\t") for line in (cohort / "participants.tsv").read_text().splitlines()
    )
    assert dict(zip(header, first, strict=True))["participant_id"] == "sub-01"
    assert dict(zip(header, first, strict=True))["age"] == "31"
    assert dict(zip(header, second, strict=True))["edss"] == "n/a"
    assert header[1:] == list(json.loads((cohort / "participants.json").read_text()))


def test_every_head_is_of_its_own_shape_and_pose(cohort: Path) -> None:
    sidecars = [json.loads(path.read_text()) for path in sorted(cohort.glob("sub-*/dwi/*.json"))]
    first, second = (sidecar.pop("Simulation") for sidecar in sidecars)
    assert first.pop("SubjectSeed") != second.pop("SubjectSeed")
    assert first == second
    assert all("SIMULATED" in sidecar["Description"] for sidecar in sidecars)


def test_what_is_written_is_read_back(cohort: Path) -> None:
    subjects = load_cohort(cohort)
    assert [subject.name for subject in subjects] == ["sub-01", "sub-12"]
    for subject in subjects:
        assert subject.dwi.signal.shape == (len(subject.lesion), 7)
        assert subject.lesion.sum() >= 5
        assert not subject.dwi.notes
        np.testing.assert_allclose(subject.dwi.q[1:], TABLE.directions[1:], atol=1e-6)
    left, right = (s.dwi.voxel_centres()[s.lesion].mean(axis=0)[0] for s in subjects)
    assert left < -10
    assert right > 10
    chosen = load_cohort(cohort, ["sub-12"])
    np.testing.assert_array_equal(chosen[0].dwi.signal, subjects[1].dwi.signal)


def test_a_cohort_can_be_trained_on(cohort: Path) -> None:
    from tripq.tasks.lesions.task import LesionTask
    from tripq.training import PatchDataModule

    batch = next(
        iter(PatchDataModule(load_cohort(cohort), LesionTask(), radius=7.0, box_size=4).patches)
    )
    assert batch.signal.shape == (len(batch.target), 7)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    sources: OpenMS, small: Anatomy, cohort: Path, tmp_path: Path
) -> None:
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        write_cohort(
            folder, sources, TABLE, anatomy=small, patients=["12"], seed=seed, progress=False
        )
    part, whole = contents(tmp_path / "0"), contents(cohort)
    of_subject = {name for name in whole if "sub-12" in name}
    assert {name: part.get(name) for name in of_subject} == {
        name: whole[name] for name in of_subject
    }
    scan = "sub-12/dwi/sub-12_dwi.nii.gz"
    assert contents(tmp_path / "1")[scan] != whole[scan]


def test_another_pose_is_the_same_head_turned_and_tables_turn_by_themselves(
    sources: OpenMS, small: Anatomy, cohort: Path, tmp_path: Path
) -> None:
    write_cohort(
        tmp_path, sources, TABLE, anatomy=small, max_rotation=180, pose=1, turn_tables=True,
        progress=False,
    )  # fmt: skip
    for before, after in zip(load_cohort(cohort), load_cohort(tmp_path), strict=True):
        # The lesion is a ball off the centre: it keeps its size and its distance, not its place.
        radius = {}
        for key, subject in (("before", before), ("after", after)):
            centres = subject.dwi.voxel_centres()
            place = centres[subject.lesion].mean(axis=0) - centres.mean(axis=0)
            radius[key] = np.linalg.norm(place)
            radius[f"{key} place"] = place
        assert abs(radius["before"] - radius["after"]) < 6.0  # mm; voxels have 5
        # In the same pose it would not move at all.
        assert np.linalg.norm(radius["before place"] - radius["after place"]) > 1.0
        assert 0.5 < after.lesion.sum() / before.lesion.sum() < 2.0

        old, new = before.dwi.q[1:], after.dwi.q[1:]
        np.testing.assert_allclose(new @ new.T, old @ old.T, atol=1e-5)  # turned as a whole
        assert np.abs(new - old).max() > 0.1
    turned = [subject.dwi.q for subject in load_cohort(tmp_path)]
    assert np.abs(turned[0] - turned[1]).max() > 0.1


def test_an_interrupted_cohort_is_completed_and_nothing_repeated(
    sources: OpenMS,
    small: Anatomy,
    cohort: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def write(patients: tuple[str, ...] = ("01", "12")) -> list[str]:
        return write_cohort(
            tmp_path, sources, TABLE, anatomy=small, patients=patients, progress=False
        )

    write_participants = layout_module.Layout.write_participants
    write(("01",))
    monkeypatch.setattr(layout_module, "write_json", interrupted)  # in the middle of the second
    with pytest.raises(KeyboardInterrupt):
        write()
    monkeypatch.undo()
    assert [subject.name for subject in load_cohort(tmp_path)] == ["sub-01"]
    first = tmp_path / "sub-01/dwi/sub-01_dwi.nii.gz"
    written = first.stat().st_mtime_ns
    # behind the second
    monkeypatch.setattr(layout_module.Layout, "write_participants", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(("12",))
    monkeypatch.setattr(cohort_module, "simulate_subject", interrupted)  # not called any more
    monkeypatch.setattr(layout_module.Layout, "write_participants", write_participants)
    assert write() == ["sub-01", "sub-12"]
    assert first.stat().st_mtime_ns == written
    assert contents(tmp_path) == contents(cohort)


def test_a_cohort_of_other_settings_is_not_continued(
    sources: OpenMS, small: Anatomy, cohort: Path
) -> None:
    with pytest.raises(DatasetError, match=r"other settings: SNR is 20\.0, not 30\.0"):
        write_cohort(cohort, sources, TABLE, anatomy=small, snr=30.0, progress=False)
    other = GradientTable.from_shells([2000.0], [6])
    with pytest.raises(DatasetError, match="GradientTable is"):
        write_cohort(cohort, sources, other, anatomy=small, progress=False)
    with pytest.raises(DatasetError, match="Seed is 0, not 3"):
        write_cohort(cohort, sources, TABLE, anatomy=small, seed=3, progress=False)


def test_randomised_heads_say_what_was_drawn(
    sources: OpenMS, small: Anatomy, cohort: Path, tmp_path: Path
) -> None:
    randomisation = Randomisation(lost=(0.1, 0.1))

    def write(folder: Path, pose: int = 0) -> dict[str, bytes]:
        write_cohort(
            folder, sources, TABLE, anatomy=small, pose=pose, randomisation=randomisation,
            progress=False,
        )  # fmt: skip
        return contents(folder)

    first, again, posed = write(tmp_path / "1"), write(tmp_path / "2"), write(tmp_path / "3", 1)
    assert first == again
    sidecars = [
        json.loads(files[f"sub-{patient}/dwi/sub-{patient}_dwi.json"])["Simulation"]
        for files, patient in ((first, "01"), (first, "12"), (posed, "01"))
    ]
    assert len({sidecar["Drawn"]["snr"] for sidecar in sidecars}) == 3
    assert len({sidecar["SubjectSeed"] for sidecar in sidecars}) == 2  # one head, posed twice
    for sidecar in sidecars:
        assert "SNR" not in sidecar
        assert sidecar["Randomisation"]["lost"] == [0.1, 0.1]
        assert sidecar["LostVolumes"] == []  # six directions are too few to lose one
        assert sidecar["Drawn"]["artefacts"].keys() >= {"ghost", "distortion", "mask_offset"}
    for name in ("sub-01", "sub-12"):
        assert load_subject(tmp_path / "1", name).lesion.any()
    with pytest.raises(DatasetError, match=r"Randomisation is None, not \{"):
        write_cohort(
            cohort, sources, TABLE, anatomy=small, randomisation=randomisation, progress=False
        )
    with pytest.raises(DatasetError, match=r"Randomisation is \{.*, not None"):
        write_cohort(tmp_path / "1", sources, TABLE, anatomy=small, progress=False)


def test_other_folders_and_patients_are_refused(
    sources: OpenMS, small: Anatomy, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match="no lesions of patient 02"):
        write_cohort(tmp_path, sources, TABLE, anatomy=small, patients=["02"], progress=False)
    with pytest.raises(DatasetError, match="no subject of a cohort"):
        load_cohort(tmp_path)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(DatasetError, match="contains other files: choose an empty folder"):
        write_cohort(tmp_path, sources, TABLE, anatomy=small, progress=False)
    (tmp_path / "dataset_description.json").write_text('{"Name": "real scans"}')
    with pytest.raises(DatasetError, match="not the description of a simulated cohort"):
        write_cohort(tmp_path, sources, TABLE, anatomy=small, progress=False)


def test_a_missing_file_of_a_subject_is_named(cohort: Path) -> None:
    with pytest.raises(DWIError, match=r"sub-99_dwi\.nii\.gz"):
        load_subject(cohort, "sub-99")


def test_a_real_patient(shared_data: Path, tmp_path: Path) -> None:
    """The scale and the size of the lesions are those that were found when the data were made."""
    folder = shared_data / "ms_cohort"
    sources = open_ms(local=folder / "sources", accept_licences=True)
    anatomy = cohort_anatomy(sources.fibres, 4.0)
    rows = json.loads((folder / "derived_2mm/lesions.json").read_text())
    known = {row["patient"]: row for row in rows}
    assert set(sources.patients) == set(known)
    by_name = {source.name: source.sha256 for source in SOURCES}
    for path in (sources.fibres, sources.lesions("06"), sources.brain("06")):
        name = path.relative_to(sources.folder).as_posix()
        assert hashlib.sha256(path.read_bytes()).hexdigest() == by_name[name]
    assert brain_scale(sources.brain("06"), anatomy) == pytest.approx(
        known["06"]["scale"], abs=2e-3
    )
    # a little more than in the ready-made files, from which more of the cortex was taken out
    ready = nib.load(folder / "derived_2mm/patient06_lesion.nii.gz").get_fdata() / 255
    coverage = lesion_coverage(sources, "06", anatomy)
    assert coverage.sum() * 4**3 == pytest.approx(ready.sum() * 2**3, rel=0.06)
    peaks, _ = read_fibres(sources.fibres)
    shipped = nib.load(folder / "derived_2mm/anatomy_peaks.nii.gz").get_fdata()
    np.testing.assert_allclose(peaks.reshape(shipped.shape), shipped, atol=1e-4)

    write_cohort(tmp_path, sources, TABLE, anatomy=anatomy, patients=["06"], progress=False)
    (subject,) = load_cohort(tmp_path)
    assert subject.lesion.sum() > 300
    posed = nib.load(
        tmp_path / cohort_module.TRUTH / "sub-06/dwi/sub-06_label-lesion_probseg.nii.gz"
    )
    assert posed.get_fdata().sum() == pytest.approx(coverage.sum(), rel=0.06)
