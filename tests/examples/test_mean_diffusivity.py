"""A task of one's own in sixty lines: its network learns, by the public API alone."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "mean_diffusivity.py"


def test_it_learns_what_a_tensor_fit_says() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLE, "--steps", "4"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    before, after = map(float, re.findall(r"(?:before|after): ([\d.]+) um2/ms", done.stdout))
    assert after < before


def test_it_is_short_and_uses_public_names_only() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    imported = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imported if (node.module or "").startswith("tripq")]
    assert not [a.name for node in ours for a in node.names if a.name.startswith("_")]
    assert not [node.module for node in ours if (node.module or "").startswith("tripq.tasks")]
