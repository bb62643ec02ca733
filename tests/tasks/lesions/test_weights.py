"""The network that comes with the package, or how to do without."""

from __future__ import annotations

from pathlib import Path

import pytest

from tripq.networks.checkpoint import CheckpointError, read_notes
from tripq.tasks.lesions import weights


def test_the_weights_lie_in_the_package() -> None:
    assert weights._FILE.parent == Path(weights.__file__).parent
    assert weights._FILE.name == "lesion-segmenter.safetensors"


def test_an_installation_without_weights_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_FILE", tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match="Give a checkpoint: --weights FILE"):
        weights.default_weights()
    (tmp_path / "net.safetensors").touch()
    assert weights.default_weights() == tmp_path / "net.safetensors"


def test_the_page_of_the_weights_is_a_model_card() -> None:
    page = (Path(__file__).parents[3] / "docs" / "weights.md").read_text(encoding="utf-8")
    notes = read_notes(weights.default_weights())
    assert page.startswith(weights.weights_header(notes) + "\n# ")
