"""The lesions of a BIDS dataset: named by the rules, begun once, and no scan stops the others."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import tempfile
from importlib import import_module
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.commands.conftest import Call, Outcome, write_mask, write_scan, write_weights
from tripq import __version__
from tripq.commands import applying, segmenting
from tripq.commands.derivatives import Row
from tripq.commands.segment_bids import Sparingly
from tripq.scans.bids import BIDSScan

app = import_module("tripq.commands.segment_bids")  # the package has a function of this name

SCANS = (
    "sub-01/dwi/sub-01_dwi.nii.gz",
    "sub-02/ses-a/dwi/sub-02_ses-a_dwi.nii.gz",
    "sub-02/ses-b/dwi/sub-02_ses-b_run-1_dwi.nii.gz",
)
RESULTS = (
    "sub-01/dwi/sub-01_space-orig_label-lesion",
    "sub-02/ses-a/dwi/sub-02_ses-a_space-orig_label-lesion",
    "sub-02/ses-b/dwi/sub-02_ses-b_run-1_space-orig_label-lesion",
)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Three scans; the second inherits its b-values from the root."""
    for scan in SCANS:
        write_scan(tmp_path / "raw" / scan)
    own = tmp_path / "raw/sub-02/ses-a/dwi/sub-02_ses-a_dwi.bval"
    own.rename(tmp_path / "raw/sub-02_ses-a_dwi.bval")
    return tmp_path / "raw"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def segment_all(call: Call, raw: Path, out: Path, weights: Path):
    def run(*more: object, level: str = "participant") -> Outcome:
        return call("segment-bids", raw, out, level, "--weights", weights, *more)

    return run


def summary(out: Path) -> dict[str, dict[str, str]]:
    with (out / "summary.tsv").open(newline="") as file:
        return {row["scan"]: row for row in csv.DictReader(file, delimiter="\t")}


def written(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("sub-*") if path.is_file()}


def test_every_scan_has_its_results_by_the_rules_of_derivatives(
    segment_all, raw: Path, out: Path
) -> None:
    done = segment_all()
    assert done.status == 0, done.stderr
    for result in RESULTS:
        names = {f"{result}_{end}" for end in ("probseg.nii.gz", "mask.nii.gz", "probseg.json")}
        assert names <= written(out)
    about = json.loads((out / "dataset_description.json").read_text())
    assert about["DatasetType"] == "derivative"
    assert about["GeneratedBy"][0]["Name"] == "tripq"
    sidecar = json.loads((out / f"{RESULTS[1]}_probseg.json").read_text())
    assert sidecar["Sources"] == [
        f"bids:raw:{SCANS[1]}",
        "bids:raw:sub-02_ses-a_dwi.bval",
        "bids:raw:sub-02/ses-a/dwi/sub-02_ses-a_dwi.bvec",
    ]
    rows = summary(out)
    assert tuple(rows) == SCANS
    assert {row["status"] for row in rows.values()} == {"done"}
    assert rows[SCANS[1]]["session_id"] == "ses-a"
    assert float(rows[SCANS[0]]["volume_ml"]) == pytest.approx(
        json.loads((out / f"{RESULTS[0]}_probseg.json").read_text())["LesionVolumeMillilitres"]
    )


def test_it_goes_on_where_it_stopped(quick: None, segment_all, out: Path) -> None:
    segment_all()
    times = {name: (out / name).stat().st_mtime_ns for name in written(out)}
    (out / f"{RESULTS[1]}_probseg.json").unlink()  # as if interrupted before the end
    done = segment_all()
    assert done.status == 0
    again = {name for name in written(out) if (out / name).stat().st_mtime_ns != times.get(name)}
    assert again
    assert all(name.startswith(RESULTS[1]) for name in again)
    assert [row["status"] for row in summary(out).values()] == [
        "there already",
        "done",
        "there already",
    ]


def test_one_bad_scan_is_reported_and_does_not_stop_the_rest(
    quick: None, segment_all, raw: Path, out: Path
) -> None:
    (raw / SCANS[0]).write_bytes(b"no image")
    (raw / "sub-02_ses-a_dwi.bval").unlink()
    done = segment_all()
    assert done.status == 1
    rows = summary(out)
    assert [row["status"] for row in rows.values()] == ["failed", "failed", "done"]
    assert "sub-01_dwi.nii.gz: cannot be read as NIfTI" in rows[SCANS[0]]["reason"]
    assert "no .bval file applies to this scan" in rows[SCANS[1]]["reason"]
    assert "sub-01_dwi.nii.gz: cannot be read as NIfTI" in done.stdout
    assert done.stdout.count(SCANS[0]) == 2  # in the table, and before the reason
    assert not any("sub-01" in name for name in written(out))


def test_even_a_mistake_in_the_program_does_not_stop_the_rest(
    quick: None, segment_all, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_scan = applying.read_scan

    def broken(files, *others):
        if "sub-01" in files.scan.name:
            raise KeyError("made up")
        return read_scan(files, *others)

    monkeypatch.setattr(applying, "read_scan", broken)
    done = segment_all("--log", tmp_path / "log.txt")
    assert done.status == 1
    assert [row["status"] for row in summary(out).values()] == ["failed", "done", "done"]
    assert "please report it" in done.stderr
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def test_an_interruption_keeps_what_is_finished_and_leaves_nothing_else(
    quick: None, segment_all, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_map = segmenting.write_map

    def interrupted(values, dwi, path):
        write_map(values, dwi, path)
        if "ses-a" in path.name:
            raise KeyboardInterrupt

    monkeypatch.setattr(segmenting, "write_map", interrupted)
    done = segment_all()
    assert done.status == 130
    assert {name.rpartition("_")[0] for name in written(out)} == {RESULTS[0]}
    assert [path.name for path in out.rglob(".*")] == [".bidsignore"]
    assert list(summary(out)) == list(SCANS[:1])
    monkeypatch.setattr(segmenting, "write_map", write_map)
    assert segment_all().status == 0
    assert [row["status"] for row in summary(out).values()] == ["there already", "done", "done"]


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(app, "perf_counter", lambda: self.now)

    def spend(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("of_a_row", [1e-6, 1e-3, 1.0])
def test_what_grows_with_the_scans_takes_a_hundredth_of_the_time(
    of_a_row: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, sparingly, spent = Clock(monkeypatch), Sparingly(), [0.0]

    def write(rows: int) -> None:
        clock.spend(of_a_row * rows)
        spent.append(of_a_row * rows)

    for number in range(1, 2000):
        clock.spend(1.0)
        sparingly(lambda: write(number))  # noqa: B023  # called before the next turn
    assert sum(spent[:-1]) <= 0.01 * clock.now
    if of_a_row * 2000 < 1 / 99:  # as long as it costs nothing, nothing is left out
        assert len(spent) == 2000


@pytest.mark.parametrize("ends", ["by itself", "by Ctrl-C", "by a full disk"])
def test_the_summary_is_written_in_linear_time_and_is_whole_at_the_end(
    ends: str, call: Call, out: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (raw := tmp_path / "raw").mkdir()
    names = [f"sub-{n:04}/dwi/sub-{n:04}_dwi.nii.gz" for n in range(400)]
    clock, written = Clock(monkeypatch), [0]
    write_summary = app.write_summary

    def segment_one(scan: BIDSScan, *_: object) -> Row:
        if scan.subject == "0399" and ends != "by itself":
            raise KeyboardInterrupt if ends == "by Ctrl-C" else OSError(errno.ENOSPC, "full")
        return Row(f"sub-{scan.subject}", "n/a", scan.relative.as_posix(), "done", "1", "0.5", "1")

    def write(path: Path, rows: list[Row]) -> None:
        write_summary(path, rows)
        clock.spend(len(rows))
        written.append(len(rows))

    monkeypatch.setattr(app, "find_scans", lambda *_: [BIDSScan(raw, raw / n) for n in names])
    monkeypatch.setattr(app, "_segment_one", segment_one)
    monkeypatch.setattr(app, "write_summary", write)
    done = call("segment-bids", raw, out, "participant", "--weights", weights, "--quiet")
    assert done.status == {"by itself": 0, "by Ctrl-C": 130, "by a full disk": 1}[ends]
    assert list(summary(out)) == (names if ends == "by itself" else names[:-1])
    assert sum(written) < 2 * len(names)


def test_participants_and_sessions_are_chosen_as_in_bids_apps(
    quick: None, segment_all, out: Path
) -> None:
    def done() -> set[str]:
        return {name.rpartition("_")[0] for name in written(out)}

    assert segment_all("--participant-label", "sub-02", "01", "--session-label", "b").status == 0
    assert done() == {RESULTS[2]}
    assert segment_all("--participant_label", "01").status == 0
    assert done() == {RESULTS[0], RESULTS[2]}
    missing = segment_all("--participant-label", "07")
    assert missing.status == 1
    assert "no diffusion scan of participant 07; there are 01, 02." in missing.error


def test_scans_for_distortion_correction_are_left_out(
    quick: None, segment_all, raw: Path, out: Path
) -> None:
    write_scan(raw / "sub-01/dwi/sub-01_dir-PA_dwi.nii.gz", b_values=(0, 0, 5))
    assert segment_all().status == 0
    row = summary(out)["sub-01/dwi/sub-01_dir-PA_dwi.nii.gz"]
    assert (row["status"], row["reason"]) == ("left out", "no diffusion-weighted volume")


def test_brain_masks_of_derivatives_are_used(
    segment_all, raw: Path, out: Path, tmp_path: Path
) -> None:
    masks = tmp_path / "masks"
    name = "sub-01/dwi/sub-01_desc-brain_mask.nii.gz"
    write_mask(masks / name, raw / SCANS[0])
    done = segment_all("--masks", masks)
    assert done.status == 1
    assert [row["status"] for row in summary(out).values()] == ["done", "failed", "failed"]
    about = json.loads((out / f"{RESULTS[0]}_probseg.json").read_text())
    assert about["BrainMask"] == "given"
    assert about["Inputs"]["BrainMask"]["Name"] == Path(name).name
    assert "no *_desc-brain_mask.nii.gz" in summary(out)[SCANS[1]]["reason"]


def test_results_of_other_settings_are_neither_kept_nor_replaced_silently(
    segment_all, out: Path, tmp_path: Path
) -> None:
    only = ("--participant-label", "01")
    segment_all(*only)
    before = (out / f"{RESULTS[0]}_probseg.json").read_bytes()
    done = segment_all("--threshold", 0.3, *only)
    assert done.status == 1
    assert "made with other settings (Threshold)" in done.error
    assert "(Shells)" in segment_all("--shell", 1000, *only).error
    other = write_weights(tmp_path / "tiny.safetensors", caution="another file")
    assert "(Weights)" in segment_all("--weights", other, *only).error
    assert (out / f"{RESULTS[0]}_probseg.json").read_bytes() == before
    assert segment_all("--overwrite", "--threshold", 0.3, *only).status == 0
    assert json.loads((out / f"{RESULTS[0]}_probseg.json").read_text())["Threshold"] == 0.3


def test_the_results_are_a_dataset_of_their_own(
    call: Call, segment_all, raw: Path, out: Path, weights: Path
) -> None:
    inside = call("segment-bids", raw, raw, "participant", "--weights", weights)
    assert inside.status == 2
    (out / "dataset_description.json").parent.mkdir()
    (out / "dataset_description.json").write_text('{"GeneratedBy": [{"Name": "fMRIPrep"}]}')
    refused = segment_all()
    assert refused.status == 1
    assert "a dataset of fMRIPrep: choose another folder" in refused.error


@pytest.mark.parametrize("words", [("01",), ("group", "--participant-label", "01")])
def test_another_level_is_bad_usage(
    words: tuple[str, ...], call: Call, raw: Path, out: Path
) -> None:
    assert call("segment-bids", raw, out, *words).status == 2


def test_a_scan_gives_the_same_map_as_by_itself(
    call: Call, segment_all, raw: Path, out: Path, weights: Path, tmp_path: Path
) -> None:
    segment_all("--participant-label", "01")
    call("segment", raw / SCANS[0], "--weights", weights, "-o", tmp_path / "one")
    first, second = (
        np.asarray(nib.load(path).dataobj)
        for path in (
            out / f"{RESULTS[0]}_probseg.nii.gz",
            tmp_path / "one/sub-01_label-lesion_probseg.nii.gz",
        )
    )
    np.testing.assert_array_equal(first, second)


HOSTILE = ("<script>alert(1)<", "x\n\x1b[2Jerror: y", "'\"&`$;|", "[red]", "\udcff", "..")


def test_names_of_files_are_words_wherever_they_are_shown(
    call: Call, weights: Path, out: Path, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    for label in HOSTILE:
        write_scan(raw / f"sub-{label}" / "dwi" / f"sub-{label.replace('.', '')}_dwi.nii.gz")
    log = tmp_path / "log.txt"
    arguments = ("segment-bids", raw, out, "participant", "--weights", weights, "--log", log)
    (raw / f"sub-{HOSTILE[1]}" / "dwi" / f"sub-{HOSTILE[1]}_dwi.bvec").write_text("no table")
    done = call(*arguments)
    assert done.status == 1
    assert done.error.startswith("error: ")
    table = (out / "summary.tsv").read_text(encoding="utf-8")
    for text in (done.stdout, done.stderr, log.read_text(encoding="utf-8"), table):
        assert "\x1b" not in text
        assert not any(line.startswith("error: y") or "\r" in line for line in text.splitlines())
    assert sorted(row["status"] for row in summary(out).values()) == ["done"] * 5 + ["failed"]
    assert len(table.splitlines()) == 1 + len(HOSTILE)
    for page in out.rglob("*.html"):
        assert "<script>alert" not in page.read_text(encoding="utf-8")
    assert {path.relative_to(out).parts[0] for path in out.rglob("*_probseg.json")} <= {
        f"sub-{label}" for label in HOSTILE
    }
    again = call(*arguments)
    assert again.status == 1
    assert len(summary(out)) == len(HOSTILE)
    assert [row["status"] for row in summary(out).values()].count("there already") == 5


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (f"{RESULTS[0]}_probseg.json", b"[" * 100_000, "(a sidecar that cannot be read)"),
        (f"{RESULTS[0]}_probseg.json", b"[1]", "(a sidecar that cannot be read)"),
        ("dataset_description.json", b"\xff", "a dataset of something else"),
    ],
)
def test_damaged_results_are_named(
    name: str, content: bytes, reason: str, quick: None, segment_all, out: Path
) -> None:
    only = ("--participant-label", "01")
    segment_all(*only)
    (out / name).write_bytes(content)
    done = segment_all(*only)
    assert done.status == 1
    assert reason in done.error
    assert (out / name).read_bytes() == content


def test_results_of_a_version_without_a_minimum_volume_are_used_again(
    quick: None, segment_all, raw: Path, out: Path
) -> None:
    segment_all()
    sidecar = out / f"{RESULTS[0]}_probseg.json"
    about = json.loads(sidecar.read_text())
    assert about.pop("MinVolumeMillilitres") == 0
    sidecar.write_text(json.dumps(about))
    assert segment_all().status == 0
    assert {row["status"] for row in summary(out).values()} == {"there already"}
    done = segment_all("--min-volume", 0.05)
    assert done.status == 1
    assert "made with other settings (MinVolumeMillilitres)" in done.stderr


def test_what_is_known_of_healthy_heads_is_shown_with_the_table_and_on_the_page(
    quick: None, call: Call, raw: Path, out: Path, tmp_path: Path
) -> None:
    sentence = "On 15 scans it marked <0.05 ml."
    weights = write_weights(tmp_path / "healthy.safetensors", healthy_heads=sentence)
    done = call("segment-bids", raw, out, "participant", "--weights", weights)
    assert "candidates" in done.stdout
    assert sentence in done.stdout
    for _ in range(2):
        page = (out / "report.html").read_text()
        assert page.count("On 15 scans it marked &lt;0.05 ml.") == 1
        assert call("segment-bids", raw, out, "group").status == 0


NO_NUMBERS = [
    *(("LesionCount", value) for value in ("many", -1, None, [1], True, "3", 2.5)),
    *(("LesionCount", value) for value in (10**300, float("inf"))),
    *(("LesionVolumeMillilitres", value) for value in ("much", "1", False, 1e300)),
    *(("LesionVolumeMillilitres", value) for value in (float("nan"), float("inf"))),
]


@pytest.mark.parametrize(("key", "value"), NO_NUMBERS)
def test_a_sidecar_that_does_not_tell_the_lesions_is_named_and_the_rest_goes_on(
    key: str, value: object, quick: None, segment_all, raw: Path, out: Path
) -> None:
    segment_all()
    sidecar = out / f"{RESULTS[0]}_probseg.json"
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), key: value}))
    done = segment_all()
    assert done.status == 1
    assert str(sidecar) in done.error
    assert "--overwrite" in done.error
    statuses = ["failed", "there already", "there already"]
    assert [row["status"] for row in summary(out).values()] == statuses
    gathered = segment_all(level="group")
    assert gathered.status == 1
    assert str(sidecar) in gathered.error
    assert [row["status"] for row in summary(out).values()] == statuses


@pytest.mark.parametrize(
    "line", [b"sub-01", b'"open', b"a\0b", b"a\rb\tc", b"\xff\xfe", b"x" * 200_000]
)
def test_a_broken_summary_is_made_anew(line: bytes, quick: None, segment_all, out: Path) -> None:
    header = b"participant_id\tsession_id\tscan\tstatus\tlesions\tvolume_ml\tseconds\treason\n"
    out.mkdir()
    (out / "summary.tsv").write_bytes(header + line + b"\n")
    assert segment_all().status == 0
    assert [row["status"] for row in summary(out).values()] == ["done"] * 3


NAMESAKES = [
    ("sub-01_dwi.nii", "sub-01_dwi.nii.gz"),
    ("sub-01_dwi.nii.gz", "sub-01_space-orig_dwi.nii.gz"),
    ("sub-01_acq-a_run-1_dwi.nii.gz", "sub-01_run-1_acq-a_dwi.nii.gz"),
    ("sub-01_label-a_dwi.nii.gz", "sub-01_label-b_dwi.nii.gz"),
    ("sub-01_dwi.nii.gz", "sub-01_foo_dwi.nii.gz"),
]


@pytest.mark.parametrize("names", NAMESAKES)
def test_scans_whose_results_would_have_one_name_are_refused(
    names: tuple[str, str], quick: None, call: Call, weights: Path, out: Path, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    for number, name in enumerate(names):
        write_scan(raw / "sub-01/dwi" / name, b_values=(0, *(7 + number) * (1000,)))
    write_scan(raw / SCANS[1])
    refused = {f"sub-01/dwi/{name}" for name in names}
    for level in ("participant", "group"):
        done = call("segment-bids", raw, out, level, "--weights", weights)
        assert done.status == 1
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert {str(raw / place) for place in refused} == {line.split(": ")[1] for line in errors}
        rows = summary(out)
        assert {place for place, row in rows.items() if row["status"] == "failed"} == refused
        assert names[1] in rows[f"sub-01/dwi/{names[0]}"]["reason"]
        assert set(rows) == refused | {SCANS[1]}
        assert all(name.startswith(RESULTS[1]) for name in written(out))


def test_a_scan_is_done_again_when_a_file_has_changed_that_it_was_made_from(
    quick: None, segment_all, raw: Path, out: Path, tmp_path: Path
) -> None:
    masks = tmp_path / "masks"
    files = [
        write_mask(masks / scan.replace("_dwi.nii", "_desc-brain_mask.nii"), raw / scan)
        for scan in SCANS
    ]

    def again(*more: object) -> tuple[list[str], list[str]]:
        done = segment_all(*more)
        assert done.status == 0, done.stderr
        rows = [*summary(out).values()]
        for row, scan in zip(rows, SCANS, strict=True):
            assert (f"{raw / scan}: segmented again" in done.stderr) == (
                row["status"] == "done again"
            )
        return [row["status"] for row in rows], [row["reason"] for row in rows]

    there, none = "there already", "n/a"
    assert again("--masks", masks)[0] == ["done"] * 3
    assert again("--masks", masks) == ([there] * 3, [none] * 3)
    image = nib.load(files[0])
    smaller = np.asarray(image.dataobj).copy()
    smaller[: smaller.shape[0] // 2] = 0
    nib.Nifti1Image(smaller, image.affine).to_filename(files[0])
    status, reason = again("--masks", masks)
    assert status == ["done again", there, there]
    assert reason[0] == "changed: BrainMask"
    probability = nib.load(out / f"{RESULTS[0]}_probseg.nii.gz").get_fdata()
    assert not probability[smaller == 0].any()
    assert again("--masks", masks)[0] == [there] * 3
    write_scan(raw / SCANS[2], b_values=(0, *8 * (1000,)))
    assert again("--masks", masks)[1] == [none, none, "changed: Scan, BVal, BVec"]
    assert again() == (["done again"] * 3, ["changed: BrainMask"] * 3)
    assert again()[0] == [there] * 3


def test_the_group_level_gathers_what_the_jobs_of_participants_have_done(
    quick: None, segment_all, out: Path, tmp_path: Path
) -> None:
    for label in ("01", "02"):
        assert segment_all("--participant-label", label).status == 0
        assert not list(out.glob("*.html")) + list(out.glob("*.tsv"))
    assert segment_all(level="group").status == 0
    rows = summary(out)
    assert [row["status"] for row in rows.values()] == ["there already"] * 3
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(f"{result}_report.html" in page for result in RESULTS)
    assert "tiny.safetensors" in page
    segment_all("--participant-label", "01", "--overwrite")
    assert (out / "report.html").read_text(encoding="utf-8") == page
    assert summary(out) == rows
    assert segment_all().status == 0
    whole = summary(out)
    assert whole == rows


def test_the_group_level_says_what_is_missing_and_where_settings_differ(
    quick: None, segment_all, raw: Path, out: Path
) -> None:
    nothing = segment_all(level="group")
    assert nothing.status == 1
    assert nothing.error.endswith("no such folder; the level 'participant' creates it.")
    write_scan(raw / "sub-03/dwi/sub-03_dwi.nii.gz", b_values=(0, 0, 5))
    (raw / "sub-02_ses-a_dwi.bval").unlink()
    segment_all("--participant-label", "01")
    done = segment_all(level="group")
    assert done.status == 1
    rows = [*summary(out).values()]
    assert [row["status"] for row in rows] == ["there already", "failed", "failed", "left out"]
    assert "no .bval file applies to this scan" in rows[1]["reason"]
    assert rows[2]["reason"].startswith("no result: run the level 'participant'")
    assert "different settings" not in (out / "report.html").read_text(encoding="utf-8")
    segment_all("--participant-label", "02", "--session-label", "b", "--shell", 1000)
    segment_all(level="group")
    assert "different settings (Shells)" in (out / "report.html").read_text(encoding="utf-8")


def test_results_of_scans_that_are_not_in_the_dataset_are_listed_too(
    quick: None, segment_all, raw: Path, out: Path
) -> None:
    """Jobs may each see one participant."""
    segment_all()
    shutil.rmtree(raw / "sub-01")
    for level in ("participant", "group"):
        assert segment_all(level=level).status == 0
        assert tuple(summary(out)) == SCANS
        assert f"{RESULTS[0]}_report.html" in (out / "report.html").read_text(encoding="utf-8")
    (out / f"{RESULTS[0]}_mask.nii.gz").unlink()  # as if interrupted before the end
    for level in ("participant", "group"):
        assert segment_all(level=level).status == 0
        assert tuple(summary(out)) == SCANS[1:]
    sidecar = out / f"{RESULTS[0]}_probseg.json"
    sidecar.write_text("[]")
    done = segment_all(level="group")
    assert done.status == 0
    assert f"caution: {sidecar}: left out" in done.stderr


def test_a_brain_mask_beside_a_scan_is_used_and_this_is_said(
    quick: None, segment_all, raw: Path, out: Path
) -> None:
    name = "sub-01_desc-brain_mask.nii.gz"
    write_mask(raw / "sub-01/dwi" / name, raw / SCANS[0])
    done = segment_all()
    assert done.status == 0
    assert f"sub-01_dwi.nii.gz: brain mask beside it: {name}." in done.stderr
    assert done.stderr.count("brain mask beside it") == 1
    about = json.loads((out / f"{RESULTS[0]}_probseg.json").read_text())
    assert about["Inputs"]["BrainMask"]["Name"] == name
    assert about["Sources"][-1] == f"bids:raw:sub-01/dwi/{name}"


def test_masks_are_a_path_from_here_or_from_the_dataset(
    quick: None, segment_all, raw: Path, out: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    only = ("--participant-label", "01", "--masks", "derivatives/qsiprep", "--overwrite")
    place = f"derivatives/qsiprep/{SCANS[0].replace('_dwi.nii', '_desc-brain_mask.nii')}"
    (here := tmp_path / "here").mkdir()
    monkeypatch.chdir(here)
    missing = segment_all(*only)
    assert missing.status == 1
    assert f"no such folder, neither here nor in {raw}" in missing.error
    write_mask(raw / place, raw / SCANS[0])
    assert segment_all(*only).status == 0
    write_mask(here / place, raw / SCANS[0])
    several = segment_all(*only)
    assert several.status == 1
    assert f"{raw}/derivatives/qsiprep and {here}/derivatives/qsiprep" in several.error
    shutil.rmtree(raw / "derivatives")
    assert segment_all(*only).status == 0


def test_tables_of_mrtrix_are_read_in_world_axes(
    quick: None, segment_all, raw: Path, out: Path
) -> None:
    stem = str(raw / SCANS[0]).removesuffix(".nii.gz")
    table = np.c_[np.loadtxt(f"{stem}.bvec").T, np.loadtxt(f"{stem}.bval")]
    np.savetxt(f"{stem}.b", table)
    only = ("--participant-label", "01")
    assert segment_all(*only).status == 0
    about = json.loads((out / f"{RESULTS[0]}_probseg.json").read_text())
    assert about["Inputs"]["BVec"]["Name"] == "sub-01_dwi.bvec"
    for end in ("bval", "bvec"):
        Path(f"{stem}.{end}").unlink()
    refused = segment_all(*only)
    assert refused.status == 1
    assert f"{stem}.b, which is in world axes: use it with --frame world." in refused.error
    assert segment_all(*only, "--frame", "world", "--overwrite").status == 0
    about = json.loads((out / f"{RESULTS[0]}_probseg.json").read_text())
    assert about["Inputs"]["BVec"]["Name"] == about["Inputs"]["BVal"]["Name"] == "sub-01_dwi.b"
    assert about["Sources"][1:] == ["bids:raw:sub-01/dwi/sub-01_dwi.b"]
    np.savetxt(f"{stem}.b", table[:0])
    (Path(f"{stem}.b")).write_text("0 0 0 0\n" * 8)
    assert "left out: no diffusion-weighted volume" in segment_all(*only, "--frame", "world").stderr


def test_options_of_bids_apps(
    quick: None, call: Call, segment_all, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("segment-bids", "--version").stdout == f"tripq {__version__}\n"
    for name in ("TMPDIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(tempfile, "tempdir", None)
    used: list[int | None] = []
    monkeypatch.setattr(applying, "use_threads", used.append)
    work = tmp_path / "work"
    words = ("--participant_label", "sub-01", "-w", work, "--overwrite")
    for more in (("--nprocs", 3), ("--n_cpus", 2, "--omp-nthreads", 1), ("--omp-nthreads", 5)):
        assert segment_all(*words, *more).status == 0
    assert used == [3, 1, 5]
    assert Path(tempfile.gettempdir()) == work.resolve()
    assert Path(os.environ["TRITON_CACHE_DIR"]).is_relative_to(work)
