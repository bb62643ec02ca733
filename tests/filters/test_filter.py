"""What a filter learns, its embeddings and its initial weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import (
    FILTERS,
    Grid,
    affine_of,
    features,
    layers,
    relative_error,
    seeds,
    table_of,
)
from tests.trust.bounds import bounded
from tripq import PQGraph, PQTensorFieldLayer, Radial
from tripq.filters import filter as filter_module
from tripq.so3.harmonics import spherical_harmonics, unit_vectors


def offsets(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, *shape, 3, generator=generator, dtype=torch.float64)


def filter_of(kind, **options):
    options = {"lmax_p": 2, "lmax_q": 2} | options
    layer = PQTensorFieldLayer(
        "2x0e + 1x1o", "1x0e + 2x2e", 3.0, filter=kind, **options, quadrature="sum"
    )
    (filter,) = layer.double().filters
    return filter


@pytest.mark.parametrize("kind", ["tp", "diff", "p", "q"])
def test_the_weights_of_the_paths_share_out_one_parameter(kind):
    filter = filter_of(kind, p_radial=Radial(number=2), q_radial=Radial(number=4))
    k_p = 2 if kind != "q" else 1
    k_q = 4 if kind != "p" else 1
    channels_in, channels_out = {0: 2, 1: 1}, {0: 1, 2: 2}
    parts = list(filter.path_weights())
    assert tuple(path for path, _ in parts) == filter.paths
    for path, weight in parts:
        mul_out, mul_in = channels_out[path.l_out], channels_in[path.l_in]
        assert weight.shape == (mul_out, mul_in, k_p, k_q, k_q)
    assert torch.cat([weight.flatten() for _, weight in parts]).equal(filter.weight)
    with torch.no_grad():
        parts[0][1].fill_(7.0)
    assert filter.weight[0] == 7.0, "a view, not a copy"


@pytest.mark.parametrize("kind", ["tp", "diff", "p", "q"])
def test_a_filter_without_values_is_as_large_and_takes_no_memory(kind):
    number = filter_of(kind).weight.numel()
    with bounded(5, 5, with_torch=True), torch.device("meta"):
        assert filter_of(kind).weight.numel() == number
        (wide,) = PQTensorFieldLayer(
            "20000x0e", "20000x0e", 3.0, filter=kind, quadrature="sum"
        ).filters
    assert wide.weight.numel() >= 20_000**2


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("q_out", ["graph", None])
def test_initial_weights_keep_the_scale_of_features(kind, q_out):
    torch.manual_seed(0)
    layer = PQTensorFieldLayer(
        "8x0e + 4x1o",
        "8x0e + 8x1o",
        5.0,
        filter=kind,
        lmax_p=2,
        lmax_q=2,
        q_out=q_out,
        quadrature="sum",
    )
    for filter in layer.filters:
        deviations = {0: [], 1: []}
        for path, weight in filter.path_weights():
            deviations[path.l_out].append((weight / filter.weight.std()).std())
            assert weight.mean().abs() < 5 * weight.std() / math.sqrt(weight.numel())
        for of_one_order in deviations.values():
            assert max(of_one_order) < 1.4 * min(of_one_order)
    grid = Grid(np.ones((4, 4, 4), bool), affine_of(2 * np.eye(3)), table_of(0, 6))
    x = features(layer, grid, torch.float32)
    x = x[:, :1].expand_as(x)  # the sum over q is a mean: it keeps what directions have in common
    out = layer(x, grid.graph(5.0))
    for part in (out[..., :8], out[..., 8:]):
        assert 0.1 < part.square().mean().sqrt() < 10


@pytest.mark.parametrize("kind", ["tp", "diff", "p", "q"])
def test_initial_weights_are_deviates_over_the_root_of_the_number_of_terms(kind):
    filter = filter_of(kind)
    lengths = 2.0 * np.linalg.norm(np.indices((5, 5, 5)) - 2.0, axis=0).ravel()
    lengths = torch.from_numpy(lengths[(lengths < filter.phi_p.end) | (lengths == 0)])
    squares = filter.phi_p(lengths).square().sum(dim=1)
    terms = {0: 0.0, 2: 0.0}
    for path, weight in filter.path_weights():
        _, mul_in, _, k_q_out, k_q_in = weight.shape
        neighbours = float(squares[(lengths > 0) | (path.outer == 0)].sum())
        terms[path.l_out] += mul_in * k_q_out * k_q_in * neighbours
    torch.manual_seed(0)
    filter.reset_parameters()
    torch.manual_seed(0)
    for path, weight in filter.path_weights():
        expected = torch.empty_like(weight).normal_() / math.sqrt(terms[path.l_out])
        torch.testing.assert_close(weight, expected, rtol=1e-14, atol=0)


@given(seed=seeds)
def test_inner_harmonics_are_those_of_the_q_offset(seed):
    p, q_out, q_in = offsets(seed, 4)
    for l, y in filter_of("tp").inner_harmonics(p, q_out, q_in).items():
        assert relative_error(y, spherical_harmonics((l,), q_out - q_in)[l]) < 1e-14
    unit = filter_of("q", q_directions="unit").inner_harmonics(p, q_out, q_in)
    for l, y in unit.items():
        offset = unit_vectors(q_out) - unit_vectors(q_in)
        assert relative_error(y, spherical_harmonics((l,), offset)[l]) < 1e-14


@given(seed=seeds)
def test_inner_harmonics_of_a_difference_see_both_offsets(seed):
    p, q_out, q_in = offsets(seed, 4)
    filter = filter_of("diff")
    for l, y in filter.inner_harmonics(p, q_out, q_in).items():
        assert relative_error(y, spherical_harmonics((l,), p - (q_out - q_in))[l]) < 1e-14
    assert {l: y.tolist() for l, y in filter.outer_harmonics(p).items()} == {0: [[1.0]] * 4}


@pytest.mark.parametrize("kind", FILTERS)
@settings(max_examples=8)
@given(data=st.data(), seed=seeds)
def test_an_antipodal_filter_does_not_know_the_signs_of_directions(kind, data, seed):
    layer = data.draw(layers(filter=kind, antipodal=True))
    p, q_out, q_in = offsets(seed, 4)
    kernel = layer.kernel(p, q_out, q_in)
    for sign_out, sign_in in ((1, -1), (-1, 1), (-1, -1)):
        assert relative_error(layer.kernel(p, sign_out * q_out, sign_in * q_in), kernel) < 1e-13


@pytest.mark.parametrize("kind", FILTERS)
@settings(max_examples=5)
@given(data=st.data(), seed=seeds)
def test_a_kernel_of_many_offsets_is_the_kernels_of_each(kind, data, seed):
    layer = data.draw(layers(filter=kind))
    p, q_out, q_in = offsets(seed, 2)
    kernel = layer.kernel(p[:, None, None], q_out[None, :, None], q_in)
    assert kernel.shape == (2, 2, 2, layer.irreps_out.dim, layer.irreps_in.dim)
    for i, j, k in torch.cartesian_prod(*[torch.arange(2)] * 3).tolist():
        alone = layer.kernel(p[i], q_out[j], q_in[k])
        torch.testing.assert_close(kernel[i, j, k], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", FILTERS)
def test_slopes_of_a_kernel_where_offsets_vanish_are_numbers(kind):
    layer = PQTensorFieldLayer("1x0e + 1x1o", "1x0e + 1x1o", 3.0, filter=kind, quadrature="sum")
    p, q_out, q_in = torch.zeros(3, 4, 3).unbind()
    q_out[1], q_in[1] = 1.0, 1.0  # the offset vanishes, the q-vectors do not
    q_out[2] = 1.0
    p[3] = 1.0
    inputs = [v.requires_grad_() for v in (p, q_out, q_in)]
    gradients = torch.autograd.grad(
        layer.kernel(*inputs).square().sum(), inputs, materialize_grads=True
    )
    assert all(bool(grad.isfinite().all()) for grad in gradients)
    assert gradients[0][0].tolist() == [0.0, 0.0, 0.0], "a zero offset has no slope"


def test_a_layer_may_be_trained_after_it_served_inference():
    """Shared constants are not made for inference only."""
    filter_module._coupling.cache_clear()
    filter_module.positions.cache_clear()
    grid = Grid(np.ones((3, 3, 3), bool), affine_of(2 * np.eye(3)), table_of(0, 4))
    for q_out in ("graph", None):
        layer = PQTensorFieldLayer("1x0e + 1x1o", "1x0e + 1x1o", 3.0, q_out=q_out, quadrature="sum")
        x = features(layer, grid, torch.float32)
        with torch.inference_mode():
            expected = layer(x, grid.graph(3.0))
        out = layer(x, grid.graph(3.0))
        out.square().sum().backward()
        assert out.equal(expected)
        assert all(p.grad is not None for p in layer.parameters())


def test_repr_counts_paths_and_weights():
    filter = filter_of("q", q_radial=Radial(number=1))
    assert filter.extra_repr() == "'q', 5 paths, 11 weights"


def edges_of(layer):
    graph = PQGraph.from_grid(np.ones((3, 3, 3)), np.diag([2.0, 2, 2, 1]), np.eye(3), 4.0)
    (scan,) = layer.neighbourhoods(graph).scans
    return scan


def test_filters_with_the_same_functions_share_their_embeddings():
    options = {"filter": "tp", "lmax_p": 2, "lmax_q": 2}
    first = PQTensorFieldLayer("2x0e + 1x1o", "2x0e + 1x2e", 3.0, **options)
    second = PQTensorFieldLayer("1x0e + 3x1o", "1x0e + 1x2e", 3.0, **options)
    scan = edges_of(first)
    (one,), (two,) = first.filters, second.filters
    assert one.embed_p(scan.edges, torch.float32) is two.embed_p(scan.edges, torch.float32)
    assert one.embed_p(scan.edges, torch.float64) is not one.embed_p(scan.edges, torch.float32)
    assert one.constants_q(scan.q, torch.float32) == two.constants_q(scan.q, torch.float32)


@pytest.mark.parametrize(
    "options",
    [
        {"p_radial": Radial("gaussian"), "q_radial": Radial("cosine")},
        {"lmax_p": 1, "lmax_q": 1},
        {"antipodal": True, "p_radial": Radial("cosine", 3)},
        {"q_directions": "unit", "p_radial": Radial("cosine", 3)},
    ],
)
def test_other_functions_have_other_embeddings(options):
    usual = {"lmax_p": 2, "lmax_q": 2}
    first = PQTensorFieldLayer("2x0e + 1x2e", "2x0e + 1x2e", 3.0, **usual)
    second = PQTensorFieldLayer("2x0e + 1x2e", "2x0e + 1x2e", 3.0, **usual | options)
    scan = edges_of(first)
    (one,), (two,) = first.filters, second.filters
    for constants in ("constants_p", "constants_q"):
        space = scan.edges if constants == "constants_p" else scan.q
        keys = [getattr(f, constants)(space, torch.float32) for f in (one, two)]
        assert keys[0] != keys[1]
        assert None not in keys


def test_what_is_learned_or_differentiated_is_not_kept():
    usual = PQTensorFieldLayer("1x0e", "1x0e + 1x2e", 3.0)
    scan = edges_of(usual)
    for radial in (Radial("cosine", 2, learnable=True), Radial("cosine", 2, hidden=(4,))):
        (learned,) = PQTensorFieldLayer(
            "1x0e", "1x0e + 1x2e", 3.0, p_radial=radial, q_radial=radial
        ).filters
        assert learned.constants_p(scan.edges, torch.float32) is None
        assert learned.constants_q(scan.q, torch.float32) is None
    q = torch.eye(3, dtype=torch.float64, requires_grad=True)
    graph = PQGraph.from_grid(np.ones((3, 3, 3)), np.diag([2.0, 2, 2, 1]), q, 4.0)
    (filter,) = usual.filters
    assert filter.constants_q(graph.scans[0].q, torch.float32) is None
    points = torch.rand(4, 3, dtype=torch.float64)
    cloud = PQGraph.from_points(points, np.eye(3), 4.0).scans[0]
    assert filter.constants_p(cloud.edges, torch.float32) is None
