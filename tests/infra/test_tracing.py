"""Compiled and exported, layers and networks give what they give, with their gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from tripq import PQGraph
from tripq.infra.e3nn import o3
from tripq.infra.tracing import not_compiled
from tripq.nn import BatchNorm, QLengthWeightedMean, QMean
from tripq.nn.bound import Bound
from tripq.nn.layer import PQTensorFieldLayer
from tripq.tasks.lesions.segmenter import LesionSegmenter

# A b0 and a shell: back ends may take the directions of a shell together.
DIRECTIONS = np.random.default_rng(0).normal(size=(4, 3))
Q = np.concatenate([np.zeros((1, 3)), DIRECTIONS / np.linalg.norm(DIRECTIONS, axis=1)[:, None]])
AFFINE = np.diag([2.0, 2, 2, 1])
POINTS = np.random.default_rng(1).normal(size=(6, 3))

small = partial(PQTensorFieldLayer, "1x0e", "1x0e + 1x1o", 2.5, lmax_p=1, lmax_q=1, bias=True)


def grid(*shape: int, q: np.ndarray | Tensor | None = Q) -> PQGraph:
    return PQGraph.from_grid(np.ones(shape), AFFINE, q, radius=3.0)


GRAPHS: dict[str, Callable[[], PQGraph]] = {
    "grid": lambda: grid(2, 2, 2),
    "scans": lambda: PQGraph.merge([grid(2, 2, 2), grid(2, 1, 1, q=Q[:3])]),
    "points": lambda: PQGraph.from_points(POINTS, Q, 3.0),
    "nodes": lambda: PQGraph.from_nodes(np.repeat(POINTS[:3], 2, axis=0), POINTS / 2, 3.0),
}


def features(graph: PQGraph, dim: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    nodes = sum(len(scan.q.q) for scan in graph.scans if hasattr(scan.q, "voxel"))
    shape = (nodes,) if nodes else (graph.n_voxels, len(Q))
    return torch.rand(*shape, dim, generator=generator, requires_grad=True)


def signal_on(graph: PQGraph) -> Tensor:
    return features(graph, 1)[..., 0].detach().requires_grad_()


def results(function: Callable[..., Tensor], module: nn.Module, *args: object) -> list[Tensor]:
    """The output, and the gradients of a number made of it."""
    inputs = [a for a in args if isinstance(a, Tensor)] + list(module.parameters())
    out = function(*args)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), inputs)]


class Counted:
    """The back end of `torch.compile` that the tests use; it counts the programs it was given."""

    def __init__(self) -> None:
        self.programs = 0

    def __call__(self, program: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        self.programs += 1
        backend = torch._dynamo.lookup_backend("aot_eager")
        compiled: Callable[..., object] = backend(program, inputs)
        return compiled


def assert_compiles(function: nn.Module, *args: object) -> None:
    """Into one program, without a graph break."""
    torch._dynamo.reset()
    counted = Counted()
    compiled = torch.compile(function, backend=counted, fullgraph=True)
    found, expected = results(compiled, function, *args), results(function, function, *args)
    # The same operations, but a compiler adds gradients up in its own order.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert counted.programs == 1
    assert expected[0].abs().max() > 0.01


@pytest.mark.parametrize(
    ("graph", "backend", "filter"),
    [
        ("grid", "dense", "tp"),
        ("grid", "fourier", "tp"),
        pytest.param("grid", "triton", "tp", marks=pytest.mark.exhaustive),
        ("grid", "edges", "p"),
        ("points", "recoupled", "p"),
        pytest.param("nodes", "recoupled", "p", marks=pytest.mark.exhaustive),
        ("nodes", "triton", "p"),
    ],
)
def test_a_layer_compiles_whole_by_every_back_end(graph: str, backend: str, filter: str) -> None:
    domain = GRAPHS[graph]()
    layer = small(backend=backend, filter=filter)
    assert_compiles(layer.bind(domain), features(domain, 1))


@pytest.mark.parametrize(
    "backend", ["recoupled", pytest.param("dense", marks=pytest.mark.exhaustive)]
)
def test_a_layer_compiles_in_parts_that_fit_a_budget(backend: str) -> None:
    graph = grid(2, 2, 1)
    layer = small(backend=backend, filter="p", memory_budget=1000)
    assert_compiles(layer.bind(graph), features(graph, 1))


def test_a_layer_compiles_without_being_bound() -> None:
    graph = grid(2, 2, 2)
    layer = small(backend="recoupled", self_interaction=True)
    assert_compiles(layer, features(graph, 1), graph)


def test_a_compiled_layer_follows_its_graph_and_its_weights() -> None:
    torch._dynamo.reset()
    layer = small(filter="p")
    compiled = torch.compile(layer, backend="aot_eager")
    for graph in (grid(2, 2, 2), grid(3, 1, 2)):
        x = features(graph, 1)
        for _ in range(2):
            with torch.no_grad():
                layer.filters[0].weight.mul_(1.5)
                torch.testing.assert_close(compiled(x, graph), layer(x, graph))


def test_coordinates_keep_their_gradients_in_a_compiled_layer() -> None:
    torch._dynamo.reset()
    q = torch.tensor(Q).requires_grad_()
    graph = grid(2, 2, 2, q=q)
    layer = small(backend="recoupled")
    x = features(graph, 1)
    compiled = torch.compile(layer, backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(x, graph).square().sum(), q)
    (expected,) = torch.autograd.grad(layer(x, grid(2, 2, 2, q=q)).square().sum(), q)
    torch.testing.assert_close(found, expected)
    assert expected.abs().max() > 0


def test_a_function_that_is_not_compiled_is_called_as_it_is() -> None:
    traced: list[bool] = []

    @not_compiled
    def called(x: Tensor) -> Tensor:
        traced.append(torch.compiler.is_compiling())
        return 2 * x

    torch._dynamo.reset()
    x = torch.ones(3)
    compiled = torch.compile(lambda x: called(x) + 1, backend="eager")
    torch.testing.assert_close(compiled(x), called(x) + 1)
    assert traced == [False, False]


def test_functions_of_e3nn_compile_though_dynamo_is_imported_after_it() -> None:
    """One of them, of complex numbers, e3nn marks by `torch.compiler.disable`."""

    def function(x: Tensor) -> Tensor:
        return x + o3.wigner_D(1, x[0, 0], x[0, 1], x[0, 2])

    torch._dynamo.reset()
    x = torch.rand(3, 3)
    torch.testing.assert_close(torch.compile(function, backend="eager")(x), function(x))


def lesion_segmenter() -> LesionSegmenter:
    return LesionSegmenter(
        p_radius=2.5, q_features="2x0e + 1x2e", p_features="2x0e", n_p_layers=0
    ).eval()


class Parts(nn.Module):
    """The parts of networks that look into a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = small(filter="p")
        self.norm = BatchNorm("1x0e + 1x1o")
        self.means = nn.ModuleList([QMean(), QLengthWeightedMean("1x0e + 1x1o")])

    def forward(self, x: Tensor, graph: PQGraph) -> Tensor:
        y = self.norm(self.layer(x, graph), graph)
        return torch.stack([mean(y, graph) for mean in self.means])


def test_a_network_compiles_whole() -> None:
    graph = grid(2, 2, 1)
    assert_compiles(Bound(lesion_segmenter(), graph), signal_on(graph))


def test_a_network_compiles_whole_while_it_trains_on_several_scans() -> None:
    graph = GRAPHS["scans"]()
    assert_compiles(Parts(), features(graph, 1), graph)


def test_a_chain_of_bound_layers_is_exported() -> None:
    graph = grid(2, 2, 2)
    last = PQTensorFieldLayer("1x0e + 1x1o", "1x0e", 2.5, q_out=None, filter="p", quadrature="sum")
    chain = nn.Sequential(small(filter="p").bind(graph), last.bind(graph))
    x = features(graph, 1).detach()
    program = torch.export.export(chain, (x,))
    torch.testing.assert_close(program.module()(x), chain(x))


@pytest.mark.exhaustive  # docs/many-machines.md does it, too
def test_a_bound_network_is_exported() -> None:
    graph = grid(2, 2, 1)
    network = Bound(lesion_segmenter(), graph).eval()
    signal = signal_on(graph).detach()
    program = torch.export.export(network, (signal,))
    torch.testing.assert_close(program.module()(signal), network(signal))
