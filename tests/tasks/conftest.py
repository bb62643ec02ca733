"""Fixtures of the commands of several tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tripq.commands import applying
from tripq.tasks import TaskCommands


@pytest.fixture
def plain_pages(monkeypatch: pytest.MonkeyPatch, undrawn: None) -> None:
    """Pages without pictures, which take most of the time; other tests are about them."""

    def write_page(self: TaskCommands[Any], path: Path, *_: object) -> None:
        path.write_text("page")

    monkeypatch.setattr(TaskCommands, "write_page", write_page)
    monkeypatch.setattr(applying, "check_table", lambda dwi, frame: ())
