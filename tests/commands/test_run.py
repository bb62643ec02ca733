"""The command as a process: its start, its exit statuses, and what Ctrl-C leaves behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.commands.conftest import start, write_mask, write_scan
from tests.processes import COMMAND, Forked
from tripq.networks.checkpoint import save_network
from tripq.networks.paper import PaperSegmenter


def test_version_and_help_need_no_torch(tmp_path: Path) -> None:
    probe = (
        "import sys; from tripq.commands import app; app(['segment', '--help'], "
        "standalone_mode=False); assert not {'torch', 'dipy', 'e3nn'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    stdout, _ = start("--version", cwd=tmp_path).communicate()
    assert stdout.startswith("tripq ")


def test_a_shell_completes_commands_and_choices(tmp_path: Path) -> None:
    def complete(words: str) -> list[str]:
        process = start(
            cwd=tmp_path,
            _TRIPQ_COMPLETE="complete_bash",
            COMP_WORDS=words,
            COMP_CWORD=str(words.count(" ")),
        )
        return process.communicate()[0].split()

    assert complete("tripq segm") == ["segment", "segment-bids"]
    assert complete("tripq segment --frame ") == ["fsl", "voxel", "world"]


def test_statuses_are_those_of_a_well_behaved_program(tmp_path: Path) -> None:
    wrong = start("segment", "x.nii", "--nonsense", cwd=tmp_path)
    _, stderr = wrong.communicate()
    assert (wrong.returncode, "Usage" in stderr) == (2, True)
    failed = start("info", "nowhere.nii.gz", cwd=tmp_path)
    stdout, stderr = failed.communicate()
    assert (failed.returncode, stdout) == (1, "")
    assert stderr == "error: nowhere.nii.gz: there is no such file.\n"


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 128 + signal.SIGTERM),
        # quick: tests/commands/test_train.py
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.exhaustive),
    ],
)
def test_an_interrupted_run_leaves_nothing(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    data = np.random.default_rng(0).uniform(100, 900, size=(32, 32, 32, 30)).astype(np.float32)
    scan = write_scan(tmp_path / "dwi.nii.gz", b_values=(0, *29 * (1000,)))
    nib.Nifti1Image(data, nib.load(scan).affine).to_filename(scan)
    save_network(PaperSegmenter(p_radius=4.0), tmp_path / "slow.safetensors")
    whole = tmp_path / "mask.nii.gz"
    nib.Nifti1Image(np.ones((32, 32, 32), np.uint8), nib.load(scan).affine).to_filename(whole)
    out, log = tmp_path / "out", tmp_path / "log.txt"
    process = Forked(
        COMMAND,
        *("segment", scan, "--mask", whole, "--weights", tmp_path / "slow.safetensors"),
        *("-o", out, "--log", log, "--memory", "900MB"),
        cwd=tmp_path,
    )
    deadline = time.monotonic() + 120
    while not (log.exists() and "DWI(" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == status, stderr
    assert "Traceback" not in stderr
    assert not list(out.rglob("*"))
    if number is signal.SIGINT:
        assert stderr.endswith("error: interrupted; no file is half-written.\n")


def test_a_finished_run_writes_all_and_says_so(scan: Path, weights: Path, tmp_path: Path) -> None:
    mask = write_mask(tmp_path / "brain.nii", scan)
    process = start(
        *("segment", scan, "--mask", mask, "--weights", weights, "-o", "out", "--nthreads", 1),
        cwd=tmp_path,
    )
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "lesion" in stdout
    for line in stdout.splitlines()[1:]:
        assert (tmp_path / line.strip()).is_file()


def test_a_full_device_behind_stdout_is_one_line(weights: Path, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tripq", "info", weights],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")
