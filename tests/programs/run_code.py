"""Runs Python code as `python -c` does; what the command needs is imported already."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import tripq.tasks.lesions.command
import tripq.training.configured  # noqa: F401


def run(program: str, arguments: list[str], folder: Path, *shown: Path) -> None:
    """In a process of its own, in a folder, with stdout and stderr in files."""
    os.chdir(folder)
    for number, path in enumerate(shown, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["-c", *arguments]
    exec(program, {"__name__": "__main__"})
