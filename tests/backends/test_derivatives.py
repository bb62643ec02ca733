"""Derivatives of every kind by every back end, the definition as the measure."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.utils._pytree import tree_leaves

from tests.nn.test_layer import small_domain, tiny_layer
from tests.strategies import (
    BACKENDS,
    FORMS,
    RADIUS,
    affine_of,
    backends_for,
    combinations,
    features,
    randomised,
    relative_error,
)
from tripq import PQGraph, PQTensorFieldLayer, Radial
from tripq.domain.nodes import NodeSpace
from tripq.simulate import spread_directions

LIMIT = 1e-11
PAGE = Path(__file__).parents[2] / "docs" / "backends.md"


def wave(x):
    """Numbers of order 1 of the shape of `x`, no two of them alike."""
    return torch.sin(1 + torch.arange(x.numel(), dtype=torch.float64)).view(x.shape).to(x)


def parameters(layer):
    return {name: p.detach() for name, p in layer.named_parameters()}


def loss(layer, graph):
    """A function of parameters and features that is linear in neither."""

    def function(weights, x):
        out = functional_call(layer, weights, (x, graph))
        return (out.square() * wave(out.detach())).sum()

    return function


def backward(layer, x, graph):
    leaves = [x.clone().requires_grad_(), *layer.parameters()]
    return torch.autograd.grad(loss(layer, graph)({}, leaves[0]), leaves)


def double_backward(layer, x, graph):
    leaves = [x.clone().requires_grad_(), *layer.parameters()]
    first = torch.autograd.grad(loss(layer, graph)({}, leaves[0]), leaves, create_graph=True)
    return torch.autograd.grad(sum((g * wave(g.detach())).sum() for g in first), leaves)


def penalty_of_a_linear_loss(layer, x, graph):
    """Whose gradient of the output requires no gradient: once_differentiable keeps silent."""
    leaf = x.clone().requires_grad_()
    out = layer(leaf, graph)
    (first,) = torch.autograd.grad(out, leaf, wave(out.detach()), create_graph=True)
    weights = [f.weight for f in layer.filters]
    return torch.autograd.grad(first.square().sum(), weights)


def forward_mode(layer, x, graph):
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, wave(x))
        with_weights = forward_ad.unpack_dual(layer(dual, graph)).tangent
        with torch.no_grad():
            without = forward_ad.unpack_dual(layer(dual, graph)).tangent
    return with_weights, without


def func_jvp(layer, x, graph):
    weights = parameters(layer)

    def function(weights, x):
        return functional_call(layer, weights, (x, graph))

    along = {name: wave(w) for name, w in weights.items()}
    return jvp(function, (weights, x), (along, wave(x)))


def func_grad(layer, x, graph):
    return grad(loss(layer, graph), argnums=(0, 1))(parameters(layer), x)


def func_vmap(layer, x, graph):
    def function(weights, x):
        return functional_call(layer, weights, (x, graph))

    weights = parameters(layer)
    several = {name: torch.stack([w, wave(w)]) for name, w in weights.items()}
    gradients = grad(loss(layer, graph), argnums=(0, 1))
    return (
        vmap(function, (None, 0))(weights, torch.stack([x, wave(x)])),
        vmap(function, (0, None))(several, x),
        vmap(gradients, (None, 0))(weights, torch.stack([x, wave(x)])),
    )


def forward_over_reverse(layer, x, graph):
    gradient = grad(loss(layer, graph), argnums=1)
    weights = parameters(layer)
    return jvp(lambda x: gradient(weights, x), (x,), (wave(x),))


#: The columns of the table in docs/backends.md, each with what has to be right.
DERIVATIVES = {
    "`backward`": (backward,),
    "twice": (double_backward, penalty_of_a_linear_loss),
    "forward mode": (forward_mode, func_jvp),
    "`func.grad`": (func_grad, forward_over_reverse),
    "`func.vmap`": (func_vmap,),
}
every_kind = pytest.mark.parametrize("kind", DERIVATIVES)


@cache
def defined(derivative, filter, form, quadrature="sum"):
    """A derivative of a tiny layer by the definition, on the small domain of a form."""
    domain = small_domain(form)
    layer = tiny_layer(filter, "edges", quadrature=quadrature)
    return tree_leaves(derivative(layer, features(layer, domain), domain.graph()))


@every_kind
@pytest.mark.parametrize(
    ("filter", "form", "backend"),
    [c for filter in ("tp", "diff") for c in combinations(filter) if c[2] != "edges"],
)
def test_derivatives_are_those_of_the_definition(backend, filter, form, kind):
    domain = small_domain(form)
    graph = domain.graph()
    for derivative in DERIVATIVES[kind]:
        # The second layer splits its work and recomputes it, where that is possible.
        layer, split = (tiny_layer(filter, backend, memory_budget=b) for b in (None, 20_000))
        x = features(layer, domain)
        measure = defined(derivative, filter, form)
        assert all(bool(m.any()) for m in measure)
        for found in (derivative(layer, x, graph), derivative(split, x, graph)):
            for f, m in zip(tree_leaves(found), measure, strict=True):
                assert relative_error(f, m) < LIMIT, derivative.__name__


@every_kind
@pytest.mark.parametrize("backend", ["recoupled", "dense", "fourier"])
def test_derivatives_of_an_integral_are_those_of_the_definition(backend, kind):
    domain = small_domain("grid")
    graph = domain.graph()
    layer = tiny_layer("tp", backend, quadrature="integral")
    x = features(layer, domain)
    for derivative in DERIVATIVES[kind]:
        found = tree_leaves(derivative(layer, x, graph))
        for f, m in zip(found, defined(derivative, "tp", "grid", "integral"), strict=True):
            assert relative_error(f, m) < LIMIT, derivative.__name__


def test_the_definition_has_the_derivatives_of_differences():
    domain, step = small_domain("grid"), 1e-6
    layer, graph = tiny_layer("tp", "edges"), domain.graph()
    x = features(layer, domain)
    moved, back = (layer(x + s * wave(x), graph).detach() for s in (step, -step))
    tangent, _ = forward_mode(layer, x, graph)
    assert relative_error(tangent.detach(), (moved - back) / (2 * step)) < 1e-8
    with torch.no_grad():
        mapped, _, _ = func_vmap(layer, x, graph)
        one_by_one = torch.stack([layer(x, graph), layer(wave(x), graph)])
    assert relative_error(mapped, one_by_one) < LIMIT


@pytest.mark.parametrize("backend", ["recoupled", "triton"])
def test_forward_mode_that_begins_after_the_layer(backend):
    """The backward pass of a layer has tangents, too; where it recomputes, it refuses them."""
    domain = small_domain("points")
    graph = domain.graph()

    def tangent(layer):
        leaf = features(layer, domain).requires_grad_()
        out = layer(leaf, graph)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(torch.ones_like(out), wave(out.detach()))
            (found,) = torch.autograd.grad(out, leaf, dual)
            return forward_ad.unpack_dual(found).tangent

    measure = tangent(tiny_layer("tp", "edges"))
    assert relative_error(tangent(tiny_layer("tp", backend)), measure) < LIMIT
    with pytest.raises(RuntimeError, match=r"evaluate the layer inside dual_level\(\) too"):
        tangent(tiny_layer("tp", backend, memory_budget=3000))


@pytest.mark.parametrize(
    ("form", "backend"), [("grid", "dense"), ("points", "triton"), ("nodes", "recoupled")]
)
@pytest.mark.parametrize("first", [func_grad, func_jvp, func_vmap, forward_mode])
def test_a_graph_first_used_in_a_transform_is_a_graph_like_any_other(first, form, backend):
    domain = small_domain(form)
    layer = tiny_layer("tp", backend)
    x, graph = features(layer, domain), domain.graph(2 * RADIUS)  # which the layer cuts
    first(layer, x, graph)
    for same in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph)), graph):
        found = backward(layer, x, same)
        for f, m in zip(found, backward(layer, x, domain.graph()), strict=True):
            assert torch.equal(f, m)


# -- coordinates ---------------------------------------------------------------------------------


def shells(n):
    """A b0 and `n` directions of length 1."""
    return np.concatenate([np.zeros((1, 3)), spread_directions(n)])


def with_leaves(graph, *, in_p=True):
    """A graph whose offsets in p, q-vectors and quadrature weights are leaves, and the leaves."""
    (scan,) = graph.scans

    def leaf(tensor):
        return tensor.detach().clone().requires_grad_()

    offsets = leaf(scan.edges.offsets)
    if isinstance(scan.q, NodeSpace):
        q_in, weights = leaf(scan.q.q), leaf(scan.q.edges.weights)
        q = replace(scan.q, q=q_in, q_out=q_in, edges=replace(scan.q.edges, weights=weights))
    else:
        q_in, weights = leaf(scan.q.q_in), leaf(scan.q.weights)
        q = replace(scan.q, q_in=q_in, q_out=q_in, weights=weights)
    edges = replace(scan.edges, offsets=offsets) if in_p else scan.edges
    of_q = {"q": q_in, "weights": weights}
    return PQGraph([replace(scan, edges=edges, q=q)]), {"p": offsets} | of_q if in_p else of_q


def graph_of(form, n_directions):
    p = np.random.default_rng(0).uniform(-1.4, 1.4, (4, 3))
    q = shells(n_directions)
    if form == "grid":
        return PQGraph.from_grid(np.ones((2, 2, 1)), affine_of(np.diag([2.0, 2.2, 2.9])), q, RADIUS)
    if form == "points":
        return PQGraph.from_points(p, q, RADIUS)
    return PQGraph.from_nodes(np.repeat(p, len(q), axis=0), np.tile(q, (len(p), 1)), RADIUS)


@pytest.mark.parametrize("q_directions", ["vectors", "unit"])
@pytest.mark.parametrize("antipodal", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("filter", ["tp", "diff"])
def test_gradients_for_coordinates_are_those_of_the_definition(
    filter, form, antipodal, q_directions
):
    plain = graph_of(form, 32 if form == "grid" else 5)
    torch.manual_seed(0)
    radial = Radial("gaussian", 3, learnable=True, hidden=(3,))
    layer = PQTensorFieldLayer(
        "1x0e", "1x0e + 1x1o", RADIUS, filter=filter, lmax_p=1, lmax_q=2, antipodal=antipodal,
        q_directions=q_directions, p_radial=radial, q_radial=radial, quadrature="sum"
    )  # fmt: skip
    layer = randomised(layer, 0)
    (scan,) = plain.scans
    shape = [len(scan.q.q)] if form == "nodes" else [4, len(scan.q.q_in)]
    x = wave(torch.empty(*shape, 1, dtype=torch.float64)).requires_grad_()

    def gradients(backend, *, in_p=True):
        layer.backend = backend
        graph, coordinates = with_leaves(plain, in_p=in_p)
        out = layer(x, graph)
        leaves = {"x": x, **coordinates, **dict(layer.named_parameters())}
        found = torch.autograd.grad(out, list(leaves.values()), wave(out.detach()))
        return dict(zip(leaves, found, strict=True))

    measure = gradients("edges")
    assert all(bool(m.any()) for m in measure.values())
    for backend in backends_for(form, filter)[1:]:
        for in_p in (True, False):
            if backend == "triton" or (backend == "fourier" and in_p):
                with pytest.raises(ValueError, match="but some require gradients"):
                    gradients(backend, in_p=in_p)
                continue
            for name, found in gradients(backend, in_p=in_p).items():
                assert relative_error(found, measure[name]) < LIMIT, (backend, name)


# -- the table in the documentation --------------------------------------------------------------


def test_the_page_says_what_every_back_end_supports():
    lines = PAGE.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| derivative |"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    header, _, *body = rows
    assert {name.strip('`"') for name in header[1:]} == set(BACKENDS)
    *kinds, for_q, for_p = body
    assert [row[0] for row in kinds] == list(DERIVATIVES)
    for row in kinds:
        assert set(row[1:]) == {"yes"}
    for row, refused in ((for_q, {"triton"}), (for_p, {"triton", "fourier"})):
        said = zip(header[1:], row[1:], strict=True)
        assert {name.strip('`"') for name, answer in said if answer == "error"} == refused
