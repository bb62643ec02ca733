"""Starting from a file: what is taken is that of the file, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.tasks.fibres.conftest import scaled_head
from tests.training.test_training import labelled_scan
from tripq import PQGraph
from tripq.filters.radial import Radial
from tripq.networks import ConvSegmenter, Encoder, PaperSegmenter, VoxelNetwork, save_network
from tripq.networks.checkpoint import CheckpointError
from tripq.networks.harmonics import HarmonicFit
from tripq.networks.start import start_from
from tripq.nn import Residual
from tripq.nn.layer import PQTensorFieldLayer
from tripq.tasks.fibres.network import FibreNetwork
from tripq.tasks.fibres.task import FibreTask
from tripq.tasks.lesions.segmenter import LesionSegmenter
from tripq.tasks.lesions.task import LesionTask
from tripq.tasks.signal.encoder import SignalEncoder
from tripq.tasks.signal.network import SignalPredictor
from tripq.tasks.signal.task import SignalTask
from tripq.training import Budget, PatchDataModule, train

SMALL: dict[str, Any] = {
    "p_radius": 3.0,
    "q_features": "3x0e + 2x2e",
    "p_features": "3x0e + 1x1o + 1x2e",
    "n_p_layers": 1,
}
SHELL: dict[str, Any] = {"p_radius": 5.0, "p_features": "4x0e + 2x2e", "n_p_layers": 1}

Q = np.concatenate([np.zeros((1, 3)), np.eye(3)])
GRAPH = PQGraph.from_grid(np.ones((4, 4, 4)), np.diag([2.0, 2, 2, 1]), Q, radius=3.0)
SIGNAL = torch.rand(64, 4, generator=torch.Generator().manual_seed(0))


def trained(network: nn.Module, seed: int = 1) -> nn.Module:
    """No tensor has its initial value, and statistics are those of no data."""
    torch.manual_seed(seed)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    return network.eval()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "start.safetensors"


def features(network: Encoder) -> torch.Tensor:
    return Encoder.forward(network.eval(), SIGNAL, GRAPH)


@pytest.mark.parametrize("normalize", ["local", "scan", "batch", "none"])
def test_the_same_network_gives_the_same_output(normalize: str, file: Path) -> None:
    source = trained(LesionSegmenter(**SMALL, normalize=normalize))
    save_network(source, file, {"data": "some scans"})
    network = LesionSegmenter(**SMALL, normalize=normalize).eval()
    taken = start_from(network, file)
    assert torch.equal(network(SIGNAL, GRAPH), source(SIGNAL, GRAPH))
    assert taken.whole
    assert taken.modules == (network,)
    assert taken.notes["data"] == "some scans"
    assert taken.summary == "all weights"


@pytest.mark.parametrize("normalize", ["local", "scan", "batch", "none"])
def test_another_network_has_the_same_features_and_its_own_head(normalize: str, file: Path) -> None:
    source = trained(SignalEncoder(**SMALL, normalize=normalize))
    save_network(source, file)
    network = LesionSegmenter(**SMALL, normalize=normalize)
    head = {name: tensor.clone() for name, tensor in network.head.state_dict().items()}
    taken = start_from(network, file)
    assert torch.equal(features(network), features(source))
    for name, tensor in network.head.state_dict().items():
        assert torch.equal(tensor, head[name])
    assert set(taken.new) == {f"head.{name}" for name in head}
    assert {*taken.tensors, *taken.new} == {*network.state_dict()}
    assert taken.summary == "the encoder; head starts anew"


def test_another_output_of_the_same_class_starts_anew(file: Path) -> None:
    save_network(trained(VoxelNetwork("3x0e", **SMALL)), file)
    assert start_from(VoxelNetwork("4x0e", **SMALL), file).summary.startswith("the encoder")


def test_the_order_of_writing_features_does_not_matter(file: Path) -> None:
    save_network(LesionSegmenter(**SMALL), file)
    spaceless = {**SMALL, "q_features": "3x0e+2x2e"}
    assert start_from(LesionSegmenter(**spaceless), file).whole


def test_a_network_without_an_encoder_is_taken_as_a_whole(file: Path) -> None:
    source = trained(ConvSegmenter(4, widths=(3, 2)))
    save_network(source, file)
    network = ConvSegmenter(4, widths=(3, 2)).eval()
    assert start_from(network, file).whole
    assert torch.equal(network(SIGNAL, GRAPH), source(SIGNAL, GRAPH))


class Along(nn.Module):
    """A network of one's own around an encoder; see docs/your-network.md."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder(**SMALL)
        self.head = PQTensorFieldLayer(
            self.encoder.irreps_out, "1x0e", 0.0, q_in=None, q_out="graph", filter="q"
        )

    def forward(self, signal: torch.Tensor, graph: PQGraph) -> torch.Tensor:
        return self.head(self.encoder(signal, graph), graph)[..., 0]


def test_an_encoder_inside_a_network_of_ones_own_is_found(file: Path) -> None:
    source = trained(Encoder(**SMALL))
    save_network(source, file)
    network = Residual(HarmonicFit(), Along())
    taken = start_from(network, file)
    assert torch.equal(features(network.network.encoder), features(source))
    assert taken.modules == (network.network.encoder.blocks,)
    assert taken.summary == "the encoder; size, network.head start anew"


def test_shells_are_taken_with_their_scales(file: Path) -> None:
    source = trained(FibreNetwork(**SHELL, channels=3))
    save_network(source, file)
    network = FibreNetwork(**SHELL)
    taken = start_from(network, file)
    dwi = scaled_head(0).dwi
    signal = torch.from_numpy(dwi.signal)
    graph = PQGraph.from_grid(dwi.mask, dwi.affine, dwi.q, 5.0)
    ((scan, _),) = graph.by_scan(signal)

    def layers(one: Any) -> torch.Tensor:
        return one.blocks[0](one._features_of(signal, scan)[:, one._taken], graph)

    assert torch.equal(layers(network), layers(source))
    assert {"mean", "size", "noise"} < set(taken.tensors)


@pytest.mark.parametrize(
    ("source", "network", "message"),
    [
        (
            LesionSegmenter(**SMALL),
            LesionSegmenter(**{**SMALL, "n_p_layers": 2}),
            "its encoder has n_p_layers = 1, and this network 2",
        ),
        (
            LesionSegmenter(**SMALL),
            VoxelNetwork(**{**SMALL, "q_features": "3x0e"}),
            'has q_features = "3x0e + 2x2e", and this network "3x0e"',
        ),
        (
            LesionSegmenter(**SMALL, p_radial=Radial("gaussian", 3)),
            LesionSegmenter(**SMALL),
            "has p_radial = Radial(kind='gaussian', number=3",
        ),
        (
            SignalPredictor(**SHELL),
            LesionSegmenter(**SMALL),
            "its SignalPredictor is of the kind ShellNetwork, and this network needs one of the "
            "kind Encoder",
        ),
        (
            SignalPredictor(**SHELL),
            FibreNetwork(**SHELL),
            "its SignalPredictor is of the kind ShellNetwork, and this network needs one of the "
            "kind FibreNetwork",
        ),
        (
            ConvSegmenter(4, widths=(3,)),
            LesionSegmenter(**SMALL),
            "a ConvSegmenter has no encoder, and this network needs one of the kind Encoder",
        ),
        (
            ConvSegmenter(4, widths=(3,)),
            ConvSegmenter(4, widths=(3, 3)),
            "holds a ConvSegmenter with widths = (3,), not (3, 3); a ConvSegmenter has no encoder",
        ),
        (
            LesionSegmenter(**SMALL),
            PaperSegmenter(),
            "holds a LesionSegmenter; a PaperSegmenter has no encoder",
        ),
    ],
)
def test_what_differs_is_named_and_nothing_is_taken(
    source: nn.Module, network: nn.Module, message: str, file: Path
) -> None:
    save_network(source, file)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        start_from(network, file)
    assert str(error.value).startswith(f"{file}: ")
    assert message in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


# -- initial weights -----------------------------------------------------------------------------


def test_only_the_head_is_initialised(file: Path) -> None:
    scan, task = labelled_scan(0), LesionTask()
    source = trained(SignalEncoder(**SMALL))
    save_network(source, file)
    network = LesionSegmenter(**SMALL)
    taken = start_from(network, file)
    batch = PatchDataModule([scan], task, radius=3.0, box_size=12).first()
    task.initialise(network.train(), batch, taken.modules)
    for name, tensor in source.blocks.state_dict().items():
        assert torch.equal(network.blocks.state_dict()[name], tensor)
    logits = network(batch.signal, batch.graph).detach()
    bias = float(network.head.bias.detach())  # type: ignore[union-attr]
    assert float((logits - bias).square().mean().sqrt()) == pytest.approx(1, rel=1e-4)
    share = float(batch.target.mean())
    assert torch.sigmoid(torch.tensor(bias)) == pytest.approx(share, abs=0.01)


def test_scales_of_shells_are_kept(file: Path) -> None:
    scan = scaled_head(0)
    for source, one, its in (
        (FibreNetwork(**SHELL, channels=3), FibreNetwork(**SHELL), FibreTask()),
        (SignalPredictor(**SHELL), SignalPredictor(**SHELL), SignalTask()),
    ):
        save_network(trained(source), file)
        taken = start_from(one, file)
        scales = [float(value) for value in (one.mean, one.noise, *one.size)]
        batch = PatchDataModule([scan], its, radius=5.0, box_size=6).first()
        its.initialise(one, batch, taken.modules)
        assert [float(value) for value in (one.mean, one.noise, *one.size)] == scales
        if isinstance(one, FibreNetwork):
            assert any(bool(weight.detach().any()) for weight in one.start)  # solved


def test_training_begins_with_what_was_taken(file: Path) -> None:
    """With a rate that changes nothing, the weights afterwards are those of the file."""
    scans = [labelled_scan(0), labelled_scan(1)]
    for source in (trained(LesionSegmenter(**SMALL)), trained(SignalEncoder(**SMALL))):
        save_network(source, file)
        network = LesionSegmenter(**SMALL)
        taken = start_from(network, file)
        patches = PatchDataModule(scans, LesionTask(), radius=3.0, box_size=8)
        train(network, patches, Budget(steps=1), learning_rate=1e-30, kept=taken.modules)
        found, expected = network.state_dict(), source.state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in taken.tensors)
        assert taken.whole == isinstance(source, LesionSegmenter)


def test_more_training_goes_on_where_the_first_ended(file: Path) -> None:
    scans = [labelled_scan(0), labelled_scan(1)]
    patches = PatchDataModule(scans, LesionTask(), radius=3.0, box_size=8, n_boxes=2)
    torch.manual_seed(0)
    first = LesionSegmenter(**SMALL)
    before = train(first, patches, Budget(steps=25), learning_rate=2e-2)
    save_network(first, file)
    network = LesionSegmenter(**SMALL)
    taken = start_from(network, file)
    again = train(network, patches, Budget(steps=5), learning_rate=1e-3, kept=taken.modules)
    assert max(again.losses) < 0.8 * before.losses[0]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    network = LesionSegmenter(**SMALL)
    with pytest.raises(CheckpointError, match="no such file"):
        start_from(network, tmp_path / "none")
    (tmp_path / "text").write_text("no network")
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        start_from(network, tmp_path / "text")
