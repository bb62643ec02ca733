"""Which back end is chosen, what is said about it, and what a budget does."""

from __future__ import annotations

import gc
import re
import weakref
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from tests.strategies import (
    RADIUS,
    affine_of,
    backends_for,
    largest_allocation,
    relative_error,
    table_of,
)
from tripq import PQGraph, PQTensorFieldLayer
from tripq.backends import BACKENDS
from tripq.backends.base import Request
from tripq.backends.plan import make_plan
from tripq.kernels import launch

CUDA = torch.device("cuda")
AFFINE = affine_of(2.0 * np.eye(3))
BALL = np.linalg.norm(np.indices((16, 16, 16)) - 7.5, axis=0) < 4


def grid(mask, n_directions):
    return PQGraph.from_grid(mask, AFFINE, table_of(0, n_directions), RADIUS)


def layer_of(**options):
    torch.manual_seed(0)
    return PQTensorFieldLayer(
        "4x0e + 2x1o + 1x2e",
        "4x0e + 2x1o + 1x2e",
        RADIUS,
        lmax_p=2,
        lmax_q=2,
        **options,
        quadrature="sum",
    )


def chosen(layer, graph):
    (plan,) = layer.explain(graph).plans
    return plan.backend


def test_many_directions_go_by_frequencies_and_maps_without_any_are_convolved():
    assert chosen(layer_of(), grid(BALL, 64)) == "fourier"
    maps = PQTensorFieldLayer("24x0e + 6x1o", "24x0e + 6x1o", RADIUS, q_in=None, quadrature="sum")
    assert chosen(maps, grid(np.ones((16, 16, 16)), 1)) == "dense"


def test_a_plan_says_why_and_what_it_takes():
    (plan,) = layer_of().explain(grid(BALL, 8)).plans
    text = str(plan)
    assert "the fastest by the cost model" in text
    assert f"{BALL.sum()} voxels with 15 neighbours, 8 directions to 8" in text
    assert "triton    cannot: its kernels need a CUDA device" in text
    assert {e.backend for e in plan.alternatives} | {plan.backend} == {
        "dense", "edges", "fourier", "recoupled",
    }  # fmt: skip
    for estimate in (plan.chosen, *plan.alternatives):
        assert estimate.operations > 0
        assert estimate.bytes > 0
        assert estimate.seconds >= plan.seconds
    (asked,) = layer_of(backend="edges").explain(grid(BALL, 8)).plans
    assert "edges, as requested" in str(asked)
    assert len(layer_of(filter="tp + p").explain(grid(BALL, 8)).plans) == 2


@pytest.mark.parametrize("able", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_convolutions_count_as_faster_where_they_compute_in_bfloat16(able, dtype, monkeypatch):
    monkeypatch.setattr("tripq.backends.plan.has_bfloat16", lambda device: able)
    layer, graph = layer_of().to(dtype), grid(BALL, 8)

    def seconds():
        (plan,) = layer.explain(graph).plans
        return {e.backend: e.seconds for e in (plan.chosen, *plan.alternatives)}

    usual = seconds()
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = seconds()
    assert seconds() == usual
    faster = {name for name in usual if under_autocast.pop(name) < usual[name]}
    assert faster == ({"dense"} if able and dtype == torch.float32 else set())


def test_irregular_points_and_nodes_have_no_dense_filter():
    p, q = np.random.default_rng(0).uniform(-3, 3, (6, 3)), table_of(0, 6)
    for graph, why in (
        (PQGraph.from_points(p, q, RADIUS), "the voxels are not on a grid"),
        (PQGraph.from_nodes(p, q, RADIUS), "voxels have individual directions"),
    ):
        (plan,) = layer_of().explain(graph).plans
        assert plan.impossible["dense"].startswith(why)
        x = torch.ones(6, 6, 15) if why.startswith("the voxels") else torch.ones(6, 15)
        with pytest.raises(ValueError, match=f"'dense' back end cannot run here: {why}"):
            layer_of(backend="dense")(x, graph)


def test_a_joint_filter_has_no_triton_kernel_where_directions_are_shared():
    layer = layer_of(filter="diff", backend="triton")
    with pytest.raises(ValueError, match='it has no kernel for a "diff" filter'):
        layer(torch.ones(int(BALL.sum()), 4, 15), grid(BALL, 4))


def test_gradients_of_coordinates_are_not_for_triton():
    p = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    graph = PQGraph.from_points(p, table_of(0, 3), RADIUS)
    with pytest.raises(ValueError, match="it needs constant coordinates and q"):
        layer_of(backend="triton")(torch.ones(2, 3, 15), graph)


def test_without_triton_it_says_what_to_install(monkeypatch):
    request = replace(request_of(grid(np.ones((3, 3, 2)), 4), layer_of()), device=CUDA)
    assert BACKENDS["triton"].obstacle(request) is None
    monkeypatch.setattr("tripq.kernels.launch.TRITON_IS_INSTALLED", False)
    why = "Triton is not installed: pip install 'tripq[cuda]'"
    assert BACKENDS["triton"].obstacle(request) == why
    assert make_plan("auto", request).backend != "triton"
    with pytest.raises(ValueError, match=re.escape(why)):
        make_plan("triton", request)


@pytest.mark.parametrize("installed", [True, False])
def test_without_triton_operators_of_a_cuda_device_are_plain_torch(monkeypatch, installed):
    monkeypatch.setattr(launch, "TRITON_IS_INSTALLED", installed)
    tensor = cast(Tensor, SimpleNamespace(is_cuda=True, device=CUDA))
    assert launch.runs_in_triton(tensor) is installed


def request_of(graph, layer, budget=1 << 20):
    (scan,), (filter,) = graph.scans, layer.filters
    return Request.of(scan.edges, scan.q, filter, budget)


def test_back_ends_are_known_by_their_names():
    assert [b.name for b in BACKENDS.values()] == list(BACKENDS)


def test_a_plan_is_made_once_for_what_it_depends_on():
    graph, layer = grid(np.ones((3, 3, 2)), 4), layer_of()
    plan = make_plan("auto", request_of(graph, layer))
    assert make_plan("auto", request_of(graph, layer)) is plan
    assert make_plan("edges", request_of(graph, layer)) is not plan
    assert make_plan("auto", request_of(graph, layer_of())) is not plan
    assert make_plan("auto", request_of(grid(np.ones((3, 3, 2)), 4), layer)) is not plan
    small, large = (make_plan("edges", request_of(graph, layer, b)) for b in (1000, 1 << 20))
    assert small.peak_memory < large.peak_memory
    layer.double()
    assert make_plan("auto", request_of(graph, layer)).bytes == 2 * plan.bytes


@pytest.mark.parametrize("owner", ["graph", "layer"])
def test_a_plan_goes_with_its_scan_and_with_its_filter(owner):
    owners = {"graph": grid(np.ones((3, 3, 2)), 4), "layer": layer_of()}
    kept = weakref.ref(make_plan("auto", request_of(**owners)))
    assert kept() is not None
    del owners[owner]
    gc.collect()
    assert kept() is None


def test_a_pass_says_nothing_and_counts_nothing_again(monkeypatch):
    graph, layer = grid(np.ones((3, 3, 2)), 4), layer_of(backend="recoupled")
    x = torch.ones(18, 4, 15)
    first = layer(x, graph)
    for name in ("_estimate", "_described", "_reason"):
        monkeypatch.setattr(f"tripq.backends.plan.{name}", None)
    assert layer(x, graph).equal(first)


@pytest.mark.parametrize("of_p", [True, False])
def test_a_kept_plan_does_not_outlive_what_it_took_for_constant(of_p):
    graph, x = grid(np.ones((3, 3, 2)), 4), torch.ones(18, 4, 15)
    layer = layer_of(backend="triton")
    layer(x, graph)
    (scan,) = graph.within(RADIUS).scans
    constants = scan.edges.offsets if of_p else scan.q.q_in
    constants.requires_grad_()
    with pytest.raises(ValueError, match="it needs constant coordinates and q"):
        layer(x, graph)
    constants.requires_grad_(False)
    layer(x, graph)
    with forward_ad.dual_level():
        q = forward_ad.make_dual(torch.tensor(table_of(0, 4)), torch.ones(4, 3).double())
        dual = PQGraph.from_grid(np.ones((3, 3, 2)), AFFINE, q, RADIUS)
        with pytest.raises(ValueError, match="it needs constant coordinates and q"):
            layer(x, dual)
    layer(x, dual)


@pytest.mark.parametrize("backend", backends_for("grid"))
def test_a_small_budget_splits_the_work_and_changes_nothing(backend):
    shape, small = ((3, 3, 3), 1 << 21) if backend == "edges" else ((6, 6, 6), 1 << 18)
    graph = grid(np.ones(shape), 6)
    x = torch.randn(graph.n_voxels, 6, 7, generator=torch.Generator().manual_seed(0))
    results = []
    for budget in (1 << 30, small):
        torch.manual_seed(0)
        layer = PQTensorFieldLayer(
            "4x0e + 1x1o", "4x0e + 1x1o", RADIUS, lmax_p=1, lmax_q=1,
            backend=backend, memory_budget=budget, quadrature="sum"
        )  # fmt: skip
        leaf = x.clone().requires_grad_()
        outputs = []

        def run(layer=layer, leaf=leaf, outputs=outputs):
            outputs.append(layer(leaf, graph))
            outputs[0].square().sum().backward()

        largest = largest_allocation(run)
        gradients = [leaf.grad, *(p.grad for p in layer.parameters())]
        results.append((largest, outputs[0].detach(), *gradients))
    (whole, *expected), (split, *found) = results
    assert 0 < split <= whole / 2
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 1e-5
