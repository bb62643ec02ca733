"""An exported network gives what the network gives, without tripq."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from tripq import PQGraph, PQTensorFieldLayer
from tripq.networks.blocks import graph_radius
from tripq.networks.encoder import Encoder, VoxelNetwork
from tripq.networks.export import export_network, voxel_tables
from tripq.networks.paper import PaperSegmenter
from tripq.tasks.lesions.segmenter import LesionSegmenter

# Oblique, of three edge lengths, and mirrored: the axes of the file are not those of the world.
AFFINE = np.eye(4)
AFFINE[:3, :3] = Rotation.random(random_state=0).as_matrix() @ np.diag([2.0, -1.8, 2.4])
AFFINE[:3, 3] = (7, -3, 1)
SHEARED = np.array([[0, -2.0, 0.3, 7], [1.8, 0, 0, -3], [0, 0.2, 2.4, 1], [0, 0, 0, 1]])
Q = np.concatenate([np.zeros((1, 3)), np.random.default_rng(0).normal(size=(7, 3)) / 2])


@pytest.fixture(scope="module")
def network() -> LesionSegmenter:
    torch.manual_seed(0)
    network = LesionSegmenter(
        p_radius=3.0, q_features="4x0e + 2x2e + 1x4e", p_features="4x0e + 2x1o + 1x2e", n_p_layers=1
    )
    graph = PQGraph.from_grid(np.ones((6, 6, 6)), AFFINE, Q, 3.0)
    network(torch.rand(216, len(Q)), graph)  # so that batch norms have something to say
    return network.eval()


@pytest.fixture(scope="module")
def before(network: LesionSegmenter) -> dict[str, Tensor]:
    """The weights before the network is exported."""
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.fixture(scope="module")
def program(network: LesionSegmenter, before: dict[str, Tensor]) -> ExportedProgram:
    return export_network(network, Q, AFFINE)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 4, 3), (9, 8, 10)])
def test_any_mask_has_the_logits_of_the_network(
    network: LesionSegmenter, program: ExportedProgram, shape: tuple[int, int, int]
) -> None:
    mask = np.random.default_rng(1).random(shape) < 0.7
    mask[0, 0, 0] = True
    signal = torch.rand(int(mask.sum()), len(Q))
    with torch.no_grad():
        expected = network(signal, PQGraph.from_grid(mask, AFFINE, Q, network.p_radius))
        found = program.module()(signal, *voxel_tables(network, mask, AFFINE))
    # float32, sums of some thousand terms in another order
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    assert len(mask.nonzero()[0]) == 1 or expected.std() > 0.01


def test_a_saved_program_has_operators_of_torch_alone(
    network: LesionSegmenter, program: ExportedProgram, tmp_path: Path
) -> None:
    mask = np.ones((4, 3, 5), dtype=bool)
    arguments = torch.rand(60, len(Q)), *voxel_tables(network, mask, AFFINE)
    torch.export.save(program, tmp_path / "network.pt2")
    loaded = torch.export.load(tmp_path / "network.pt2").module()
    torch.testing.assert_close(loaded(*arguments), program.module()(*arguments))
    targets = [
        node.target
        for part in loaded.modules()
        if isinstance(part, GraphModule)
        for node in part.graph.nodes
        if node.op == "call_function"
    ]
    assert len(targets) > 100
    assert {getattr(f, "namespace", f.__module__) for f in targets} <= {"aten", "_operator"}


@pytest.mark.exhaustive
def test_a_saved_program_runs_without_tripq(
    network: LesionSegmenter, program: ExportedProgram, tmp_path: Path
) -> None:
    mask = np.ones((4, 3, 5), dtype=bool)
    arguments = torch.rand(60, len(Q)), *voxel_tables(network, mask, AFFINE)
    torch.export.save(program, tmp_path / "network.pt2")
    torch.save(arguments, tmp_path / "in.pt")
    script = (
        "import sys, torch; program = torch.export.load('network.pt2').module(); "
        "torch.save(program(*torch.load('in.pt')).detach(), 'out.pt'); "
        "assert not [name for name in sys.modules if name.split('.')[0] in ('tripq', 'e3nn')]"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=300)
    with torch.no_grad():
        expected = network(arguments[0], PQGraph.from_grid(mask, AFFINE, Q, network.p_radius))
    found = torch.load(tmp_path / "out.pt")
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_exporting_leaves_the_network_as_it_was(
    network: LesionSegmenter, before: dict[str, Tensor], program: ExportedProgram
) -> None:
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not network.training


#: A network without statistics of surroundings.
BATCH = {"q_features": "4x0e + 2x2e", "p_features": "4x0e", "n_p_layers": 1, "normalize": "batch"}


class VectorsAndMean(nn.Module):
    """An encoder with a head of one's own, which looks further than the encoder does."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder(
            p_radius=3.0, q_features="3x0e + 2x2e", p_features="3x0e + 1x1o", n_p_layers=1
        )
        self.head = PQTensorFieldLayer(
            self.encoder.irreps_out, "2x1o", 4.0, q_in=None, quadrature="sum"
        )
        self.scale = nn.Linear(self.encoder.irreps_out[0].mul, 1)

    def forward(self, signal: Tensor, graph: PQGraph) -> Tensor:
        """Shape (V, 2, 3)."""
        features = self.encoder(signal, graph)
        scale = self.scale(features[:, : self.scale.in_features])
        return self.head(features, graph).unflatten(1, (2, 3)) * scale[..., None]


@pytest.mark.parametrize(
    ("make", "affine"),
    [
        (VectorsAndMean, AFFINE),
        (lambda: VoxelNetwork("2x0e + 1x1o", n_p_layers=0), AFFINE),
        (lambda: VoxelNetwork("1x0e", **BATCH), SHEARED),
    ],
)
def test_an_encoder_with_any_head_can_be_exported(
    make: Callable[[], nn.Module], affine: NDArray[np.float64]
) -> None:
    torch.manual_seed(2)
    other = make().eval()
    exported = export_network(other, Q, affine)
    mask = np.random.default_rng(1).random((5, 4, 4)) < 0.7
    signal = torch.rand(int(mask.sum()), len(Q))
    with torch.no_grad():
        expected = other(signal, PQGraph.from_grid(mask, affine, Q, graph_radius(other)))
        found = exported.module()(signal, *voxel_tables(other, mask, affine))
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    assert (expected.std(dim=0) > 1e-3 * expected.abs().max()).all()


class UsesVoxels(Encoder):
    """A network with a part of its own that looks at the graph."""

    def forward(self, signal: Tensor, graph: PQGraph) -> Tensor:
        """Features of the voxels, over how many there are."""
        return super().forward(signal, graph) / graph.n_voxels


def test_other_networks_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"PaperSegmenter: its layer pq_block\.layer has an output"):
        export_network(PaperSegmenter(), Q, AFFINE)
    reduces = PQTensorFieldLayer(
        "1x0e", "1x0e", 0.0, q_in=None, self_interaction=True, quadrature="sum"
    )
    with pytest.raises(TypeError, match="PQTensorFieldLayer has a self-interaction"):
        export_network(reduces, Q, AFFINE)
    with pytest.raises(TypeError, match=r"uses graph\.n_voxels"):
        export_network(UsesVoxels(n_p_layers=0), Q, AFFINE)
    with pytest.raises(ValueError, match="the axes of the voxels are not orthogonal"):
        export_network(LesionSegmenter(), Q, SHEARED)
    with pytest.raises(ValueError, match="q must have the shape"):
        export_network(LesionSegmenter(), [1.0, 0, 0], AFFINE)
    with pytest.raises(ValueError, match="singular"):
        export_network(LesionSegmenter(), Q, np.zeros((4, 4)))
