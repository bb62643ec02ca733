"""The network that comes with the package, or how to do without."""

from __future__ import annotations

from pathlib import Path

import pytest

from tripq.networks.checkpoint import CheckpointError
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
