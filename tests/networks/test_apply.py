"""Any output of a network, brought back to the grid of any scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tripq import PQGraph
from tripq.networks.apply import Model, apply_model, load_model
from tripq.networks.blocks import predict_blocks
from tripq.networks.checkpoint import CheckpointError, save_network
from tripq.networks.paper import PaperSegmenter
from tripq.scans import DWI, DWIError
from tripq.scans.resampling import map_back, resample


class Pairs(nn.Module):
    """Two rows of two values in every voxel: means and others of the signal."""

    def forward(self, signal: Tensor, graph: PQGraph) -> Tensor:
        mean = signal.mean(dim=1)
        return torch.stack([mean, 1 - mean, signal[:, 1], 2 * mean], dim=1).reshape(-1, 2, 2)


def make_scan(edge: float, b_values: Sequence[float] = (1000, 1000, 1000)) -> DWI:
    rng = np.random.default_rng(0)
    mask = rng.random((9, 8, 7)) < 0.8
    n = np.count_nonzero(mask)
    return DWI(
        signal=np.c_[np.ones(n), rng.random((n, 3))].astype(np.float32),
        b_values=np.array([0.0, *b_values]),
        q=np.concatenate([np.zeros((1, 3)), np.diag(np.sqrt(np.array(b_values) / 1000))]),
        mask=mask,
        affine=np.diag([edge, edge, edge, 1.0]),
        b0=np.full(n, 300, dtype=np.float32),
    )


def make_model(network: nn.Module) -> Model:
    return Model(
        path=Path("net.safetensors"),
        sha256="",
        network=network.eval(),
        voxel_sizes=(2.0, 2.0),
        b_values=(1000.0,),
        caution="",
    )


@pytest.mark.parametrize("edge", [2.0, 2.5])
def test_each_value_of_an_output_is_brought_back_as_a_map_is(edge: float) -> None:
    network, dwi = Pairs(), make_scan(edge)
    found = apply_model(make_model(network), dwi)
    suited = dwi if edge == 2.0 else resample(dwi, 2.0)
    expected = predict_blocks(network, suited)
    assert found.dwi is dwi
    assert found.output.shape == (len(dwi.b0), 2, 2)
    for i, j in np.ndindex(2, 2):
        values = expected[:, i, j]
        wanted = values if suited is dwi else map_back(values, suited, dwi)
        np.testing.assert_array_equal(found.output[:, i, j], wanted)


@pytest.mark.parametrize(("edge", "suitable"), [(1.6, 1.6), (2.4, 2.4), (3.3, 3.0), (1.2, 1.5)])
def test_nothing_is_resampled_within_the_range_of_the_training(
    edge: float, suitable: float
) -> None:
    network, dwi = Pairs(), make_scan(edge)
    found = apply_model(replace(make_model(network), voxel_sizes=(1.5, 3.0)), dwi)
    if edge == suitable:
        np.testing.assert_array_equal(found.output, predict_blocks(network, dwi))
        assert not any("resampled" in note for note in found.notes)
        return
    suited = resample(dwi, suitable)
    expected = map_back(predict_blocks(network, suited)[:, 0, 0], suited, dwi)
    np.testing.assert_array_equal(found.output[:, 0, 0], expected)
    assert any(f"resampled to {suitable:g} mm" in note for note in found.notes)


def test_a_scan_is_resampled_when_asked_for() -> None:
    network, dwi = Pairs(), make_scan(2.0)
    model = replace(make_model(network), voxel_sizes=(1.5, 3.0))
    found = apply_model(model, dwi, voxel_size=2.5)
    suited = resample(dwi, 2.5)
    expected = map_back(predict_blocks(network, suited)[:, 0, 0], suited, dwi)
    np.testing.assert_array_equal(found.output[:, 0, 0], expected)
    assert found.notes == (
        "Voxels of 2 x 2 x 2 mm were resampled to 2.5 mm; the map was resampled back.",
    )


def test_shells_outside_the_training_are_left_out() -> None:
    dwi = make_scan(2.0, b_values=(1000, 2000, 3000))
    model = replace(make_model(Pairs()), b_values=(700.0, 1900.0))
    found = apply_model(model, dwi)
    expected = predict_blocks(model.network, dwi.with_shells([1000, 2000]))
    np.testing.assert_array_equal(found.output, expected)
    assert "b = 3000 s/mm2 was excluded: the training had b = 700 to 1900." in found.cautions
    assert found.dwi is dwi

    # Nothing would remain: the scan is taken as it is, and that is said.
    elsewhere = apply_model(replace(model, b_values=(300.0,)), dwi)
    np.testing.assert_array_equal(elsewhere.output, predict_blocks(model.network, dwi))
    assert any("absent from training, which had b = 300" in told for told in elsewhere.cautions)


@pytest.mark.parametrize(
    ("note", "sizes"), [("2", (2.0, 2.0)), ("1.5 3", (1.5, 3.0)), ("3, 1.5", (1.5, 3.0))]
)
def test_a_file_says_for_which_voxels_it_is(
    note: str, sizes: tuple[float, float], tmp_path: Path
) -> None:
    path = tmp_path / "net.safetensors"
    save_network(PaperSegmenter(), path, {"voxel_size_mm": note})
    assert load_model(path).voxel_sizes == sizes
    save_network(PaperSegmenter(), path, {"voxel_size_mm": "1 2 3"})
    with pytest.raises(CheckpointError, match="'1 2 3', not one edge or the shortest"):
        load_model(path)


def test_an_output_that_is_no_number_is_refused() -> None:
    class Nothing(Pairs):
        def forward(self, signal: Tensor, graph: PQGraph) -> Tensor:
            return super().forward(signal, graph) / 0

    with pytest.raises(DWIError, match=r"of the values that net\.safetensors gives are not finite"):
        apply_model(make_model(Nothing()), make_scan(2.0))


def test_a_file_says_for_which_task_it_is(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_network(PaperSegmenter(), path, {"task": "tissue", "unit": "mm"})
    model = load_model(path)
    assert (model.task, model.notes["unit"]) == ("tissue", "mm")
    save_network(PaperSegmenter(), path)
    assert load_model(path).task == ""
