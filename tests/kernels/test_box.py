"""The padded box gives what the definition gives, and finds the neighbours that the table lists."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tripq import PQGraph, PQTensorFieldLayer, Radial
from tripq.backends import recoupled

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
)
def test_a_shift_in_the_row_leads_to_the_neighbour(shapes, radius, seed):
    (scan,) = patches(*shapes, radius=radius, seed=seed).scans
    edges, box = scan.edges, scan.edges.box
    assert len(set(box.position.tolist())) == scan.n_voxels
    assert box.position.min() >= 0
    assert box.position.max() < box.length
    voxel_at = {p: v for v, p in enumerate(box.position.tolist())}
    for t, shift in enumerate(box.shifts):
        sources = box.position - shift
        found = [voxel_at.get(p, scan.n_voxels) for p in sources.tolist()]
        assert found == edges.table[:, t].tolist()


@given(
    shapes=st.lists(shapes, min_size=1, max_size=3),
    radius=st.floats(0.0, 8.0),
    seed=st.integers(0, 1000),
)
def test_opposite_offsets_have_opposite_shifts(shapes, radius, seed):
    (scan,) = patches(*shapes, radius=radius, seed=seed).scans
    steps, shifts = scan.edges.steps.tolist(), scan.edges.box.shifts
    by_step = dict(zip(map(tuple, steps), shifts, strict=True))
    for step, shift in by_step.items():
        assert by_step[tuple(-s for s in step)] == -shift
        assert (shift == 0) == (step == (0, 0, 0))


@pytest.mark.parametrize("filter", ["tp", "p", "q", "tp + q"])
@pytest.mark.parametrize("antipodal", [False, True])
@pytest.mark.parametrize("irreps", [(IRREPS, IRREPS), ("1x0e", "1x1o"), ("1x1o", "2x0e")])
@pytest.mark.parametrize(
    "graph",
    [
        patches((5, 4, 4), radius=2.8),
        patches((3, 4, 4), (2, 5, 4), radius=2.7),
        patches((6, 1, 1), radius=4.1),
    ],
    ids=["a box", "two patches", "a row of voxels"],
)
def test_outputs_and_gradients_are_those_of_the_definition(filter, antipodal, irreps, graph):
    box = graph.scans[0].edges.box
    assert box.fill > recoupled._SPARSE  # or another evaluation would be tested
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
    ).double()
    size = (graph.n_voxels, 4, layer.irreps_in.dim)
    x = torch.randn(size, dtype=torch.float64, requires_grad=True)
    results: dict[str, tuple[torch.Tensor, ...]] = {"edges": (), "recoupled": ()}
    for backend in ("edges", "recoupled"):
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chunks_of_directions_give_the_same(monkeypatch, dtype):
    graph = patches((5, 4, 4), radius=2.8)
    layer = PQTensorFieldLayer(IRREPS, IRREPS, 2.8, lmax_p=2, lmax_q=2).to(dtype)
    x = torch.randn(graph.n_voxels, 4, 10, dtype=dtype, requires_grad=True)
    whole = layer(x, graph)
    gradient = torch.autograd.grad(whole.square().sum(), [x, *layer.parameters()])
    monkeypatch.setattr("tripq.kernels.box._WORKING", 1)  # one direction at a time
    parts = layer(x, graph)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert relative_error(parts, whole) < tolerance
    for a, b in zip(
        torch.autograd.grad(parts.square().sum(), [x, *layer.parameters()]), gradient, strict=True
    ):
        assert relative_error(a, b) < tolerance


def test_a_sparse_mask_goes_by_its_table_and_gives_the_same(monkeypatch):
    graph = patches((5, 4, 4), radius=2.8)
    layer = PQTensorFieldLayer(IRREPS, IRREPS, 2.8, lmax_p=2, lmax_q=2).double()
    x = torch.randn(graph.n_voxels, 4, 10, dtype=torch.float64)
    boxed = layer(x, graph)
    monkeypatch.setattr(recoupled, "_SPARSE", 1.0)
    assert relative_error(layer(x, graph), boxed) < 1e-12


def test_little_is_kept_for_the_backward_pass():
    """Not the 2,000 numbers that the stages make of each input number."""
    kept = []
    graph = patches((10, 10, 10), radius=2.8)
    layer = PQTensorFieldLayer(IRREPS, IRREPS, 2.8, lmax_p=2, lmax_q=2)
    x = torch.randn(graph.n_voxels, 4, 10, requires_grad=True)

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(x, graph)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    largest = 4 * x.shape[1] * 10 * graph.scans[0].edges.box.length  # the input, in its box
    assert max(storages.values()) <= 1.01 * largest
