"""Maps of any gradient table, and the networks that see them."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from dipy.core.gradients import gradient_table
from dipy.reconst.dti import TensorModel
from e3nn import o3
from torch import Tensor

from tests.strategies import CUBE, rotation_of
from tripq import PQGraph
from tripq.networks.blocks import predict_blocks, reads_b0_contrast
from tripq.networks.checkpoint import load_network, save_network
from tripq.scans import DWI, DWIError
from tripq.simulate import GradientTable
from tripq.testing import representation

B = (1000,)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


@pytest.fixture(scope="module")
def rivals() -> ModuleType:
    """examples/paper/rivals.py, imported as the experiment imports it."""
    from paper import rivals

    return rivals


@pytest.fixture(scope="module")
def scan() -> DWI:
    """Tensors of any shape and orientation, scanned with two shells and noise."""
    rng = np.random.default_rng(0)
    table = GradientTable.from_shells([1000.0, 2000.0], [20, 12])
    q = np.sqrt(table.b_values / 1000)[:, None] * table.directions
    mask = rng.random((9, 8, 7)) < 0.8
    roots = rng.normal(scale=0.5, size=(np.count_nonzero(mask), 3, 3))
    clean = np.exp(-np.square(q @ roots).sum(axis=2))
    noisy = np.abs(clean + rng.normal(scale=0.03, size=clean.shape))
    noisy[:, 0] = 1
    return DWI(
        signal=noisy.astype(np.float32),
        b_values=table.b_values,
        q=q,
        mask=mask,
        affine=AFFINE,
        b0=np.ones(len(noisy), np.float32),
    )


def maps_of(rivals: ModuleType, kind: str, dwi: DWI, b_values: tuple[int, ...] = B) -> Tensor:
    signal, q = torch.from_numpy(dwi.signal).double(), torch.from_numpy(dwi.q)
    return rivals.KINDS[kind].make(signal, q, b_values)


def graph_of(dwi: DWI) -> PQGraph:
    return PQGraph.from_grid(dwi.mask, dwi.affine, dwi.q, 0.0)


def test_tensor_maps_are_those_of_dipy(rivals: ModuleType, scan: DWI) -> None:
    one = scan.with_shells([1000.0])
    directions = one.q / np.maximum(np.linalg.norm(one.q, axis=1, keepdims=True), 1e-9)
    model = TensorModel(gradient_table(one.b_values, bvecs=directions), fit_method="WLS")
    fit = model.fit(np.maximum(one.signal.astype(np.float64), rivals.LOWEST))
    expected = np.stack([fit.fa, 1e3 * fit.md, 1e3 * fit.ad, 1e3 * fit.rd], axis=1)
    np.testing.assert_allclose(maps_of(rivals, "tensor", scan), expected, atol=1e-5)


def test_a_tensor_of_all_shells_and_b0(rivals: ModuleType, scan: DWI) -> None:
    contrast = np.random.default_rng(1).uniform(0.3, 2.0, len(scan.b0)).astype(np.float32)
    signal = scan.signal.copy()
    signal[:, 0] = contrast
    found = maps_of(rivals, "tensor and b0", dataclasses.replace(scan, signal=signal), ())
    np.testing.assert_allclose(found[:, 4], np.log(contrast), rtol=1e-5)
    fitted = maps_of(rivals, "tensor", scan, ())
    torch.testing.assert_close(found[:, :4], fitted)
    both = maps_of(rivals, "tensor", scan, (1000, 2000))
    torch.testing.assert_close(fitted, both)
    assert not torch.allclose(fitted, maps_of(rivals, "tensor", scan, (1000,)), atol=1e-2)
    network = rivals.MapConvSegmenter("tensor and b0", b_values=(), widths=(3,)).eval()
    assert reads_b0_contrast(network)
    bright, brighter = (torch.from_numpy(signal) for _ in "ab")
    bright, brighter = bright.clone(), brighter.clone()
    bright[:, 0], brighter[:, 0] = 2.0, 5.0  # as for the equivariant network, it is 2 at most
    torch.testing.assert_close(network(brighter, graph_of(scan)), network(bright, graph_of(scan)))
    few = dataclasses.replace(scan, signal=signal[:, :6], q=scan.q[:6], b_values=scan.b_values[:6])
    with pytest.raises(DWIError, match="a tensor needs b0 and six different directions"):
        maps_of(rivals, "tensor", few, ())
    repeated = dataclasses.replace(scan, q=scan.q[[0, 1, 2, 3, 4, 5, 5] + [1] * (len(scan.q) - 7)])
    with pytest.raises(DWIError, match="a tensor needs b0 and six different directions"):
        maps_of(rivals, "tensor", repeated, ())
    assert not reads_b0_contrast(rivals.MapConvSegmenter("tensor", widths=(3,)))
    with pytest.raises(ValueError, match="harmonics are maps of each shell, and need b-values"):
        rivals.MapConvSegmenter("harmonics", b_values=())


def test_six_directions_on_a_cone_give_a_finite_tensor(rivals: ModuleType, scan: DWI) -> None:
    """A training may draw them from the table of a scanner, such as the vertices of a solid."""
    azimuth = np.linspace(0, 2 * np.pi, 6, endpoint=False)
    cone = np.stack([np.cos(azimuth), np.sin(azimuth), np.full(6, 1.2)], axis=1)
    q = np.concatenate([np.zeros((1, 3)), cone / np.linalg.norm(cone[0])])
    few = dataclasses.replace(scan, q=q, signal=scan.signal[:, :7], b_values=scan.b_values[:7])
    found = maps_of(rivals, "tensor", few, ())
    assert found.isfinite().all()
    assert found[:, 0].max() <= 1
    assert found[:, 1].max() < 30  # not a multiple of the logarithm of noise


def test_harmonics_of_a_head_and_its_table_turn_with_it(rivals: ModuleType, scan: DWI) -> None:
    rotation = rotation_of(3)
    turned = dataclasses.replace(scan, q=scan.q @ rotation.T)
    matrix = representation(o3.Irreps("0e + 2e + 4e"), rotation)
    expected = maps_of(rivals, "harmonics", scan) @ matrix.T
    torch.testing.assert_close(maps_of(rivals, "harmonics", turned), expected, rtol=0, atol=1e-10)
    for kind in ("invariants", "tensor"):
        before, after = (maps_of(rivals, kind, dwi) for dwi in (scan, turned))
        torch.testing.assert_close(after, before, rtol=0, atol=1e-10)


def test_harmonics_give_the_signal_back(rivals: ModuleType) -> None:
    """All but the share of the penalty, for more directions than coefficients or fewer."""
    rng = np.random.default_rng(0)
    for number, error in ((60, 0.02), (12, 0.1)):
        directions = GradientTable.from_shells([1000.0], [number]).directions[1:]
        squares = torch.from_numpy(directions @ rng.normal(size=(3, 1))).square()
        signal = torch.exp(-squares).T
        q = torch.from_numpy(directions)
        fitted = (
            rivals.harmonic_maps(signal, q, B)
            @ torch.cat(
                [o3.spherical_harmonics(l, q, True, "component") for l in rivals.ORDERS], dim=1
            ).T
        )
        assert (fitted - signal).norm() < error * (signal - signal.mean()).norm()


@pytest.mark.parametrize("kind", ["harmonics", "invariants", "tensor"])
def test_maps_are_of_the_shells_that_are_asked_for(
    kind: str, rivals: ModuleType, scan: DWI
) -> None:
    alone = scan.with_shells([1000.0])
    maps = maps_of(rivals, kind, scan)
    torch.testing.assert_close(maps, maps_of(rivals, kind, alone), rtol=0, atol=0)
    both = maps_of(rivals, kind, scan, (1000, 2000))
    assert both.shape[1] == rivals.KINDS[kind].number(2)
    with pytest.raises(DWIError, match=r"a shell near b=2000 s/mm2; the scan has 1000"):
        maps_of(rivals, kind, alone, (1000, 2000))


def test_maps_are_standardised_by_the_first_batches(rivals: ModuleType) -> None:
    noise = torch.randn(5000, 2, generator=torch.Generator().manual_seed(0))
    values = torch.tensor([3.0, -1.0]) + torch.tensor([2.0, 0.1]) * noise
    standardise = rivals.Standardise(2)
    torch.testing.assert_close(standardise.eval()(values / 9), values / 9)  # nothing is known yet
    standardised = standardise.train()(values)
    assert standardised.mean(dim=0).abs().max() < 1e-3
    assert (standardised.std(dim=0) - 1).abs().max() < 1e-2
    assert standardise.eval()(torch.full((1, 2), 1e6)).min() == rivals.Standardise.LIMIT

    standardise = rivals.Standardise(2)
    for _ in range(rivals.Standardise.BATCHES):
        standardise(values)
    before = standardise(values)
    standardise(100 * values)
    torch.testing.assert_close(standardise(values), before, rtol=0, atol=0)


@pytest.mark.parametrize("turn", CUBE["O3"][1::6])
def test_a_turned_box_is_the_box_of_a_turned_head(
    turn: np.ndarray, rivals: ModuleType, scan: DWI, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = rivals.MapConvSegmenter("harmonics", widths=(3,), turned=True).eval()
    expected = network(torch.from_numpy(scan.signal), graph_of(scan))
    monkeypatch.setattr(type(network), "_turn", lambda self: turn.T.astype(np.int64))

    def turned(values: np.ndarray) -> np.ndarray:
        volume = torch.from_numpy(scan.volume(values)[None, None].astype(np.float32))
        return rivals.turn_volume(volume, turn)[0, 0].numpy()

    mask = turned(np.ones(len(scan.b0))) > 0
    head = dataclasses.replace(
        scan,
        mask=mask,
        signal=np.stack([turned(column)[mask] for column in scan.signal.T], axis=1),
        q=scan.q @ turn.T,
        b0=turned(scan.b0)[mask],
    )
    # Turned back in the network, so that the maps and the convolutions are those of the first box.
    found = network(torch.from_numpy(head.signal), graph_of(head))
    torch.testing.assert_close(
        found, torch.from_numpy(turned(expected.detach().numpy())[mask]), rtol=1e-4, atol=1e-5
    )


def test_boxes_are_turned_in_training_alone_and_alike_after_an_interruption(
    rivals: ModuleType, scan: DWI
) -> None:
    network = rivals.MapConvSegmenter("harmonics", widths=(3,), turned=True).train()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    turns = [network._turn() for _ in range(400)]
    assert len({turn.tobytes() for turn in turns}) == 48
    network.load_state_dict(state)
    np.testing.assert_array_equal([network._turn() for _ in range(5)], turns[:5])
    np.testing.assert_array_equal(network.eval()._turn(), np.eye(3))


def test_blocks_of_a_head_are_parts_of_it(rivals: ModuleType, scan: DWI) -> None:
    torch.manual_seed(0)
    network = rivals.MapConvSegmenter(widths=(4,)).eval()
    whole, blocks = (predict_blocks(network, scan, max_voxels=n) for n in (1000, 350))
    np.testing.assert_allclose(blocks, whole, atol=1e-5)


def test_axes_of_a_map_are_those_of_the_grid(rivals: ModuleType, scan: DWI) -> None:
    """So the frame of the world does not matter, in which a head is stored as it is."""
    torch.manual_seed(0)
    network = rivals.MapConvSegmenter("harmonics", widths=(3,)).eval()
    signal = torch.from_numpy(scan.signal)
    affine = scan.affine.copy()
    rotation = rotation_of(5)
    affine[:3, :3] = rotation @ affine[:3, :3]
    moved = dataclasses.replace(scan, affine=affine, q=scan.q @ rotation.T)
    torch.testing.assert_close(
        network(signal, graph_of(moved)), network(signal, graph_of(scan)), rtol=1e-4, atol=1e-5
    )


def test_a_network_on_maps_comes_back_from_a_file(
    rivals: ModuleType, scan: DWI, tmp_path: Path
) -> None:
    network = rivals.MapConvSegmenter("tensor", widths=(3, 2)).train()
    network(torch.from_numpy(scan.signal), graph_of(scan))
    save_network(network, tmp_path / "network.safetensors")
    again = load_network(tmp_path / "network.safetensors")
    signal, graph = torch.from_numpy(scan.signal), graph_of(scan)
    torch.testing.assert_close(again(signal, graph), network.eval()(signal, graph))


def test_what_a_network_on_maps_cannot_take_is_named(rivals: ModuleType, scan: DWI) -> None:
    with pytest.raises(ValueError, match="there are no maps 'colours', only harmonics"):
        rivals.MapConvSegmenter("colours")
    points = PQGraph.from_points(scan.voxel_centres(), scan.q, 3.6)
    with pytest.raises(ValueError, match="from_grid"):
        rivals.MapConvSegmenter(widths=(2,))(torch.from_numpy(scan.signal), points)


def test_a_segresnet_takes_heads_of_any_size(rivals: ModuleType, scan: DWI) -> None:
    pytest.importorskip("monai", reason="the extra bench")
    network = rivals.MapResNetSegmenter("harmonics", filters=8, blocks=(1, 1, 1), turned=True)
    odd = np.zeros_like(scan.mask)
    odd[:-1, 1:, :] = True
    part = dataclasses.replace(
        scan,
        mask=scan.mask & odd,
        signal=scan.signal[odd[scan.mask]],
        b0=scan.b0[odd[scan.mask]],
    )
    logits = network(torch.from_numpy(part.signal), graph_of(part))
    assert logits.shape == part.b0.shape
    logits.sum().backward()
    assert all(weights.grad is not None for weights in network.parameters())


def test_without_monai_its_networks_are_named_and_left_out(
    rivals: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paper.plan import QUICK
    from paper.schedule import installed, tuning_runs

    for name in [name for name in sys.modules if name.split(".")[0] == "monai"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(ValueError, match=r"not installed: pip install 'tripq\[bench\]'"):
        rivals.MapResNetSegmenter()
    monkeypatch.setattr("paper.plan.find_spec", lambda package: None)
    plan = installed(QUICK)
    assert plan.families == (
        "equivariant",
        "reference",
        "equivariant, sums",
        "invariant maps",
        "tensor maps",
    )
    assert not any(run.contender.startswith("seg-") for run in tuning_runs(plan))
