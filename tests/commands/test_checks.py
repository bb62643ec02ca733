"""What is wrong with a call is reported before torch is imported, which takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import typer
from safetensors.numpy import save_file

from tests.commands.conftest import write_mask, write_scan
from tripq.commands import app

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]

# Runs all calls in a process in which none of these packages can be imported.
PROGRAM = """
import json, sys
for slow in ("dipy", "e3nn", "matplotlib", "sklearn", "torch"):
    sys.modules[slow] = None
from typer.testing import CliRunner
from tripq.commands import app
done = [CliRunner().invoke(app, call) for call in json.load(sys.stdin)]
print(json.dumps([[one.exit_code, one.stderr] for one in done]))
"""

#: Arguments of a call, and a part of its error; `{in}` is the folder of the inputs.
CALLS = (
    ("segment {in}/none.nii -o {out}", "none.nii: there is no such file."),
    ("segment {in}/bare.nii -o {out}", "bare.nii: no bare.bval or bare.bvals beside it."),
    ("segment {in}/dwi.nii --bvec {in}/none -o {out}", "none: cannot be read: No such file"),
    ("segment {in}/dwi.nii --mask {in}/none.nii -o {out}", "none.nii: there is no such file."),
    ("segment {in}/dwi.nii --mask {in}/other.nii -o {out}", "other.nii: the mask is on another"),
    ("segment {in}/dwi.nii --weights {in}/none -o {out}", "none: no such file."),
    ("segment {in}/dwi.nii --weights {in} -o {out}", "cannot be read: a folder, not a file."),
    ("segment {in}/dwi.nii -o {in}/dwi.nii/results", "dwi.nii: Not a directory"),
    ("segment {in}/dwi.nii -o {in}/results", "probseg.nii.gz: exists already"),
    ("segment {in}/dwi.nii -o {out} --memory 1MB", "1.00 MB are not enough"),
    ("predict {in}/none.nii --weights {in}/dwi.bval -o {out}", "none.nii: there is no such file."),
    ("predict {in}/dwi.nii --weights {in}/none -o {out}", "none: no such file."),
    ("predict {in}/dwi.nii --weights {in}/dwi.bval -o {in}/dwi.nii", "dwi.nii: File exists"),
    ("check {in}/none.nii", "none.nii: there is no such file."),
    ("check {in}/dwi.nii --mask {in}/none.nii", "none.nii: there is no such file."),
    ("info {in}/none.nii", "none.nii: there is no such file."),
    ("info {in}/none.safetensors", "none.safetensors: no such file."),
    ("evaluate {in}/none {in} -o {out}", "none: no such folder."),
    ("evaluate {in} {in}/none -o {out}", "none: no such folder."),
    ("evaluate {in} {in}/none -o {in}/dwi.nii", "dwi.nii: File exists"),
    ("train {in}/none -o {out}", "none: no such folder."),
    ("train {in} --truth {in}/none -o {out}", "none: no such folder."),
    ("train {in} --config {in}/none -o {out}", "none: No such file"),
    ("train {in} -o {in}/dwi.nii", "dwi.nii: File exists"),
    ("train {in} --start {in}/none -o {out}", "none: no such file, and no task of this name"),
    ("train {in} --start {in}/dwi.bval -o {out}", "dwi.bval: not a complete safetensors file"),
    ("train {in} --start {in}/nameless.safetensors -o {out}", "its metadata names no network"),
    ("train {in} --start pretraining -o {out}", "no network of the task pretraining comes"),
    ("segment-bids {in}/none {out} participant", "none: no such folder."),
    ("segment-bids {in} {out} participant", "no diffusion scans"),
    ("segment-bids {in} {out} participant --masks none", "none: no such folder"),
    ("segment-bids {in} {out} participant --weights {in}/none", "none: no such file."),
    ("segment-bids {in} {out} participant --memory 1MB", "1.00 MB are not enough"),
    ("segment-bids {in} {in}/dwi.nii/results participant", "dwi.nii: Not a directory"),
    ("segment-bids {in} {in}/none group", "no such folder; the level 'participant' creates it."),
    ("segment-bids {in} {out} participant --num-nodes 2", "set MASTER_ADDR"),
    ("simulate {in}", "inputs: contains other files: choose an empty folder."),
    ("simulate {in}/dwi.nii/results", "dwi.nii: Not a directory"),
    ("simulate {out} --directions 6 --directions 7", "2 numbers for 1 shells"),
    *((f"{command} --no-such-option", "No such option") for command in COMMANDS),
    *((f"{command}", "Missing argument") for command in COMMANDS),
)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Exit status and messages of each call."""
    folder = tmp_path_factory.mktemp("calls")
    inputs = folder / "inputs"
    scan = write_scan(inputs / "dwi.nii")
    (inputs / "bare.nii").write_bytes(scan.read_bytes())
    write_mask(inputs / "other.nii", write_scan(inputs / "large.nii", voxel_size=3.0))
    save_file({"x": np.zeros(1)}, inputs / "nameless.safetensors")
    (inputs / "results").mkdir()
    (inputs / "results" / "dwi_label-lesion_probseg.nii.gz").touch()
    places = {"in": inputs, "out": folder / "out"}
    calls = [arguments.format(**places).split() for arguments, _ in CALLS]
    found = json.loads(
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            input=json.dumps(calls),
            env={"COLUMNS": "500", "TERM": "dumb", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    return dict(zip((arguments for arguments, _ in CALLS), map(tuple, found), strict=True))


@pytest.mark.parametrize(("arguments", "error"), CALLS)
def test_an_unusable_call_is_rejected_without_torch(
    outcomes: dict[str, tuple[int, str]], arguments: str, error: str
) -> None:
    status, messages = outcomes[arguments]
    assert error in messages
    assert status == (1 if messages.startswith("error: ") else 2)


def test_every_command_is_held_to_it() -> None:
    """With its arguments there, but no files behind them."""
    called = {arguments.split()[0] for arguments, error in CALLS if "no such" in error.lower()}
    assert called == set(COMMANDS)
