"""A command in several processes gives what it gives in one, and a dead one loses nothing."""

from __future__ import annotations

import csv
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import typer
from safetensors.torch import load_file

from tests.commands.conftest import Call, start, write_mask, write_scan, write_weights
from tests.commands.test_train import CONFIG, write_labelled
from tests.processes import COMMAND, Forked, environments
from tripq.commands import ranks

SUBJECTS = [f"{number:02}" for number in range(1, 6)]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    for name in SUBJECTS:
        write_scan(tmp_path / f"raw/sub-{name}/dwi/sub-{name}_dwi.nii.gz")
    return tmp_path / "raw"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "tiny.safetensors")


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Status, stdout and stderr."""
    stdout, stderr = process.communicate(timeout=300)
    return process.returncode, stdout, stderr


def maps(out: Path) -> dict[str, bytes]:
    """The values of all maps."""
    files = sorted(out.rglob("*.nii.gz"))
    return {
        path.relative_to(out).as_posix(): nib.load(path).dataobj[...].tobytes() for path in files
    }


def table(out: Path) -> list[tuple[str, str, str]]:
    with (out / "summary.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [(row["scan"], row["status"], row["volume_ml"]) for row in rows]


def children(of: int) -> list[int]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True)
    pairs = [tuple(map(int, line.split())) for line in listed.stdout.splitlines()]
    return [pid for pid, parent in pairs if parent == of]


PLAIN_PAGES = "from matplotlib.figure import Figure; Figure.savefig = lambda *_, **__: None"


def in_two(*arguments: object, folder: Path) -> tuple[int, str, str]:
    """Status of the first of two processes, and what both show, without a launcher."""
    processes = []
    for number, environment in enumerate(environments(2)):
        (own := folder / f"rank-{number}").mkdir()
        code = f"import os; os.environ.update({environment})\n{PLAIN_PAGES}\n{COMMAND}"
        processes.append(Forked(code, *arguments, cwd=own))
    shown = [process.communicate() for process in processes]
    assert processes[1].returncode == 0
    return (processes[0].returncode, *map("".join, zip(*shown, strict=True)))


@pytest.mark.parametrize("launched", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_scans_are_divided_and_the_maps_are_the_same(
    launched: bool,
    raw: Path,
    weights: Path,
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = raw / "sub-04/dwi/sub-04_dwi.bval"
    broken.write_text("what?")
    twin = write_scan(raw / "sub-05/dwi/sub-05_dwi.nii")
    for scan in raw.glob("*/dwi/*_dwi.nii.gz"):
        write_mask(scan.with_name(scan.name.replace("_dwi", "_desc-brain_mask")), scan)
    monkeypatch.chdir(tmp_path)
    common = ("participant", "--weights", weights, "--nthreads", 1, "--devices")
    command = ("segment-bids", raw, tmp_path / "out-2", *common, 2)
    two = end(start(*command, cwd=tmp_path)) if launched else in_two(*command, folder=tmp_path)
    one = call("segment-bids", raw, "out-1", *common, 1)
    ends = {1: (one.status, one.stdout, one.stderr), 2: two}
    for status, stdout, stderr in ends.values():
        assert status == 1, stderr
        assert f"{broken}: line 1: 'what?' is not a number." in stdout
        for name in (twin.name, f"{twin.name}.gz"):
            refused = f"{twin.parent / name}: its results would have the same names as those of"
            assert refused in stdout
            assert stderr.count(refused) == 1
        assert "Traceback" not in stderr
    # The fourth of the scans is the second process's.
    assert f"error: process 2 of 2: {broken}" in ends[2][2]
    assert len(maps(tmp_path / "out-1")) == 2 * (len(SUBJECTS) - 2)
    assert maps(tmp_path / "out-1") == maps(tmp_path / "out-2")
    assert table(tmp_path / "out-1") == table(tmp_path / "out-2")


@pytest.fixture
def usual_handlers() -> Iterator[None]:
    """Handlers of signals, and the level of a log, which the launcher changes."""
    log = logging.getLogger("torch.distributed")
    level = log.level
    numbers = signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM
    usual = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in usual.items():
        signal.signal(number, handler)
    log.setLevel(level)


@pytest.mark.parametrize(
    ("last", "status", "message"),
    [
        ("exit 0", 0, ""),
        ("exit $((3 * RANK))", 3, ""),
        ('[ "$RANK" = 0 ] || kill -KILL $$', 1, "process 2 of 2 was ended by SIGKILL"),
    ],
)
def test_the_launcher_starts_the_same_command_and_ends_as_it_does(
    last: str,
    status: int,
    message: str,
    usual_handlers: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A program of the shell in place of Python: that one would import torch in each process."""
    program = tmp_path / "program"
    program.write_text(
        f"""#!/bin/sh
        cd {tmp_path}
        echo "$WORLD_SIZE" "$@" > part-$RANK && mv part-$RANK rank-$RANK
        until [ -e rank-0 ] && [ -e rank-1 ]; do sleep 0.01; done
        {last}
        """
    )
    program.chmod(0o700)
    words = ["segment-bids", "data", "--devices", "2"]
    here = SimpleNamespace(executable=str(program), argv=["tripq", *words])
    monkeypatch.setattr(ranks, "sys", here)
    with pytest.raises(typer.Exit) as ended:
        ranks.divide(2, 1, threads=1)
    assert ended.value.exit_code == status
    assert message in caplog.text
    for rank in range(2):
        assert (tmp_path / f"rank-{rank}").read_text().split() == ["2", "-m", "tripq", *words]


@pytest.mark.exhaustive
def test_a_killed_process_leaves_what_was_finished(
    raw: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    common = ("segment-bids", raw, out, "participant", "--weights", weights, "--devices", 2)
    large = raw / "sub-04/dwi/sub-04_dwi.nii.gz"  # it takes seconds
    small = nib.load(large)
    nib.Nifti1Image(np.tile(small.get_fdata(), (3, 3, 3, 1)), small.affine).to_filename(large)
    process = start(*common, cwd=tmp_path)

    def wait_for(*names: str) -> None:
        deadline = time.monotonic() + 200
        while not all(list(out.glob(f"sub-{name}/dwi/*.html")) for name in names):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)

    wait_for("02")
    (second,) = [
        pid
        for pid in children(process.pid)
        if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    ]
    os.kill(second, signal.SIGSTOP)
    wait_for("01", "03", "05")
    before = maps(out)
    os.kill(second, signal.SIGKILL)
    status, _, stderr = end(process)
    assert status == 1
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert errors[-1].startswith("error: process 2 of 2 was ended by SIGKILL")
    assert all("another process ended early" in line for line in errors[:-1])
    assert "Traceback" not in stderr
    assert maps(out) == before

    status, _, stderr = end(start(*common, cwd=tmp_path))
    assert status == 0, stderr
    assert before.items() < maps(out).items()
    statuses = {scan[4:6]: how for scan, how, _ in table(out)}
    assert statuses == {**dict.fromkeys(("01", "02", "03", "05"), "there already"), "04": "done"}


@pytest.mark.exhaustive
def test_machines_meet_and_divide_the_scans(raw: Path, weights: Path, tmp_path: Path) -> None:
    command = ("segment-bids", raw, "out", "participant", "--weights", weights, "--num-nodes", 2)
    status, _, stderr = end(start(*command, cwd=tmp_path))
    assert (status, "set MASTER_ADDR" in stderr) == (2, True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    machines = [start(*command, cwd=tmp_path, **place) for _ in range(2)]
    ends = [end(machine) for machine in machines]
    assert [status for status, _, _ in ends] == [0, 0], ends
    assert {how for _, how, _ in table(tmp_path / "out")} == {"done"}
    assert len(table(tmp_path / "out")) == len(SUBJECTS)
    # One of them tells what all have done.
    assert sum("sub-05" in stdout for _, stdout, _ in ends) == 1


@pytest.mark.exhaustive
def test_a_network_trained_by_two_is_that_of_one(tmp_path: Path) -> None:
    for name in ("sub-01", "sub-02", "sub-03"):
        write_labelled(tmp_path / "data", name)
    config = tmp_path / "train.toml"
    config.write_text(CONFIG)
    command = ("train", "data", "--config", config, "--device", "cpu")
    status, _, stderr = end(start(*command, "-o", "odd", "--devices", 2, cwd=tmp_path))
    assert (status, "n_boxes must be a multiple of 2" in stderr) == (1, True)
    config.write_text(CONFIG.replace("[training]", "[training]\nn_boxes = 2"))
    for count in (1, 2):
        trained = start(*command, "-o", f"out-{count}", "--devices", count, cwd=tmp_path)
        status, _, stderr = end(trained)
        assert status == 0, stderr
    one, two = (
        load_file(tmp_path / f"out-{count}" / "lesion-segmenter.safetensors") for count in (1, 2)
    )
    assert one.keys() == two.keys()
    for name, values in one.items():
        # Weights of order 1 in float32, after a few steps: the order of the sums is all.
        assert (values - two[name]).abs().max() < 1e-4, name
