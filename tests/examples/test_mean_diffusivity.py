"""A task of one's own in sixty lines: its network learns, by the public API alone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.conftest import run_program

EXAMPLE = Path(__file__).parents[2] / "examples" / "mean_diffusivity.py"


def test_it_learns_what_a_tensor_fit_says(few_settling: None) -> None:
    told = run_program(EXAMPLE, "--steps", 4)
    before, after = map(float, re.findall(r"(?:before|after): ([\d.]+) um2/ms", told))
    assert after < before


def test_it_is_short_and_uses_public_names_only() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    imported = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imported if (node.module or "").startswith("tripq")]
    assert not [a.name for node in ours for a in node.names if a.name.startswith("_")]
    assert not [node.module for node in ours if (node.module or "").startswith("tripq.tasks")]
