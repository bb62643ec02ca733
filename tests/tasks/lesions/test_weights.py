"""The network that comes with the package, or how to do without."""

from __future__ import annotations

from pathlib import Path

import pytest

from tripq.networks.checkpoint import CheckpointError, read_notes
from tripq.tasks.lesions import weights
from tripq.tasks.lesions.command import LesionCommands


def test_the_weights_lie_in_the_package() -> None:
    found = LesionCommands().included_weights()
    assert found == Path(weights.__file__).with_name("lesion-segmenter.safetensors")


def test_an_installation_without_weights_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LesionCommands, "weights", "none.safetensors")
    says = r"none.safetensors: .* of the task lesions\. Give a checkpoint: --weights FILE"
    with pytest.raises(CheckpointError, match=says):
        LesionCommands().included_weights()


def test_the_page_of_the_weights_is_a_model_card() -> None:
    page = (Path(__file__).parents[3] / "docs" / "weights.md").read_text(encoding="utf-8")
    notes = read_notes(LesionCommands().included_weights())
    assert page.startswith(weights.weights_header(notes) + "\n# ")
