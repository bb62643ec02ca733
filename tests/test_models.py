from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from e3nn import o3

from tripq import PQGraph
from tripq.dwi import read_dwi
from tripq.layer import PQTensorFieldLayer
from tripq.models import ConvSegmenter, LesionSegmenter
from tripq.nn import scale_initial_weights

NETWORKS = {
    "default": LesionSegmenter,
    "paper": lambda: LesionSegmenter.paper(p_radius=3.6),
    "paper, mean": lambda: LesionSegmenter.paper(p_radius=3.6, q_reduction="mean"),
    "paper, layer": lambda: LesionSegmenter.paper(p_radius=3.6, q_reduction="layer"),
}
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def table(n: int, seed: int = 0) -> np.ndarray:
    directions = np.random.default_rng(seed).normal(size=(n, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return np.concatenate([np.zeros((1, 3)), directions])


def cloud(n: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(0, 9, size=(n, 3)))


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def ready(name: str, signal: torch.Tensor, graph: PQGraph) -> torch.nn.Module:
    """A network with weights of the size they have at the start of training."""
    torch.manual_seed(3)
    network = NETWORKS[name]().to(signal.dtype)
    scale_initial_weights(network, signal, graph)
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
def test_logits_do_not_change_when_voxels_and_directions_rotate_together(name, dtype, bound):
    p, q = cloud(20), torch.from_numpy(table(5))
    signal = torch.rand(20, 6, dtype=dtype)
    graph = PQGraph.from_points(p, q, radius=3.6)
    network = ready(name, signal, graph)
    rotation = o3.rand_matrix(dtype=torch.float64)
    rotated = PQGraph.from_points(p @ rotation.T + 7.0, q @ rotation.T, radius=3.6)
    assert relative_error(network(signal, rotated), network(signal, graph)) < bound


@pytest.mark.parametrize("name", ["default", "paper"])
def test_rotations_of_the_grid_permute_the_logits(name):
    """All 24 rotations of the cube, as a scanner would store a turned head: another array."""
    rng = np.random.default_rng(1)
    mask = rng.random((4, 3, 3)) > 0.3
    volume = torch.from_numpy(rng.random((*mask.shape, 5)))
    q = table(4)
    graph = PQGraph.from_grid(mask, AFFINE, q, radius=3.6)
    signal = volume[torch.from_numpy(mask)]
    network = ready(name, signal, graph)
    logits = torch.zeros(mask.shape, dtype=torch.float64)
    logits[torch.from_numpy(mask)] = network(signal, graph).detach()
    seen = 0
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            matrix = np.zeros((3, 3))
            matrix[range(3), axes] = signs
            if np.linalg.det(matrix) < 0:
                continue
            flips = [i for i in range(3) if signs[i] < 0]

            def turn(array, axes=axes, flips=flips):
                rest = range(3, array.ndim)
                return torch.flip(torch.as_tensor(array).permute(*axes, *rest), flips)

            turned_mask = turn(mask)
            turned = PQGraph.from_grid(turned_mask.numpy(), AFFINE, q @ matrix.T, radius=3.6)
            result = network(turn(volume)[turned_mask], turned)
            assert relative_error(result, turn(logits)[turned_mask]) < 1e-11
            seen += 1
    assert seen == 24


def test_signs_of_directions_do_not_matter_to_the_default_network():
    q = table(8)
    signs = np.random.default_rng(2).choice([-1, 1], size=(9, 1))
    p, signal = cloud(15), torch.rand(15, 9, dtype=torch.float64)
    graph = PQGraph.from_points(p, q, radius=3.6)
    network = ready("default", signal, graph)
    flipped = network(signal, PQGraph.from_points(p, q * signs, radius=3.6))
    assert relative_error(flipped, network(signal, graph)) < 1e-11


@pytest.mark.parametrize("name", NETWORKS)
def test_one_set_of_weights_serves_any_table_and_a_batch_of_them(name):
    scans = [
        (torch.rand(27, n + 1), PQGraph.from_grid(np.ones((3, 3, 3)), AFFINE, table(n), 3.6))
        for n in (5, 9)
    ]
    network = ready(name, *scans[0])
    batch = PQGraph.merge([graph for _, graph in scans])
    together = network(batch.stack([signal for signal, _ in scans]), batch)
    apart = torch.cat([network(*scan) for scan in scans])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_batch_norm_does_not_see_the_padding():
    scans = [
        (torch.rand(27, n + 1), PQGraph.from_grid(np.ones((3, 3, 3)), AFFINE, table(n), 3.6))
        for n in (3, 9)
    ]
    network = ready("paper", *scans[0])
    for block in network.modules():
        if hasattr(block, "momentum"):
            block.momentum = 1.0
    batch = PQGraph.merge([graph for _, graph in scans])
    network.train()
    network(batch.stack([signal for signal, _ in scans]), batch)
    counted = torch.cat(
        [network.pq_block.layer(s[..., None], g).flatten(0, 1)[:, 0] for s, g in scans]
    )
    torch.testing.assert_close(network.pq_block.norm.running_mean[0], counted.mean())


@pytest.mark.parametrize("name", NETWORKS)
def test_state_holds_no_geometry(name):
    """The same names and shapes, whatever graph the network has seen."""
    network = NETWORKS[name]()
    before = {key: value.shape for key, value in network.state_dict().items()}
    for n in (3, 9):
        graph = PQGraph.from_grid(np.ones((3, 3, 3)), AFFINE, table(n), 3.6)
        network(torch.rand(27, n + 1), graph)
    assert {key: value.shape for key, value in network.state_dict().items()} == before


def test_conv_segmenter_sees_each_patch_alone_and_only_its_mask():
    rng = np.random.default_rng(0)
    masks = [rng.random((5, 5, 5)) > 0.4 for _ in range(2)]
    graphs = [PQGraph.from_grid(m, AFFINE, table(3), 3.6) for m in masks]
    signals = [torch.rand(g.n_voxels, 4) for g in graphs]
    network = ConvSegmenter(4, widths=(6,)).eval()
    together = network(torch.cat(signals), PQGraph.merge(graphs))
    apart = torch.cat([network(s, g) for s, g in zip(signals, graphs, strict=True)])
    torch.testing.assert_close(together, apart)
    volume = torch.zeros(1, 4, 5, 5, 5)
    volume[0, :, masks[0]] = signals[0].T
    expected = network.layers(volume)[0, 0, masks[0]]
    torch.testing.assert_close(apart[: len(expected)], expected)


@pytest.mark.parametrize("network", [LesionSegmenter(), LesionSegmenter.paper(), ConvSegmenter(4)])
def test_networks_name_types_that_do_not_go_together(network):
    q = np.concatenate([np.zeros((1, 3)), np.eye(3)])
    graph = PQGraph.from_grid(np.ones((4, 4, 4)), np.diag([2.0, 2, 2, 1]), q, radius=5.0)
    signal = torch.rand(64, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"are torch.float64, but the weights are torch.float32"):
        network(signal.double(), graph)
    # Integers become float32 where the signal is bounded, or are named.
    if isinstance(network, ConvSegmenter):
        with pytest.raises(ValueError, match=r"are torch.int64, not real numbers"):
            network(signal.long(), graph)


@pytest.mark.parametrize("name", ["default", "paper"])
def test_networks_in_half_precision(name):
    q = np.concatenate([np.zeros((1, 3)), np.eye(3)])
    graph = PQGraph.from_grid(np.ones((4, 4, 4)), np.diag([2.0, 2, 2, 1]), q, radius=5.0)
    torch.manual_seed(0)
    network = LesionSegmenter() if name == "default" else LesionSegmenter.paper()
    signal = torch.rand(64, 4)
    exact = network(signal, graph)
    rounded = network.bfloat16()(signal.bfloat16(), graph)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() < 0.1 * exact.norm()  # some layers, 2**-8 each


def test_conv_segmenter_says_what_it_cannot_take():
    network = ConvSegmenter(4)
    grid = PQGraph.from_grid(np.ones((2, 2, 2)), AFFINE, table(4), 3.6)
    with pytest.raises(ValueError, match="made for 4 directions"):
        network(torch.rand(8, 5), grid)
    points = PQGraph.from_points(cloud(8), table(3), 3.6)
    with pytest.raises(ValueError, match="from_grid"):
        network(torch.rand(8, 4), points)


def test_features_of_the_default_network_on_a_real_scan_are_of_order_one(shared_data, capsys):
    folder = shared_data / "real_dwi" / "tractseg_example"
    dwi = read_dwi(
        folder / "Diffusion.nii.gz",
        folder / "Diffusion.bvals",
        folder / "Diffusion.bvecs",
        folder / "nodif_brain_mask.nii.gz",
    )
    box = np.zeros(dwi.mask.shape, bool)
    box[25:41, 30:46, 25:41] = True
    inside = box[dwi.mask]
    graph = PQGraph.from_grid(dwi.mask & box, dwi.affine, dwi.q, radius=3.6)
    signal = torch.from_numpy(np.asarray(dwi.signal)[inside])
    torch.manual_seed(0)
    network = LesionSegmenter()
    rows = [("as drawn", _layer_sizes(network, signal, graph))]
    scale_initial_weights(network, signal, graph)
    rows.append(("scaled on the first batch", _layer_sizes(network, signal, graph)))
    with capsys.disabled():
        for label, sizes in rows:
            text = "  ".join(f"{key} {value:.2f}" for key, value in sizes.items())
            print(f"\nroot mean square of the features, weights {label}: {text}", end="")
        print()
    for _, sizes in rows:
        assert all(0.1 < size < 10 for size in sizes.values())


def _layer_sizes(
    network: torch.nn.Module, signal: torch.Tensor, graph: PQGraph
) -> dict[str, float]:
    sizes: dict[str, float] = {}
    hooks = [
        module.register_forward_hook(
            lambda _m, _i, output, name=name: sizes.__setitem__(
                name, output.detach().square().mean().sqrt().item()
            )
        )
        for name, module in network.named_modules()
        if isinstance(module, PQTensorFieldLayer)
    ]
    network(signal, graph)
    for hook in hooks:
        hook.remove()
    return sizes
