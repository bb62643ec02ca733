"""Settings of a training that starts from a file: its arguments, unless others were chosen."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from tripq.networks import ConvSegmenter, VoxelNetwork, save_network
from tripq.networks.checkpoint import CheckpointError
from tripq.tasks.fibres.config import FibreConfig
from tripq.tasks.fibres.network import FibreNetwork
from tripq.tasks.lesions.config import LesionConfig
from tripq.tasks.signal.config import SignalConfig
from tripq.tasks.signal.network import SignalPredictor
from tripq.training.config import ConfigError, TrainingConfig, network_keys
from tripq.training.configured import started_config


def saved(network: nn.Module, folder: Path) -> Path:
    save_network(network, folder / "start.safetensors")
    return folder / "start.safetensors"


def test_all_arguments_are_those_of_the_same_network(tmp_path: Path) -> None:
    network = FibreNetwork(p_features="4x0e + 2x2e", order=6, fit_order=2, channels=3, n_p_layers=1)
    found = started_config(FibreConfig(), saved(network, tmp_path)).network
    assert all(value == getattr(network, name) for name, value in vars(found).items())


def test_the_encoder_of_fibres_is_of_another_kind(tmp_path: Path) -> None:
    """It takes scans in units of their response."""
    path = saved(SignalPredictor(p_features="4x0e", order=2, n_p_layers=2), tmp_path)
    with pytest.raises(CheckpointError, match="ShellNetwork, and this network needs one of the"):
        started_config(FibreConfig(), path)
    path = saved(FibreNetwork(p_features="4x0e + 2x2e", order=6, fit_order=4), tmp_path)
    with pytest.raises(CheckpointError, match="FibreNetwork, and this network needs one of the"):
        started_config(SignalConfig(), path)


def test_the_radius_is_that_of_the_file(tmp_path: Path) -> None:
    path = saved(VoxelNetwork("3x0e", p_radius=4.5, n_p_layers=1), tmp_path)
    found = started_config(LesionConfig(), path).network
    assert (found.p_radius, found.n_p_layers) == (4.5, 1)


def test_what_was_chosen_must_agree(tmp_path: Path) -> None:
    path = saved(VoxelNetwork("3x0e", n_p_layers=1), tmp_path)
    settings = LesionConfig()
    with pytest.raises(ConfigError, match=r"n_p_layers = 3, but the network of .* has 1: omit"):
        started_config(settings, path, {"n_p_layers"})
    assert started_config(settings, path, {"q_features"}).network.n_p_layers == 1


def test_a_task_without_an_encoder_keeps_its_settings(tmp_path: Path) -> None:
    path = saved(ConvSegmenter(4, widths=(3,)), tmp_path)
    assert started_config(TrainingConfig(), path) == TrainingConfig()
    with pytest.raises(CheckpointError, match="a ConvSegmenter has no encoder, and"):
        started_config(LesionConfig(), path)


def test_keys_of_a_file_are_those_that_it_gives(tmp_path: Path) -> None:
    path = tmp_path / "train.toml"
    path.write_text("[network]\nn_p_layers = 3\n[training]\nsteps = 4\n")
    assert network_keys(path) == {"n_p_layers"}
    path.write_text("network = 3")
    assert network_keys(path) == set()
    path.write_text("network")
    with pytest.raises(ConfigError, match="not valid TOML"):
        network_keys(path)
