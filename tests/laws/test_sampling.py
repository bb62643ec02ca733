"""One set of weights gives one map on every grid and with every table, as far as they can tell."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.strategies import AGREEMENT, relative_error, rotation_of
from tripq import PQGraph, PQTensorFieldLayer, Radial
from tripq.domain.quadrature import voxel_points
from tripq.networks.encoder import VoxelNetwork
from tripq.simulate import GradientTable

DIRECTIONS = GradientTable.from_shells([1000.0], [64]).directions[1:]
TABLE = np.concatenate([np.zeros((1, 3)), DIRECTIONS])
SMALL = {"q_features": "4x0e + 2x2e + 1x4e", "p_features": "4x0e + 2x2e", "n_p_layers": 1}


def network(**options):
    torch.manual_seed(0)
    return VoxelNetwork("4x0e", **SMALL, normalize="none", **options).double().eval()


def signal(p, q):
    """Smooth in p and in q: a few fibres whose share changes over some millimetres."""
    rng = np.random.default_rng(0)
    centres, axes = rng.uniform(-6, 6, (12, 3)), rng.normal(size=(12, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    share = np.exp(-((p[:, None] - centres) ** 2).sum(axis=-1) / (2 * 4.0**2))
    along = (q @ axes.T) ** 2
    attenuation = np.exp(-0.4 * (q**2).sum(axis=1)[:, None] - 1.3 * along)
    return share @ attenuation.T / share.sum(axis=1, keepdims=True)


@torch.no_grad()
def output(net, linear, q=TABLE, place=(0.5, -1.0, 0.7), **options):
    """What a network gives in a voxel with its centre at a place, on a grid that it sees whole."""
    affine = np.eye(4)
    affine[:3, :3] = linear
    reach = np.ceil(9.0 / np.linalg.norm(linear, axis=0)).astype(int)
    steps = np.indices(2 * reach + 1).reshape(3, -1).T - reach
    graph = PQGraph.from_grid(np.ones(2 * reach + 1), affine, q, net.p_radius, **options)
    values = signal(np.array(place) + steps @ linear.T, q)
    return net(torch.from_numpy(values), graph)[len(steps) // 2]


REFERENCE = 2.0 * np.eye(3)


def change(net, linear=REFERENCE, **options):
    """Relative to the output with the table of 64 directions on voxels of 2 mm."""
    reference = output(net, REFERENCE)
    return float((output(net, linear, **options) - reference).norm() / reference.norm())


# -- voxels --------------------------------------------------------------------------------------

GRIDS = {
    "turned": 2.0 * rotation_of(1),
    "1.5 mm": 1.5 * np.eye(3),
    "2.5 mm, turned": 2.5 * rotation_of(2),
    "1.75 x 1.75 x 3 mm": np.diag([1.75, 1.75, 3.0]),
    "sheared": np.array([[2.0, 0.4, 0.0], [0.0, 2.0, -0.3], [0.0, 0.0, 2.2]]),
}


@pytest.mark.parametrize("grid", GRIDS)
def test_other_voxels_change_an_integral_by_its_quadrature_error(grid):
    assert change(network(), GRIDS[grid]) < 0.01


@pytest.mark.parametrize("grid", ["1.5 mm", "2.5 mm, turned"])
def test_other_voxels_change_a_sum_altogether(grid):
    assert change(network(quadrature="sum", p_radius=3.6), GRIDS[grid]) > 0.2


# -- directions ----------------------------------------------------------------------------------


def test_what_is_listed_twice_changes_nothing():
    net = network()
    assert change(net, q=np.concatenate([TABLE, TABLE[1:]])) < 1e-9, "every direction"
    assert change(net, q=np.concatenate([TABLE, -TABLE[1:20]])) < 1e-9, "some, with their opposites"
    assert change(net, q=np.concatenate([TABLE[:1], TABLE])) < 1e-9, "the b0"


def test_a_dropped_direction_changes_next_to_nothing():
    dropped = [change(network(), q=np.delete(TABLE, i, axis=0)) for i in (5, 17, 40)]
    assert max(dropped) < 2e-3
    plain = network(quadrature="sum", p_radius=3.6)
    assert max(dropped) < change(plain, q=np.delete(TABLE, 17, axis=0))


def test_another_shell_leaves_the_part_of_the_first():
    """With cosine functions of |q| that reach from shell to shell, each shell is seen alone."""
    net = network(q_radial=Radial("cosine", 3))
    outer = TABLE[1:] * 2.0
    first = net.blocks[0].layer
    (f,) = first.filters
    one, two = (
        f.radial_q_in(graph.scans[0].q.integral, torch.float64)
        for graph in (
            PQGraph.from_grid(np.ones((1, 1, 1)), np.eye(4), q, 0.0)
            for q in (TABLE, np.concatenate([TABLE, outer]))
        )
    )
    torch.testing.assert_close(two[: len(TABLE)], one)


def test_weights_that_are_given_are_used_as_they_are():
    weights = np.random.default_rng(0).uniform(0.5, 1.5, len(TABLE)) / len(TABLE)
    net = network()
    given = output(net, 2.0 * np.eye(3), q_weights=weights)
    twice = output(net, 2.0 * np.eye(3), q_weights=2 * weights)
    first = net.blocks[0].layer
    graph = PQGraph.from_grid(np.ones((1, 1, 1)), np.eye(4), TABLE, 0.0, q_weights=weights)
    q = first.q_space(graph.scans[0])
    np.testing.assert_array_equal(q.weights[0], weights)
    assert q.shares is None
    assert relative_error(given, twice) > 0.01


def test_an_integral_is_the_sum_over_the_points_of_all_voxels():
    """By hand: the filter at every point, cut at the radius, times volumes and shares."""
    radius, linear = 3.0, GRIDS["sheared"] @ rotation_of(4)  # 216 points
    affine = np.eye(4)
    affine[:3, :3] = linear
    axes = np.concatenate([np.eye(3), np.eye(3)[:1]])  # one of them twice
    q = np.concatenate([np.zeros((1, 3)), axes, 1.7 * np.eye(3)])
    shares = np.array([1, *np.array([1, 2, 2, 1]) / 6, *np.full(3, 1 / 3)])
    torch.manual_seed(0)
    layer = PQTensorFieldLayer(
        "1x0e + 1x1o",
        "1x0e + 1x2e",
        radius,
        selection="all",
        lmax_p=2,
        lmax_q=2,
        p_radial=Radial("cosine", 2),
        q_radial=Radial("gaussian", 1),
        quadrature="integral",
    ).double()
    mask = np.ones((1, 2, 1))
    graph = PQGraph.from_grid(mask, affine, q, radius)
    p = torch.from_numpy(np.argwhere(mask) @ linear.T)
    x = torch.randn(len(p), len(q), 4, dtype=torch.float64)
    vectors = torch.from_numpy(q)
    (f,) = layer.filters
    # The only function of |q_in|, on each of the three shells.
    total = f.phi_q_in(torch.tensor([0.0, 1.0, 1.7], dtype=torch.float64)).sum()
    weights = torch.from_numpy(shares) / total
    points, parts = voxel_points(linear, radius)
    expected = torch.zeros(len(p), len(q), layer.irreps_out.dim, dtype=torch.float64)
    with torch.no_grad():
        for point, part in zip(torch.from_numpy(points), parts, strict=True):
            offsets = p[:, None] - p + point  # p_out, p_in
            kernel = layer.kernel(
                offsets[:, None, :, None], vectors[:, None, None], vectors
            )  # p_out, q_out, p_in, q_in
            near = (offsets.norm(dim=-1) < radius).double() * part
            expected += torch.einsum("aibjmn,ab,j,bjn->aim", kernel, near, weights, x)
        expected *= abs(np.linalg.det(linear)) / 8.0
        for layer.backend in ("edges", "recoupled", "dense", "fourier", "triton"):
            assert relative_error(layer(x, graph), expected) < 1e-11, layer.backend


# -- back ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filter", "antipodal"),
    [
        *(("tp", False), ("tp", True), ("diff", True)),
        pytest.param("diff", False, marks=pytest.mark.exhaustive),
    ],
)
def test_learnt_radial_functions_have_the_gradients_of_the_definition(filter, antipodal):
    """Averaged over oblique voxels, and normalised over two shells and a b0."""
    rng = np.random.default_rng(3)
    q = rng.normal(size=(4, 3))
    q *= np.array([1, 1, 1, 1.7])[:, None] / np.linalg.norm(q, axis=1, keepdims=True)
    q[0] = 0
    affine = np.eye(4)
    affine[:3, :3] = GRIDS["sheared"] @ rotation_of(4)
    mask, lmax = (np.ones((2, 1, 1)), 1) if filter == "diff" else (np.ones((2, 2, 1)), 2)
    radius = 4.0  # 125 points
    graph = PQGraph.from_grid(mask, affine, q, radius)
    torch.manual_seed(0)
    layer = PQTensorFieldLayer(
        "1x0e + 1x1o",
        "1x0e + 1x2e",
        radius,
        filter=filter,
        selection="all",
        lmax_p=lmax,
        lmax_q=lmax,
        antipodal=antipodal,
        quadrature="integral",
        p_radial=Radial("cosine", 2, learnable=True),
        q_radial=Radial("gaussian", 2, learnable=True),
    ).double()
    x = torch.from_numpy(rng.normal(size=(mask.size, len(q), 4))).requires_grad_()
    others = ("recoupled", "dense") if filter == "diff" else ("recoupled", "dense", "fourier")
    found = {}
    for layer.backend in ("edges", *others):
        y = layer(x, graph)
        grads = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
        found[layer.backend] = [y, *grads]
    for backend in others:
        for ours, expected in zip(found[backend], found["edges"], strict=True):
            assert relative_error(ours, expected) < 10 * AGREEMENT[torch.float64], backend
