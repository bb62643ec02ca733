from __future__ import annotations

import copy

import e3nn.nn
import numpy as np
import pytest
import torch
from e3nn import o3

from tests.strategies import representation, rotation_of
from tripq import PQGraph, PQTensorFieldLayer
from tripq.nn import (
    BatchNorm,
    Block,
    GatedNonlinearity,
    NormsAsScalars,
    QLengthWeightedMean,
    QMean,
    scale_initial_weights,
)

TABLE = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1.2, 0], [0, 0.6, 0.8]])


def random_graph(seed: int = 0, q: torch.Tensor = TABLE) -> PQGraph:
    p = torch.from_numpy(np.random.default_rng(seed).uniform(0, 6, size=(7, 3)))
    return PQGraph.from_points(p, q, radius=4.0)


@pytest.mark.parametrize("part", [GatedNonlinearity, NormsAsScalars])
def test_parts_commute_with_rotations_and_reflections(part):
    module = part("3x0e + 2x1o + 1x1e + 2x2e").double()
    x = torch.randn(20, module.irreps_in.dim, dtype=torch.float64)
    rotation = -o3.rand_matrix(dtype=torch.float64)
    d_in = module.irreps_in.D_from_matrix(rotation)
    d_out = module.irreps_out.D_from_matrix(rotation)
    torch.testing.assert_close(module(x @ d_in.T), module(x) @ d_out.T, rtol=1e-11, atol=1e-11)


def test_norms_of_zero_features_have_no_slope_and_are_zero():
    module = NormsAsScalars("1x0e + 2x1o")
    x = torch.zeros(1, 7, requires_grad=True)
    y = module(x)
    assert (y == 0).all()
    y.sum().backward()
    assert torch.equal(x.grad, torch.tensor([[1.0] * 7]))  # the features themselves pass through


def test_norms_are_lengths():
    module = NormsAsScalars("1x0e + 1x1o")
    assert module(torch.tensor([[5.0, 0, 3, 4]]))[0, -1].item() == pytest.approx(5, abs=2e-4)


@pytest.mark.parametrize("irreps", ["3x0e + 2x0e + 2x1o + 1x2e", "2x0e", "2x1o"])
def test_the_gate_is_that_of_e3nn(irreps):
    module = GatedNonlinearity(irreps).double()
    scalars = [(mul, ir) for mul, ir in module.irreps_out if ir.l == 0]
    gated = [(mul, ir) for mul, ir in module.irreps_out if ir.l > 0]
    reference = e3nn.nn.Gate(
        o3.Irreps(scalars), [torch.nn.functional.silu for _ in scalars],
        o3.Irreps([(mul, "0e") for mul, _ in gated]), [torch.sigmoid for _ in gated],
        o3.Irreps(gated),
    ).double()  # fmt: skip
    assert reference.irreps_in.simplify() == module.irreps_in
    x = torch.randn(20, module.irreps_in.dim, dtype=torch.float64)
    torch.testing.assert_close(module(x), reference(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("irreps", ["3x0e + 2x1o + 2x0o + 1x2e + 1x0e", "2x0e", "2x1o"])
@pytest.mark.parametrize("shape", [(28,), (7, 4)])
def test_batch_norm_is_that_of_e3nn(irreps, shape):
    graph = random_graph()
    ours, reference = BatchNorm(irreps).double(), e3nn.nn.BatchNorm(irreps).double()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_()
    reference.load_state_dict(ours.state_dict())
    for training in (True, True, False):
        x = 3 * torch.randn(*shape, ours.irreps.dim, dtype=torch.float64) + 1
        results = []
        for module in (ours, reference):
            leaf = x.clone().requires_grad_()
            y = module.train(training)(leaf, *([graph] if module is ours else []))
            leaves = [leaf, *module.parameters()]
            gradients = torch.autograd.grad(y.pow(3).sum(), leaves, materialize_grads=True)
            results.append([y, *gradients, *module.buffers()][: len(gradients) + 3])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("instance", [True, False])
def test_batch_norm_is_in_full_precision_under_autocast(instance):
    """Outputs, gradients and the kept statistics are the same to the last bit."""
    graph = random_graph()
    x = 3 * torch.randn(7, 4, 10) + 1
    results = []
    for enabled in (True, False):
        torch.manual_seed(0)
        module = BatchNorm("2x0e + 1x1o + 1x2e", instance=instance)
        values = []
        for training in (True, False):
            leaf = x.clone().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                y = module.train(training)(leaf, graph)
            values += [y, *torch.autograd.grad(y.pow(3).sum(), [leaf, *module.parameters()])]
        results.append([*values, *module.buffers()])
    for a, b in zip(*results, strict=True):
        assert a.equal(b)


def padded_batch() -> tuple[list[PQGraph], PQGraph]:
    """Three scans with different numbers of directions, and all of them as one."""
    scans = [random_graph(seed, TABLE[:n]) for seed, n in enumerate((2, 4, 3))]
    return scans, PQGraph.merge(scans)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_does_not_count_padding(training):
    """Statistics, outputs and gradients are those of the features without it."""
    scans, batch = padded_batch()
    irreps = "2x0e + 1x1o + 1x2e"
    xs = [3 * torch.randn(7, len(scan.scans[0].q.q_in), 10).double() + 1 for scan in scans]
    results = []
    for padded in (True, False):
        torch.manual_seed(0)
        module = BatchNorm(irreps).double().train(training)
        leaves = [x.clone().requires_grad_() for x in xs]
        if padded:
            y = module(batch.stack(leaves), batch)
            ys = [part[:, : x.shape[1]] for part, x in zip(y.split(7), xs, strict=True)]
            for part, x in zip(y.split(7), xs, strict=True):
                assert (part[:, x.shape[1] :] == 0).all()
        else:
            rows = module(torch.cat([x.flatten(0, 1) for x in leaves]), random_graph())
            ys = list(rows.split([7 * x.shape[1] for x in xs]))
        y = torch.cat([part.reshape(-1, 10) for part in ys])
        gradients = torch.autograd.grad(
            y.pow(3).sum(), [*leaves, *module.parameters()], materialize_grads=True
        )
        results.append([y, *gradients, module.running_mean, module.running_var])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("window", [np.inf, 1e7], ids=["scan", "wide"])
@pytest.mark.parametrize("training", [True, False])
def test_instance_norm_is_that_of_e3nn_in_every_scan(training, window):
    """Whatever scans are beside it in a batch, and however many directions they have."""
    scans, batch = padded_batch()
    irreps = "2x0e + 1x1o + 1x2e"
    ours = BatchNorm(irreps, instance=True, window=window).double().train(training)
    reference = e3nn.nn.BatchNorm(irreps, instance=True).double().train(training)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_()
    reference.load_state_dict(ours.state_dict())
    xs = [
        (i + 1) * torch.randn(7, len(s.scans[0].q.q_in), 10).double() for i, s in enumerate(scans)
    ]
    ys = ours(batch.stack(xs), batch)
    for x, y in zip(xs, batch.split(ys), strict=True):
        expected = reference(x.reshape(1, -1, 10)).reshape(x.shape)
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["maps", "directions", "nodes"])
def test_instance_norm_has_the_statistics_of_the_surroundings(kind):
    """In evaluation mode: means and mean squares with the weights of the window, by hand."""
    sigma = 4.0
    rng = np.random.default_rng(0)
    p = rng.uniform(0, 15, (12, 3))
    voxels = rng.permutation(np.repeat(np.arange(12), 3)) if kind == "nodes" else None
    if voxels is None:
        graph = PQGraph.from_points(p, TABLE[:4], 3.0)
        rows = np.repeat(np.arange(12), 4 if kind == "directions" else 1)
    else:
        graph = PQGraph.from_nodes(p[voxels], rng.normal(size=(36, 3)), 3.0, voxel=voxels)
        rows = voxels
    x = 3 * torch.randn(len(rows), 10, dtype=torch.float64) + 1
    norm = BatchNorm("2x0e + 1x1o + 1x2e", instance=True, window=sigma).double().eval()
    with torch.no_grad():
        norm.weight.normal_(), norm.bias.normal_()
    places = torch.from_numpy(p[rows])
    weights = torch.exp(-(places[:, None] - places).square().sum(dim=-1) / (2 * sigma**2))
    weights /= weights.sum(dim=1, keepdim=True)
    expected = torch.empty_like(x)
    for feature, columns in enumerate([[0], [1], [2, 3, 4], [5, 6, 7, 8, 9]]):
        values = x[:, columns]
        mean = weights @ values if feature < 2 else torch.zeros_like(values)
        power = weights @ values.square().mean(dim=1) - mean.square().mean(dim=1)
        expected[:, columns] = (
            (values - mean) * norm.weight[feature] / (power + norm.eps).sqrt()[:, None]
        )
    expected[:, :2] += norm.bias
    shape = (12, 4, 10) if kind == "directions" else x.shape
    found = norm(x.view(shape), graph).flatten(0, -2)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_nodes_in_another_order_than_their_voxels_are_not_guessed():
    """One node in each voxel: features of nodes look like a map."""
    q = np.eye(3)
    ordered = PQGraph.from_nodes(q, q, 3.0, voxel=[0, 1, 2])
    permuted = PQGraph.from_nodes(q, q, 3.0, voxel=[2, 0, 1])
    norm = BatchNorm("2x0e", instance=True, window=5.0).eval()
    assert norm(torch.randn(3, 2), ordered).shape == (3, 2)
    with pytest.raises(ValueError, match="number the voxels in the order of their nodes"):
        norm(torch.randn(3, 2), permuted)


def test_statistics_of_merged_nodes_are_those_of_each_graph():
    rng = np.random.default_rng(0)
    graphs = [
        PQGraph.from_nodes(
            rng.uniform(0, 6, (4, 3))[voxel := np.repeat(np.arange(4), 2)],
            rng.normal(size=(8, 3)),
            3.0,
            voxel=voxel,
            volumes=rng.uniform(1, 9, 4),
        )
        for _ in range(2)
    ]
    norm = BatchNorm("2x0e + 1x1o", instance=True, window=5.0).double().eval()
    xs = [torch.randn(8, 5, dtype=torch.float64) for _ in graphs]
    together = norm(torch.cat(xs), PQGraph.merge(graphs))
    alone = torch.cat([norm(x, graph) for x, graph in zip(xs, graphs, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_first_weights_do_not_count_padding():
    scans, batch = padded_batch()
    xs = [40 + torch.rand(7, len(scan.scans[0].q.q_in), 1) for scan in scans]
    layer = PQTensorFieldLayer("1x0e", "4x0e + 2x1o", 4.0, quadrature="sum")
    scale_initial_weights(layer, batch.stack(xs), batch)
    y = torch.cat([layer(x, scan).flatten(0, 1) for x, scan in zip(xs, scans, strict=True)])
    for s in layer.irreps_out.slices():
        assert y[..., s].square().mean().sqrt().item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(
    "options", [{}, {"norms": True}, {"normalize": "none"}, {"normalize": "batch"}, {"q_out": None}]
)
def test_a_block_is_its_parts_one_after_the_other(options):
    torch.manual_seed(0)
    block = Block("1x0e", "3x0e + 2x1o", 4.0, **options)
    graph, x = random_graph(), torch.rand(7, 4, 1)
    y = block.layer(x, graph)
    assert (block.layer.bias is None) == (block.norm is not None)
    if block.norm is not None:
        y = block.norm(y, graph)
    y = GatedNonlinearity("3x0e + 2x1o")(y)
    if options.get("norms"):
        assert str(block.irreps_out) == "3x0e+2x1o+2x0e"
        y = NormsAsScalars("3x0e + 2x1o")(y)
    assert block(x, graph).shape[-1] == block.irreps_out.dim
    torch.testing.assert_close(block(x, graph), y)


@pytest.mark.parametrize("group", ["SO3", "O3"])
def test_a_block_commutes_with_rotations_and_reflections(group):
    torch.manual_seed(0)
    block = Block("1x0e + 1x1o", "3x0e + 2x1o + 1x1e", 4.0, norms=True, group=group).double()
    rotation = rotation_of(0) * (-1 if group == "O3" else 1)
    p, x = 6 * np.random.default_rng(0).random((7, 3)), torch.randn(7, 4, 4).double()
    graph, turned = (
        PQGraph.from_points(p @ r.T, TABLE.numpy() @ r.T, 4.0) for r in (np.eye(3), rotation)
    )
    d_in, d_out = (
        representation(irreps, rotation, group)
        for irreps in (block.layer.irreps_in, block.irreps_out)
    )
    torch.testing.assert_close(
        block(x @ d_in.T, turned), block(x, graph) @ d_out.T, rtol=1e-10, atol=1e-10
    )


def test_a_block_of_features_without_a_path_is_refused():
    with pytest.raises(ValueError, match="no path leads to 2x1o of 3x0e"):
        Block("1x0e", "3x0e + 2x1o", 4.0, filter="q", antipodal=True, group="O3")


def test_gate_rejects_odd_scalars():
    with pytest.raises(ValueError, match="odd scalars"):
        GatedNonlinearity("2x0o")


def test_q_mean_is_the_mean():
    graph = random_graph()
    x = torch.randn(7, 4, 3)
    torch.testing.assert_close(QMean()(x, graph), x.mean(dim=1))


def test_length_weighted_mean_gives_equal_lengths_equal_weights():
    graph = random_graph()
    module = QLengthWeightedMean("2x0e + 1x1o")
    x = torch.randn(7, 4, 5)
    swapped = x[:, [0, 3, 2, 1]]  # the second and the last direction have length 1
    torch.testing.assert_close(module(x, graph), module(swapped, graph))
    other = x[:, [0, 2, 1, 3]]
    assert not torch.allclose(module(x, graph), module(other, graph))


def test_length_weighted_mean_commutes_with_rotations():
    module = QLengthWeightedMean("2x0e + 1x1o").double()
    rotation = o3.rand_matrix(dtype=torch.float64)
    d = module.irreps.D_from_matrix(rotation)
    x = torch.randn(7, 4, 5, dtype=torch.float64)
    rotated = module(x @ d.T, random_graph(q=TABLE.double() @ rotation.T))
    torch.testing.assert_close(rotated, module(x, random_graph()) @ d.T, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("module", [QMean(), QLengthWeightedMean("1x0e + 1x1o")])
def test_reductions_of_nodes_and_of_a_shared_table_agree(module):
    p = torch.rand(5, 3, dtype=torch.float64) * 5
    shared = PQGraph.from_points(p, TABLE, radius=3.0)
    nodes = PQGraph.from_nodes(p.repeat_interleave(4, 0), TABLE.repeat(5, 1), radius=3.0)
    x = torch.randn(5, 4, 4)
    torch.testing.assert_close(module(x.flatten(0, 1), nodes), module(x, shared))


@pytest.mark.parametrize("module", [QMean(), QLengthWeightedMean("1x0e")])
def test_reductions_take_real_numbers_of_the_type_of_their_weights(module):
    graph = PQGraph.from_points(np.zeros((2, 3)), np.eye(3), 1.0)
    with pytest.raises(ValueError, match=r"torch.int64, not real numbers"):
        module(torch.ones(2, 3, 1, dtype=torch.int64), graph)
    if list(module.parameters()):
        with pytest.raises(ValueError, match=r"torch.float64, but the weights are torch.float32"):
            module(torch.ones(2, 3, 1, dtype=torch.float64), graph)
    half = copy.deepcopy(module).bfloat16()
    x = torch.rand(2, 3, 1, generator=torch.Generator().manual_seed(0))
    found, expected = half(x.bfloat16(), graph), module(x, graph)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=2**-6, atol=2**-8)


def test_reduction_needs_a_q_space():
    graph = PQGraph.from_points(torch.rand(3, 3), None, radius=1.0)
    with pytest.raises(ValueError, match="no q-space to reduce"):
        QMean()(torch.randn(3, 1, 2), graph)


def test_first_weights_are_scaled_to_unit_features_of_every_order():
    graph = random_graph()
    x = 40 + torch.rand(7, 4, 1)
    layer = PQTensorFieldLayer("1x0e", "4x0e + 2x1o + 3x2e", 4.0, quadrature="sum")
    scale_initial_weights(layer, x, graph)
    y = layer(x, graph)
    for s in layer.irreps_out.slices():
        assert y[..., s].square().mean().sqrt().item() == pytest.approx(1, rel=1e-4)
