"""Fourier space gives what the definition gives; tiles find the neighbours that the table lists."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tripq import PQGraph, PQTensorFieldLayer, Radial
from tripq.backends import BACKENDS
from tripq.backends.plan import Backend
from tripq.backends.spectral import transforms
from tripq.backends.spectral.stages import Layout, Operands, Stages, matrices
from tripq.backends.spectral.tiles import Tiles

AFFINE = np.diag([2.0, 2.3, 2.6, 1.0])
TABLE = np.array([[0.0, 0, 0], [1, 0, 0], [0, 0.8, 0.6], [0, -0.9, 1.1]])
IRREPS = "2x0e + 1x1o + 1x2e"


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def patches(*shapes: tuple[int, int, int], radius: float, seed: int = 0) -> PQGraph:
    """Boxes with some voxels missing, as one scan."""
    rng = np.random.default_rng(seed)
    graphs = []
    for shape in shapes:
        mask = rng.random(shape) < 0.9
        mask.flat[0] = True
        graphs.append(PQGraph.from_grid(mask, AFFINE, TABLE, radius))
    return PQGraph.merge(graphs)


shapes = st.tuples(*[st.integers(1, 5)] * 3)


@given(
    shapes=st.lists(shapes, min_size=1, max_size=3),
    radius=st.floats(0.0, 8.0),
    seed=st.integers(0, 1000),
    largest=st.integers(1, 1000),
)
def test_tiles_hold_all_voxels_and_their_neighbours(shapes, radius, seed, largest):
    (scan,) = patches(*shapes, radius=radius, seed=seed).scans
    edges, n_voxels = scan.edges, scan.n_voxels
    margin = tuple(edges.steps.abs().amax(dim=0).tolist())
    tiles = Tiles.cut(edges.grid.voxels, margin, largest)
    smallest = math.prod(1 + 2 * m for m in margin)
    assert math.prod(tiles.shape) <= max(largest, smallest)
    assert torch.cat(tiles.voxels).sort().values.equal(torch.arange(n_voxels))
    for source, voxels, places in zip(tiles.source, tiles.voxels, tiles.places, strict=True):
        ring = source.view(tiles.shape)
        at = torch.stack(torch.unravel_index(places, tiles.core), dim=1)
        for t, step in enumerate(edges.steps):
            x, y, z = ((at - step) % torch.tensor(tiles.shape)).T
            assert ring[x, y, z].equal(edges.table[voxels, t])


lengths = st.tuples(*[st.integers(1, 9)] * 3)


@given(
    shape=lengths,
    cut=lengths,
    n_boxes=st.integers(1, 3),
    n_features=st.integers(1, 40),
    cached=st.sampled_from([1, 3000, 1 << 21]),
)
def test_products_and_fast_transforms_are_the_fourier_transform(
    shape, cut, n_boxes, n_features, cached
):
    core = tuple(min(c, n) for c, n in zip(cut, shape, strict=True))
    inside = (slice(None), *(slice(c) for c in core))
    rng = np.random.default_rng(0)
    box = rng.normal(size=(n_boxes, *core, n_features))
    ring = np.zeros((n_boxes, *shape, n_features))
    ring[inside] = box
    expected = np.fft.rfftn(ring, axes=(1, 2, 3)).reshape(n_boxes, -1, n_features)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transforms, "_CACHED", cached)
        for there, back in (
            (transforms.transform_by_products, transforms.transform_back_by_products),
            (transforms.transform_by_fft, transforms.transform_back_by_fft),
        ):
            spectrum = there(torch.from_numpy(box), shape)
            real, imaginary = spectrum.unbind(1)
            np.testing.assert_allclose(real + 1j * imaginary, expected, rtol=0, atol=1e-11)
            again = back(spectrum, shape, core)
            np.testing.assert_allclose(again, box, rtol=0, atol=1e-12)


def test_tiles_leave_empty_space_out():
    mask = np.zeros((40, 40, 40))
    mask[:5, :5, :5] = mask[-5:, -5:, -5:] = 1
    (scan,) = PQGraph.from_grid(mask, AFFINE, TABLE, 2.8).scans
    tiles = Tiles.cut(scan.edges.grid.voxels, (1, 1, 1), 10**6)
    assert tiles.source.numel() < 10 * scan.n_voxels


@pytest.mark.parametrize("filter", ["tp", "p", "q", "tp + q"])
@pytest.mark.parametrize("antipodal", [False, True])
@pytest.mark.parametrize("irreps", [(IRREPS, IRREPS), ("1x0e", "1x1o"), ("1x1o", "2x0e")])
@pytest.mark.parametrize(
    "graph",
    [
        patches((4, 3, 3), radius=2.8),
        patches((2, 3, 3), (3, 2, 2), radius=2.7),
        patches((6, 1, 1), radius=4.1),
    ],
    ids=["a box", "two patches", "a row of voxels"],
)
def test_outputs_and_gradients_are_those_of_the_definition(filter, antipodal, irreps, graph):
    torch.manual_seed(0)
    layer = PQTensorFieldLayer(
        *irreps,
        graph.radius,
        filter=filter,
        antipodal=antipodal,
        lmax_p=2,
        lmax_q=2,
        p_radial=Radial("gaussian", 2, learnable=True),
        q_radial=Radial("gaussian", 2, learnable=True),
        quadrature="sum",
    ).double()
    size = (graph.n_voxels, 4, layer.irreps_in.dim)
    x = torch.randn(size, dtype=torch.float64, requires_grad=True)
    results: dict[str, tuple[torch.Tensor, ...]] = {"edges": (), "fourier": ()}
    for backend in ("edges", "fourier"):
        layer.backend = backend
        y = layer(x, graph)
        if not layer.paths:  # an antipodal filter has no harmonic of order 1 in q
            assert (filter, antipodal, y.any().item()) == ("q", True, False)
            continue
        torch.manual_seed(1)
        loss = (y * torch.randn_like(y)).sum()
        leaves = [x, *layer.parameters()]
        gradients = torch.autograd.grad(loss, leaves, materialize_grads=True)
        results[backend] = (y, *gradients)
    for fast, defined in zip(*results.values(), strict=True):
        # Of a sum, a filter without paths has radial functions without a gradient.
        assert (fast - defined).norm() <= 1e-12 * defined.norm()
    assert all(result[0].norm() > 0 for result in results.values() if result)


def test_features_may_be_a_view_of_others():
    graph = patches((3, 3, 2), radius=2.8)
    layer = PQTensorFieldLayer(
        IRREPS, IRREPS, 2.8, lmax_p=2, lmax_q=2, quadrature="sum", backend="fourier"
    ).double()
    rows = torch.randn(4, graph.n_voxels, layer.irreps_in.dim, dtype=torch.float64)
    outputs = []
    for x in (rows.transpose(0, 1), rows.transpose(0, 1).contiguous()):
        x.requires_grad_()
        y = layer(x, graph)
        (gradient,) = torch.autograd.grad(y.square().sum(), x)
        outputs.append((y, gradient))
    for view, copy in zip(*outputs, strict=True):
        assert copy.norm() > 0
        torch.testing.assert_close(view, copy, rtol=0, atol=0)


def lengths_of(*lengths: float) -> np.ndarray:
    """A gradient table with these |q|."""
    directions = np.random.default_rng(0).normal(size=(len(lengths), 3))
    return np.array(lengths)[:, None] * directions / np.linalg.norm(directions, axis=1)[:, None]


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize(
    "table",
    [
        lengths_of(1, 1.4, 1, 0, 1.4, 1, 1.4),
        lengths_of(*np.linspace(0.2, 1.8, 7)),
        lengths_of(1, 0),
    ],
    ids=["three shells, mixed up", "no shells", "few"],
)
@pytest.mark.parametrize("resampled", [False, True])
def test_shells_of_a_table_or_none(number, table, resampled):
    mask = np.ones((2, 3, 2))
    q_out = lengths_of(1.2, 0.3, 1.2) if resampled else None
    graph = PQGraph.from_grid(mask, AFFINE, table, 2.8, q_out=q_out)
    torch.manual_seed(0)
    radial = Radial("gaussian", number, learnable=True)
    irreps = "1x0e + 1x1o"
    layer = PQTensorFieldLayer(
        irreps, irreps, 2.8, lmax_p=1, lmax_q=2, q_radial=radial, quadrature="sum"
    ).double()
    x = torch.randn(graph.n_voxels, len(table), 4, dtype=torch.float64, requires_grad=True)
    results = []
    for backend in ("edges", "fourier"):
        layer.backend = backend
        y = layer(x, graph)
        results.append((y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])))
    for defined, fast in zip(*results, strict=True):
        assert relative_error(fast, defined) < 1e-11


@cache
def by(backend: Backend, budget: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Output and gradients with a budget for working arrays."""
    (scan,) = patches((3, 2, 2), (2, 2, 1), radius=2.8).scans
    torch.manual_seed(0)
    (filter,) = (
        PQTensorFieldLayer(IRREPS, IRREPS, 2.8, lmax_p=1, lmax_q=1, quadrature="sum")
        .to(dtype)
        .filters
    )
    x = torch.randn(scan.n_voxels, 4, 10, dtype=dtype, requires_grad=True)
    y = BACKENDS[backend].evaluate(x, scan.edges, scan.q, filter, budget)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *filter.parameters()])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("budget", [1, 20_000])
@pytest.mark.parametrize("backend", ["fourier", "recoupled", "dense", "triton"])
def test_a_small_budget_changes_nothing(backend, budget, dtype):
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    at_once = by("recoupled", 1 << 28, dtype)
    for a, b in zip(by(backend, budget, dtype), at_once, strict=True):
        assert relative_error(a, b) < tolerance


@pytest.mark.parametrize("n_directions", [1, 3])
def test_torch_multiplies_matrices_of_all_frequencies_at_once(n_directions):
    """With another order in memory it multiplies one by one, 24 times slower with two threads."""
    n_even, dim_out, channels = 2, 2, 3
    whole = slice(0, n_directions)
    index = torch.arange(channels)
    layout = Layout((index,), (torch.arange(4),), (whole,), torch.arange(n_directions), n_even)
    operands = Operands(
        torch.randn(5, 3),
        [torch.randn(1, 3, dim_out, channels)],
        [torch.randn(4, 1, n_directions)],
    )
    stages, part = Stages(operands, layout), slice(0, 5)
    rows = torch.randn(2, 5, channels, 4)
    room, aggregated = stages.mixed(1, part, whole), stages.aggregate(0, 0, rows)
    for matrix in matrices(room) + matrices(aggregated):
        assert matrix.is_contiguous() or matrix.mT.is_contiguous()
    torch.testing.assert_close(aggregated, rows @ operands.embeddings[0][:, 0])


def test_little_is_kept_for_the_backward_pass():
    """Not the 2,000 numbers that the stages make of each input number."""
    kept = []
    graph = patches((20, 20, 20), radius=2.8)
    layer = PQTensorFieldLayer(
        IRREPS, IRREPS, 2.8, lmax_p=2, lmax_q=2, backend="fourier", quadrature="sum"
    )
    x = torch.randn(graph.n_voxels, 4, 10, requires_grad=True)

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(x, graph)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    assert max(storages.values()) <= x.nbytes
