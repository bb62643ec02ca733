"""Tiny scans and checkpoints on disk, and the command in this process."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.conftest import built
from tripq.commands import app, applying, scans, segmenting
from tripq.infra import files
from tripq.networks.checkpoint import save_network
from tripq.scans import DWI, Frame, read_dwi
from tripq.tasks.lesions import segmentation
from tripq.tasks.lesions.segmenter import LesionSegmenter

SHAPE = (20, 19, 18)


def write_scan(
    path: Path, voxel_size: float = 2.0, b_values: tuple[float, ...] = (0, *7 * (1000,))
) -> Path:
    """Write a bright ball in dark air with a table beside it; the signal means nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content, directions = made_up(voxel_size, b_values, is_zipped=path.suffix == ".gz")
    path.write_bytes(content)
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    np.savetxt(path.with_name(f"{stem}.bval"), [b_values], fmt="%g")
    np.savetxt(path.with_name(f"{stem}.bvec"), directions.T)
    return path


@cache
def made_up(
    voxel_size: float, b_values: tuple[float, ...], is_zipped: bool
) -> tuple[bytes, np.ndarray]:
    """The file of the scan, and its directions (N, 3)."""
    rng = np.random.default_rng(0)
    data = rng.uniform(1, 20, size=(*SHAPE, len(b_values)))
    data[ball()] += rng.uniform(400, 1000, size=data[ball()].shape)
    data[ball(), 0] = 1000
    affine = np.diag([-voxel_size, voxel_size, voxel_size, 1.0])
    affine[:3, 3] = 20, -15, 4
    image = nib.Nifti1Image(data.astype(np.float32), affine)
    image.header.set_xyzt_units("mm")
    directions = rng.normal(size=(len(b_values), 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    content = image.to_bytes()
    return gzip.compress(content, 1) if is_zipped else content, directions


def ball() -> np.ndarray:
    x, y, z = (np.indices(SHAPE).T - (np.array(SHAPE) - 1) / 2).T
    return x**2 + y**2 + z**2 < 49


def write_mask(path: Path, scan: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(ball().astype(np.uint8), nib.load(scan).affine).to_filename(path)
    return path


@cache
def tiny_network() -> LesionSegmenter:
    torch.manual_seed(0)
    return LesionSegmenter(
        p_radius=2.9, q_features="4x0e+2x2e", p_features="3x0e+2x1o", n_p_layers=1
    )


def write_weights(path: Path, **notes: str) -> Path:
    save_network(tiny_network(), path, {"voxel_size_mm": "2", "threshold": "0.5", **notes})
    return path


@pytest.fixture(autouse=True)
def _plain_pages(undrawn: None) -> None:
    """Of the commands in this process; `test_run` and `tests/report` draw."""


@pytest.fixture
def own_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Install a package with a task; its name."""
    about = tmp_path / "site" / "diffusivity-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: diffusivity\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[tripq.tasks]\nmean-diffusivity = diffusivity:DiffusivityCommands\n"
    )
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "programs"))
    monkeypatch.syspath_prepend(str(about.parent))
    return "mean-diffusivity"


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return write_scan(tmp_path / "dwi.nii.gz")


@pytest.fixture
def mask(tmp_path: Path, scan: Path) -> Path:
    return write_mask(tmp_path / "mask.nii.gz", scan)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "tiny.safetensors")


def read_dwi_without_a_mask(
    path: Path, bval: Path | None, bvec: Path | None, frame: Frame, *, max_bytes: float
) -> DWI:
    return read_dwi(path, bval, bvec, frame=frame, max_bytes=max_bytes)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, no brain to find, no pictures: what is tested is around them."""

    def guess(network: Any, dwi: Any, **_: Any) -> np.ndarray:
        return np.asarray(dwi.signal[:, 1:].mean(axis=1).clip(0, 1), np.float32)

    monkeypatch.setattr(segmentation, "segment", guess)
    monkeypatch.setattr(scans, "read_brain", read_dwi_without_a_mask)
    monkeypatch.setattr(applying, "check_table", lambda dwi, frame: ())

    def write_page(path: Path, *_: Any, **__: Any) -> None:
        files.write_text(path, "<html></html>")

    monkeypatch.setattr(segmenting, "write_subject_report", write_page)
    monkeypatch.setattr(segmenting, "load_model", cache(segmentation.load_model))


def start(*arguments: object, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tripq", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "150", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Outcome:
    """What a call of the command did."""

    def __init__(self, status: int, stdout: str, stderr: str) -> None:
        self.status, self.stdout, self.stderr = status, stdout, stderr

    @property
    def error(self) -> str:
        """The one line that tells what went wrong."""
        (line,) = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        return line


Call = Callable[..., Outcome]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run ``tripq`` with arguments, in this process."""
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("typer.testing._get_command", built, raising=False)

    def run(*arguments: object) -> Outcome:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert "Traceback" not in done.output
        return Outcome(done.exit_code, done.stdout, done.stderr)

    return run
