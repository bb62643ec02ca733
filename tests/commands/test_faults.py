"""Disk full, no permission, out of memory, killed: a reason, no half file, and nothing is lost.

Each fault is made wherever it can happen, one place after the other, and then the same call without
it has to end as if nothing had been.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.commands.conftest import Call, write_scan
from tests.commands.test_segment_bids import summary
from tests.processes import Forked
from tripq.commands import applying, segmenting
from tripq.infra import files
from tripq.tasks.lesions import segmentation
from tripq.tasks.lesions.names import find_lesion_maps

SCANS = tuple(f"sub-{n}/dwi/sub-{n}_dwi.nii.gz" for n in ("01", "02"))
SIDECARS = tuple(f"sub-{n}/dwi/sub-{n}_space-orig_label-lesion_probseg.json" for n in ("01", "02"))


def digests(folder: Path) -> dict[str, str]:
    """Fingerprints of all files, whatever they are called, but for pages: these have the time."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.suffix not in (".html", ".tsv")
    }


def is_whole(folder: Path) -> bool:
    """Whether there is no half file, nothing hidden, and beside a sidecar all that it is about."""
    there = [path for path in folder.rglob("*") if path.is_file()]
    for file in there:
        if file.name.endswith(".nii.gz"):
            assert np.isfinite(nib.load(file).get_fdata()).all()
        elif file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix == ".html":
            assert file.read_text(encoding="utf-8").rstrip().endswith("</html>")
    stems = [file.name.removesuffix("_probseg.json") for file in there if "_probseg.j" in file.name]
    names = {file.name for file in there}
    endings = ("probseg.nii.gz", "mask.nii.gz", "mask.json", "report.html")
    hidden = [path for path in folder.rglob(".*") if path.name != ".bidsignore"]
    return not hidden and all(f"{stem}_{end}" in names for stem in stems for end in endings)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    for name in SCANS:
        write_scan(tmp_path / "raw" / name)
    return tmp_path / "raw"


class Fault:
    """Lets one of the calls that change a disk fail, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.fails_at, self.error = 0, -1, errno.ENOSPC
        for owner, name in (
            *((Path, "mkdir"), (Path, "write_bytes"), (os, "replace")),
            *((files, "mkdtemp"), (nib.Nifti1Image, "to_filename")),
        ):
            monkeypatch.setattr(owner, name, self.wrap(getattr(owner, name), name))

    def wrap(self, real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def failing(*args: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls != self.fails_at:
                return real(*args, **options)
            names: tuple[Any, ...] = ("a hidden folder",)
            if name == "write_bytes":
                with args[0].open("wb") as file:
                    file.write(b"half")
                names = ()  # the system says where it failed, but not when it was writing
            elif name == "to_filename":
                args[1].write_bytes(b"half")
                names = ()
            elif name == "mkdir":
                names = (str(args[0]),)
            elif name == "replace":
                names = (str(args[0]), None, str(args[1]))
            raise OSError(self.error, os.strerror(self.error), *names)

        return failing


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_wherever_writing_fails_nothing_half_is_left(
    step: int,
    quick: None,
    call: Call,
    raw: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, expected = tmp_path / "out", tmp_path / "expected"
    arguments = ("--weights", weights, "--quiet")
    assert call("segment-bids", raw, expected, "participant", *arguments).status == 0
    fault = Fault(monkeypatch)
    for place in count(1, step):
        target = out / str(place)
        fault.calls, fault.fails_at = 0, place
        fault.error = (errno.ENOSPC, errno.EACCES, errno.EROFS)[place % 3]
        done = call("segment-bids", raw, target, "participant", *arguments)
        if fault.calls < place:
            break
        assert done.status == 1
        assert os.strerror(fault.error) in done.error
        assert str(target) in done.error
        assert "tripq-" not in done.error
        assert is_whole(target)
        before = digests(target)
        fault.fails_at = -1
        assert call("segment-bids", raw, target, "participant", *arguments).status == 0
        assert digests(target) == digests(expected)
        assert before.items() <= digests(target).items()
    assert place > 20  # so many places there are


def test_a_full_disk_ends_a_run_at_the_first_scan(
    quick: None,
    call: Call,
    raw: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The others would be computed for nothing; a scan that cannot be used stops nobody."""
    read: list[str] = []
    read_scan = applying.read_scan

    def noted(found: Any, *others: Any) -> Any:
        read.append(found.scan.name)
        return read_scan(found, *others)

    def full(values: Any, dwi: Any, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(applying, "read_scan", noted)
    monkeypatch.setattr(segmenting, "write_map", full)
    done = call("segment-bids", raw, tmp_path / "out", "participant", "--weights", weights)
    assert (done.status, read) == (1, ["sub-01_dwi.nii.gz"])
    assert "No space left on device" in done.error


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
from tripq.commands import run
run()
"""


def test_a_limit_of_the_system_is_met_as_a_full_disk_is(
    scan: Path,
    mask: Path,
    weights: Path,
    tmp_path: Path,
) -> None:
    """A real one: no file may have more than 4000 bytes, and the map would."""
    arguments = ("segment", scan, "--mask", mask, "--weights", weights, "-o", tmp_path / "out")
    process = Forked(LIMITED, *arguments, "--nthreads", 1, cwd=tmp_path)
    _, stderr = process.communicate()
    assert process.returncode == 1, stderr
    target = tmp_path / "out" / "dwi_label-lesion_probseg.nii.gz"
    last = stderr.splitlines()[-1]
    assert last == f"error: {target}: cannot be written: File too large."
    assert "Traceback" not in stderr
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_stands_in_the_way_is_named(
    kind: str,
    quick: None,
    call: Call,
    raw: Path,
    weights: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    obstacle = out / ("sub-01" if kind == "file" else SIDECARS[0])
    if kind == "file":
        out.mkdir()
        obstacle.write_text("a file of the user")
    else:
        obstacle.mkdir(parents=True)
    done = call("segment-bids", raw, out, "participant", "--weights", weights)
    assert done.status == 1
    assert str(obstacle) in done.error
    assert [row["status"] for row in summary(out).values()] == ["failed", "done"]
    assert obstacle.is_dir() if kind == "folder" else obstacle.read_text() == "a file of the user"
    assert not list(out.rglob(".tripq-*"))


@pytest.mark.parametrize("suffix", [".nii.gz", ".bval", ".bvec"])
def test_a_file_that_may_not_be_read_is_named(
    suffix: str,
    quick: None,
    call: Call,
    raw: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Permissions mean nothing to root, who may run this test: the system call fails instead."""
    hidden = raw / SCANS[0].replace(".nii.gz", suffix)

    def refuse(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and active and str(args[0]) == str(hidden):
            raise PermissionError(errno.EACCES, "Permission denied", str(hidden))

    active = [True]
    sys.addaudithook(refuse)  # it cannot be taken back, only be emptied
    try:
        done = call("segment-bids", raw, tmp_path / "out", "participant", "--weights", weights)
    finally:
        active.clear()
    assert done.status == 1
    assert str(hidden) in done.error
    assert "Permission denied" in done.error
    assert [row["status"] for row in summary(tmp_path / "out").values()] == ["failed", "done"]


ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"),
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
)


def test_out_of_memory_is_tried_again_with_less_and_that_is_said(
    call: Call,
    scan: Path,
    mask: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []
    errors: list[Exception] = []
    unchanged = segmentation.segment

    def greedy(network: Any, dwi: Any, *, max_voxels: int, **options: Any) -> np.ndarray:
        sizes.append(max_voxels)
        if len(sizes) == 1:
            raise errors[-1]
        return unchanged(network, dwi, max_voxels=max_voxels, **options)

    arguments = ("segment", scan, "--mask", mask, "--weights", weights, "-o")
    assert call(*arguments, tmp_path / "plenty").status == 0
    monkeypatch.setattr(segmentation, "segment", greedy)
    for number, error in enumerate(ERRORS):
        sizes.clear()
        errors.append(error)
        done = call(*arguments, tmp_path / f"little-{number}")
        assert done.status == 0, done.stderr
        assert len(sizes) == 2
        assert sizes[1] < sizes[0]
        told = f"Out of memory: tried again with blocks of {sizes[1]} voxels."
        assert told in done.stderr
        little, plenty = (
            tmp_path / folder / "dwi_label-lesion_probseg"
            for folder in (f"little-{number}", "plenty")
        )
        assert told in json.loads(little.with_suffix(".json").read_text())["Notes"]
        np.testing.assert_allclose(
            *(nib.load(f"{path}.nii.gz").get_fdata() for path in (little, plenty)), atol=1e-6
        )


def test_too_little_memory_for_good_names_the_scan_and_leaves_nothing(
    call: Call,
    scan: Path,
    mask: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def greedy(*_: Any, **__: Any) -> None:
        raise MemoryError("Unable to allocate 9 GiB")

    arguments = ("segment", scan, "--mask", mask, "--weights", weights, "-o", tmp_path / "out")
    for place, reason in (
        (segmentation, "segment"),
        (applying, "read_scan"),
        (segmenting, "write_subject_report"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, reason, greedy)
            done = call(*arguments)
        assert done.status == 1
        assert done.error.startswith(f"error: {scan}: out of memory")
        assert done.error.endswith("Close other programs or use a larger machine.")
        assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


STOPS = """
import sys, time
from importlib import import_module
from pathlib import Path
import tripq.commands.segmenting as segmenting
app = import_module("tripq.commands.segment_bids")  # the package has a function of this name
marker, where = Path(sys.argv.pop(1)), sys.argv.pop(1)
def stop(): marker.touch(); time.sleep(600)
report, summary = segmenting._write_report, app.write_summary
def write_report(path, *others):
    report(path, *others)
    if where == "inside" and "sub-02" in path.name: stop()
def write_summary(*others):
    summary(*others)
    if where == "between": stop()
segmenting._write_report, app.write_summary = write_report, write_summary
from tripq.commands import run
run()
"""


@pytest.fixture
def stopped(tmp_path: Path, raw: Path, weights: Path) -> Callable[..., int]:
    """Start segmenting, and send a signal between two scans or while files of the second are."""

    def run(where: str, number: signal.Signals, out: Path) -> int:
        marker = tmp_path / "marker"
        arguments = (raw, out, "participant", "--weights", weights, "--nthreads", "1")
        process = Forked(STOPS, marker, where, "segment-bids", *arguments, cwd=tmp_path)
        try:
            deadline = time.monotonic() + 120
            while not marker.exists() and process.returncode is None:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert marker.exists(), process.communicate()[1]
            process.send_signal(number)
            process.communicate(timeout=60)
        finally:
            process.kill()
        return process.returncode

    return run


@pytest.mark.parametrize(
    ("where", "number", "status"),
    [
        ("inside", signal.SIGKILL, -signal.SIGKILL),
        pytest.param("inside", signal.SIGINT, 130, marks=pytest.mark.exhaustive),
        pytest.param("between", signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_that_was_stopped_is_finished_by_the_next(
    where: str,
    number: signal.Signals,
    status: int,
    stopped: Callable[..., int],
    call: Call,
    raw: Path,
    weights: Path,
    tmp_path: Path,
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert stopped(where, number, out) == status
    finished = {name: out / name for name in digests(out) if name.startswith("sub-01")}
    assert {SIDECARS[0]} <= {*finished}
    assert [found.subject for found in find_lesion_maps(out)] == ["01"]
    times = {name: path.stat().st_mtime_ns for name, path in finished.items()}

    arguments = ("--weights", weights, "--nthreads", "1")
    assert call("segment-bids", raw, out, "participant", *arguments).status == 0
    assert [row["status"] for row in summary(out).values()] == ["there already", "done"]
    assert {name: path.stat().st_mtime_ns for name, path in finished.items()} == times
    assert is_whole(out)
    assert call("segment-bids", raw, whole, "participant", *arguments).status == 0
    assert digests(out) == digests(whole)
