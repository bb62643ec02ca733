"""Layers and networks on a CUDA device against the definition on a CPU."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.nn.test_layer import (
    evaluated,
    filters_of_one_path,
    outputs_and_gradients,
    small_domain,
    with_backend,
)
from tests.strategies import (
    AGREEMENT,
    FILTERS,
    FORMS,
    GROUPS,
    assert_equivariant,
    backends_for,
    domains,
    features,
    layers,
    relative_error,
    rotations,
    shifts,
)
from tests.training.test_training import boxes, equivariant
from tripq import PQTensorFieldLayer
from tripq.training import Budget, train

pytestmark = pytest.mark.gpu


def on_device(layer, x, graph, backend):
    """Output and gradients of a copy of the layer on the device, brought back."""
    layer = with_backend(copy.deepcopy(layer), backend).cuda()
    found = outputs_and_gradients(layer, x.cuda(), graph.to("cuda"))
    assert all(tensor.is_cuda for tensor in found.values())
    return {name: tensor.cpu() for name, tensor in found.items()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("filter", FILTERS)
@settings(max_examples=6)
@given(data=st.data())
def test_the_output_and_every_gradient_are_those_of_the_definition(filter, form, data):
    domain = data.draw(domains(form))
    layer = data.draw(layers(domain=domain, filter=filter))
    x, graph = features(layer, domain), domain.graph()
    measure = outputs_and_gradients(with_backend(layer, "edges"), x, graph)
    for backend in (*backends_for(form, filter), "auto"):
        found = on_device(layer, x, graph, backend)
        errors = {name: relative_error(found[name], measure[name]) for name in measure}
        assert max(errors.values()) < AGREEMENT[torch.float64], (backend, errors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["tp", "diff", "p", "q"])
def test_every_path_alone(kind, form, dtype):
    """In full precision: TF32 would leave errors of 3e-4."""
    domain = small_domain(form)
    scan, moved = domain.graph().scans[0], domain.graph().to("cuda").scans[0]
    for path, layer, filter in filters_of_one_path(kind, dtype):
        x = features(layer, domain)
        measure = evaluated("edges", x, scan, copy.deepcopy(filter).double())
        assert measure["output"].abs().max() > 1e-3, f"{path} does something"
        there = copy.deepcopy(filter).cuda()
        for backend in backends_for(form, kind):
            found = evaluated(backend, x.to("cuda", dtype), moved, there)
            for name, tensor in found.items():
                error = relative_error(tensor.cpu().double(), measure[name])
                assert error < AGREEMENT[dtype], f"{name} of {path} by {backend}: {error:.1e}"


@pytest.mark.parametrize(("group", "form"), list(product(GROUPS, FORMS)))
@settings(max_examples=4)
@given(data=st.data())
def test_layers_commute_with_motions(group, form, data):
    domain = data.draw(domains(form))
    layer = data.draw(layers(domain=domain, filter="tp", group=group)).cuda()
    moves = data.draw(rotations(group)), data.draw(shifts())
    x = features(layer, domain).cuda()
    for backend in ("triton", "auto"):
        assert_equivariant(with_backend(layer, backend), x, On(domain), *moves)


class On:
    """A domain whose graphs are on the device."""

    def __init__(self, domain):
        self.domain = domain

    def graph(self):
        return self.domain.graph().to("cuda")

    def moved(self, rotation, shift):
        return On(self.domain.moved(rotation, shift))


@pytest.mark.parametrize("backend", ["fourier", "dense", "recoupled", "triton", "auto"])
def test_autocast_takes_no_more_than_rounding_to_bfloat16(backend):
    torch.manual_seed(0)
    layer = PQTensorFieldLayer(
        "1x0e + 1x1o", "2x0e + 1x2e", 3.0, backend=backend, quadrature="sum"
    ).cuda()
    domain = small_domain("grid")
    graph, x = domain.graph().to("cuda"), features(layer, domain, torch.float32).cuda()
    exact = layer(x, graph)
    with torch.autocast("cuda", torch.bfloat16):
        rounded = layer(x, graph)
    assert relative_error(rounded.float(), exact) < 2.0**-6  # as on a CPU


def test_training_takes_the_steps_that_it_takes_on_a_cpu():
    """A few: rounding grows from step to step."""
    networks = equivariant(), equivariant()
    networks[1].load_state_dict(networks[0].state_dict())
    first = copy.deepcopy(networks[0].state_dict())
    for network, device in zip(networks, ("cpu", "cuda"), strict=True):
        train(network, boxes(seed=3), Budget(steps=2), device=device, precision="32-true")
    here, there = (network.cpu().state_dict() for network in networks)
    moved = 0.0
    for name, weights in here.items():
        if weights.is_floating_point():
            moved = max(moved, (weights - first[name]).abs().max().item())
            torch.testing.assert_close(there[name], weights, rtol=1e-2, atol=1e-4, msg=name)
    assert moved > 1e-3
