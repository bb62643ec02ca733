"""The layer against its definition, and one back end against the other."""

from __future__ import annotations

import copy
import re
import warnings
from itertools import product

import numpy as np
import pytest
import torch
from e3nn import o3
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from tests.strategies import (
    AGREEMENT,
    BACKENDS,
    ENDS,
    FILTERS,
    FORMS,
    GROUPS,
    Q_MAX,
    RADIUS,
    Grid,
    Nodes,
    Points,
    affine_of,
    backends_for,
    combinations,
    domains,
    features,
    largest_allocation,
    layers,
    randomised,
    relative_error,
    rotation_of,
    seeds,
    table_of,
)
from tripq import PQGraph, PQTensorFieldLayer, Radial
from tripq.backends import BACKENDS as EVALUATE
from tripq.filters.filter import PQFilter

LIMIT = AGREEMENT[torch.float64]
BUDGET = 1 << 20  # bytes


def with_backend(layer, backend):
    layer.backend = backend
    return layer


def small_domain(form, seed=0):
    """A few voxels, some of them apart from each other, with two shells."""
    rng = np.random.default_rng(seed)
    if form == "grid":
        mask = np.array([[[1, 1], [0, 1]], [[1, 0], [0, 1]]], dtype=bool)
        return Grid(
            mask, affine_of(rotation_of(seed) @ np.diag([2.0, 2.2, 2.9])), table_of(seed, 4)
        )
    p = np.concatenate([rng.uniform(-1.2, 1.2, (3, 3)), [[9.0, 9.0, 9.0]]])
    if form == "points":
        return Points(p, table_of(seed, 4))
    counts = (2, 3, 1, 2)
    return Nodes(p, np.concatenate([table_of(seed + n, n) for n in counts]), counts)


# -- the definition ------------------------------------------------------------------------------


def gaussians(length, number, end, cutoff):
    """e3nn's Gaussians, at equal steps from 0 to `end` or one step before it."""
    step = end / number if cutoff else end / (number - 1)
    return [np.exp(-((length / step - k) ** 2)) / 1.12 for k in range(number)]


def harmonic(l, v):
    """Y_l of a direction; 0 for the zero vector, but for l = 0."""
    if np.linalg.norm(v) < 1e-9:
        return np.full(2 * l + 1, float(l == 0))
    return o3.spherical_harmonics(l, torch.tensor(v), True, normalization="component").numpy()


def coupling(l_a, l_b, l_c):
    """Clebsch-Gordan coefficients C[m_a, m_b, m_c] = sqrt(2 l_c + 1) (3j symbol)."""
    return np.sqrt(2 * l_c + 1) * o3.wigner_3j(l_a, l_b, l_c, dtype=torch.float64).numpy()


def channels(irreps, group):
    """(l, parity, number among those with equal l and parity, place of m = -l) of each channel."""
    seen, place = {}, 0
    for mul, ir in irreps:
        for _ in range(mul):
            key = (ir.l, ir.p if group == "O3" else 1)
            yield *key, seen.setdefault(key, 0), place
            seen[key] += 1
            place += ir.dim


def angular(kind, signs, p_offset, q_out, q_in, l_f, l_p, l_q):
    """The filter's components m_f at one triple, averaged over signs of (q_out, q_in)."""
    total = np.zeros(2 * l_f + 1)
    for sign_out, sign_in in signs:
        q_offset = sign_out * q_out - sign_in * q_in
        if kind == "diff":
            total += harmonic(l_f, p_offset - q_offset)
            continue
        y_p = harmonic(l_p, p_offset if kind != "q" else np.zeros(3))
        y_q = harmonic(l_q, q_offset if kind != "p" else np.zeros(3))
        c = coupling(l_p, l_q, l_f)
        for m_f, m_p, m_q in product(*(range(2 * l + 1) for l in (l_f, l_p, l_q))):
            total[m_f] += c[m_p, m_q, m_f] * y_p[m_p] * y_q[m_q]
    return total / len(signs)


def reference(layer, x, nodes_in, nodes_out, quadrature, n_radial, antipodal):
    """Section 1 of the paper's equation, component by component.

    `nodes_in` and `nodes_out` are lists of (p, q), `quadrature(i, j)` the weight of the edge from
    input node j to output node i (0: none), x has the shape (len(nodes_in), dim_in).
    """
    out = np.zeros((len(nodes_out), layer.irreps_out.dim))
    signs = list(product((1, -1), repeat=2)) if antipodal else [(1, 1)]
    reduced = layer.q_out is None
    for filter in layer.filters:
        kind = filter.kind
        for path, weight in filter.path_weights():
            weight = weight.detach().numpy()
            c = coupling(path.l_filter, path.l_in, path.l_out)
            for (i, (p_out, q_out)), (j, (p_in, q_in)) in product(
                enumerate(nodes_out), enumerate(nodes_in)
            ):
                if not quadrature(i, j):
                    continue
                phi_1 = gaussians(np.linalg.norm(p_out - p_in), n_radial, RADIUS, True)
                phi_2 = gaussians(np.linalg.norm(q_out), n_radial, Q_MAX, False)
                phi_3 = gaussians(np.linalg.norm(q_in), n_radial, Q_MAX, False)
                phi_1 = phi_1 if kind != "q" else [1.0]
                phi_2 = phi_2 if kind != "p" and not reduced else [1.0]
                phi_3 = phi_3 if kind != "p" else [1.0]
                y = angular(
                    kind, signs, p_out - p_in, q_out, q_in, path.l_filter, path.l_p, path.l_q
                )
                for (l_o, s_o, u, o), (l_i, s_i, v, a) in product(
                    channels(layer.irreps_out, layer.group), channels(layer.irreps_in, layer.group)
                ):
                    if (l_o, s_o, l_i, s_i) != (
                        path.l_out, path.parity_out, path.l_in, path.parity_in
                    ):  # fmt: skip
                        continue
                    w = sum(
                        weight[u, v, k1, k2, k3] * f1 * f2 * f3
                        for k1, f1 in enumerate(phi_1)
                        for k2, f2 in enumerate(phi_2)
                        for k3, f3 in enumerate(phi_3)
                    )
                    for m_o, m_f, m_i in product(
                        range(2 * l_o + 1), range(2 * path.l_filter + 1), range(2 * l_i + 1)
                    ):
                        out[i, o + m_o] += (
                            quadrature(i, j) * w * c[m_f, m_i, m_o] * y[m_f] * x[j, a + m_i]
                        )
    return torch.from_numpy(out)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("filter", FILTERS)
@settings(max_examples=2)
@given(seed=seeds, reduce=st.booleans(), antipodal=st.booleans())
def test_the_layer_is_the_equation_of_the_paper(filter, group, seed, reduce, antipodal):
    torch.manual_seed(seed)
    layer = PQTensorFieldLayer(
        "1x1o + 1x0e + 1x1e",
        "1x1o + 1x0o + 1x0e",
        RADIUS,
        q_max=Q_MAX,
        filter=filter,
        lmax_p=1,
        lmax_q=2 if antipodal else 1,
        p_radial=Radial(number=2),
        q_radial=Radial(number=2),
        group=group,
        antipodal=antipodal,
        q_out=None if reduce else "graph",
        quadrature="sum",
    ).double()
    rng = np.random.default_rng(seed)
    p, q = rng.uniform(-1.7, 1.7, (3, 3)), table_of(seed, 2)
    q_out = np.zeros((1, 3)) if reduce else q
    nodes_in, nodes_out = list(product(p, q)), list(product(p, q_out))
    x = rng.normal(size=(len(nodes_in), layer.irreps_in.dim))

    def quadrature(i, j):
        near = np.linalg.norm(nodes_out[i][0] - nodes_in[j][0]) < RADIUS
        return near / len(q)

    expected = reference(layer, x, nodes_in, nodes_out, quadrature, 2, antipodal)
    expected = expected.view(len(p), len(q_out), -1)
    expected = expected[:, 0] if reduce else expected
    graph = PQGraph.from_points(p, q, RADIUS)
    features = torch.from_numpy(x).view(len(p), len(q), -1)
    for backend in backends_for("points", filter):
        assert relative_error(with_backend(layer, backend)(features, graph), expected) < LIMIT


def dense_sum(layer, x, domain):
    """Sum of `layer.kernel` over all pairs of nodes, with quadrature weights."""
    p, n = torch.from_numpy(domain.centres()), domain.n_voxels
    per_voxel = domain.counts if isinstance(domain, Nodes) else len(domain.q)
    voxel_in = torch.from_numpy(np.repeat(np.arange(n), per_voxel))
    q_in = torch.from_numpy(domain.q if isinstance(domain, Nodes) else np.tile(domain.q, (n, 1)))
    on_map = torch.arange(n), torch.zeros(n, 3).double()
    if layer.q_out is None:
        voxel_out, q_out = on_map
    elif domain.q_out is None:
        voxel_out, q_out = voxel_in, q_in
    else:
        voxel_out = torch.arange(n).repeat_interleave(len(domain.q_out))
        q_out = torch.from_numpy(np.tile(domain.q_out, (n, 1)))

    if layer.q_in is None:
        voxel_in, q_in = on_map

    offsets = p[voxel_out][:, None] - p[voxel_in]
    same_voxel = voxel_in[:, None] == voxel_in
    a, b = q_out.norm(dim=-1)[:, None], q_in.norm(dim=-1)
    joined = torch.ones(len(q_out), len(q_in), dtype=torch.bool)
    if domain.q_edges == "shell" and None not in (layer.q_in, layer.q_out):
        joined = (a - b).abs() <= 0.07 * torch.maximum(a, b)
    # A mean over the joined directions of each input voxel.
    count = joined.double() @ same_voxel.double()
    weights = joined * (offsets.norm(dim=-1) < RADIUS) / count.clamp(min=1)
    kernel = layer.kernel(offsets, q_out[:, None], q_in)
    rows = x.reshape(len(q_in), x.shape[-1])
    out = torch.einsum("ij,ijab,jb->ia", weights, kernel, rows)
    if isinstance(domain, Nodes) or layer.q_out is None:
        return out
    return out.view(n, len(domain.q if domain.q_out is None else domain.q_out), out.shape[-1])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("filter", FILTERS)
@settings(max_examples=6)
@given(data=st.data())
def test_the_layer_is_the_sum_of_its_kernel_over_all_pairs_of_nodes(filter, form, data):
    domain = data.draw(domains(form))
    layer = data.draw(layers(domain=domain, filter=filter, ends=ENDS, quadrature="sum"))
    x = features(layer, domain)
    expected = dense_sum(layer, x, domain)
    if layer.self_interaction is not None:
        expected = expected + layer._self_interaction(x)
    if layer.bias is not None:
        expected[..., list(layer.scalars_out)] += layer.bias
    for backend in backends_for(form, filter):
        found = with_backend(layer, backend)(x, domain.graph())
        assert relative_error(found, expected) < LIMIT, backend


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("filter", FILTERS)
def test_a_layer_may_expand_a_map_to_directions(filter, form):
    """As the last layer of a network that predicts a signal; by every back end, with gradients."""
    layer = tiny_layer(filter, "edges", q_in=None, q_out="graph", bias=True)
    domain = small_domain(form)
    x, graph = features(layer, domain), domain.graph()
    out = layer(x, graph)
    assert out.shape == (*domain.shape, 4)
    expected = dense_sum(layer, x, domain)
    expected[..., list(layer.scalars_out)] += layer.bias
    assert relative_error(out, expected) < LIMIT
    if filter != "p" and form != "nodes":
        assert relative_error(out[:, 1], out[:, 2]) > 0.01, "directions differ"
    errors = disagreement(layer, x, graph, backends_for(form, filter)[1:])
    assert max(errors.values()) < LIMIT, errors
    with_backend(layer, "recoupled")  # the gradients of the others are the same
    leaves = x.requires_grad_(), *layer.parameters()
    assert gradcheck(lambda x, *_: layer(x, graph), leaves, fast_mode=True)


def test_without_a_word_the_output_of_a_map_is_a_map():
    layers_ = [PQTensorFieldLayer("1x0e", "1x0e", 3.0, **ends, quadrature="sum") for ends in (
        {"q_in": None}, {"q_in": None, "q_out": None}, {"q_in": None, "q_out": "graph"}, {},
        {"q_out": None},
    )]  # fmt: skip
    assert [layer.q_out for layer in layers_] == [None, None, "graph", "graph", None]
    domains_ = [repr(layer).split(" | ")[1].split(",")[0] for layer in layers_]
    assert domains_ == ["p", "p", "p -> pq", "pq", "pq -> p"]


def test_an_expanded_batch_is_each_of_its_scans_alone():
    """The directions of the shorter tables end in zeros."""
    layer = tiny_layer("tp", "auto", q_in=None, q_out="graph")
    scans = [small_domain(form, seed) for seed, form in enumerate(("grid", "points", "grid"))]
    scans[1] = Points(scans[1].p, table_of(1, 2))
    xs = [features(layer, scan) for scan in scans]
    batch = PQGraph.merge([scan.graph() for scan in scans])
    found = layer(torch.cat(xs), batch).split([len(x) for x in xs])
    for x, scan, part in zip(xs, scans, found, strict=True):
        assert relative_error(part[:, : len(scan.q)], layer(x, scan.graph())) < 1e-14
        assert not part[:, len(scan.q) :].any()


def test_a_layer_asks_for_q_max_of_the_directions_that_it_uses():
    """A reduction does not see those of the output, nor an expansion those of the input."""
    p, long, short = np.eye(3), 2 * table_of(0, 4), table_of(0, 4)
    reducing = PQTensorFieldLayer("1x0e", "1x0e", RADIUS, q_out=None, quadrature="sum")
    expanding = PQTensorFieldLayer(
        "1x0e", "1x0e", RADIUS, q_in=None, q_out="graph", quadrature="sum"
    )
    up, down = (
        PQGraph.from_points(p, a, RADIUS, q_out=b) for a, b in ((short, long), (long, short))
    )
    reducing(torch.ones(3, 4, 1), up)
    expanding(torch.ones(3, 1), down)
    for layer, x, graph in (
        (reducing, torch.ones(3, 4, 1), down),
        (expanding, torch.ones(3, 1), up),
    ):
        with pytest.raises(
            ValueError, match=r"a q-vector of length 3\.4, larger than the q_max = 2"
        ):
            layer(x, graph)


def brute_force_count(layer, mul_in, mul_out, n_p, n_q):
    """Weights counted from the inequalities over all tuples of orders (SO(3), all of "paper")."""
    count = 0
    for (l_in, n_in), (l_out, n_out) in product(mul_in.items(), mul_out.items()):
        for l_f, l_p, l_q in product(range(12), repeat=3):
            if (
                abs(l_out - l_in) <= l_f <= l_out + l_in
                and abs(l_p - l_q) <= l_f <= l_p + l_q
                and abs(l_f - l_p) <= 1
            ):
                count += n_in * n_out * n_p * n_q * n_q
    return count


def test_the_number_of_weights_is_that_of_the_selection_rules():
    layer = PQTensorFieldLayer(
        "2x0e + 1x1o + 1x1e",
        "3x0e + 1x2e",
        RADIUS,
        p_radial=Radial(number=2),
        q_radial=Radial(number=3),
        quadrature="sum",
    )
    expected = brute_force_count(layer, {0: 2, 1: 2}, {0: 3, 2: 1}, 2, 3)
    assert sum(p.numel() for p in layer.parameters()) == expected


@pytest.mark.parametrize(
    ("arguments", "unreached"),
    [
        (("1x0e", "2x0e + 3x2e + 4x4e", 4.0, {"lmax_p": 2, "lmax_q": 4}), "4x4e"),
        (("1x0e", "2x0e + 3x2e + 4x4e", 4.0, {"lmax_p": 2, "selection": "all"}), ""),
        (("1x0e", "2x0e + 3x2e", 0.0, {}), "3x2e"),  # its l_p is 1 or more, and p-offsets are 0
        (("1x0e", "2x0e + 3x2e", 0.0, {"filter": "q"}), ""),
        (("1x0e", "1x1o", 4.0, {"group": "O3", "antipodal": True, "filter": "q"}), "1x1o"),
    ],
)
def test_channels_without_a_path_are_named_and_are_zero(arguments, unreached):
    irreps_in, irreps_out, radius, options = arguments
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        layer = PQTensorFieldLayer(irreps_in, irreps_out, radius, **options, quadrature="sum")
    named = [str(w.message) for w in told if "no path of this layer" in str(w.message)]
    assert [f"leads to {unreached}, which" in message for message in named] == [True] * bool(
        unreached
    )
    assert layer.unreached == o3.Irreps(unreached)
    rng = np.random.default_rng(0)
    q = rng.normal(size=(6, 3))
    graph = PQGraph.from_points(rng.uniform(0, 6, size=(9, 3)), q / np.abs(q).max(), radius=4.0)
    out = layer(torch.rand(9, 6, 1), graph).detach()
    for (_, ir), part in zip(layer.irreps_out, layer.irreps_out.slices(), strict=True):
        assert (out[..., part] == 0).all() == (str(ir) in unreached)


# -- one back end against the other --------------------------------------------------------------


def outputs_and_gradients(layer, x, graph):
    """Output, and the gradient of a random functional of it for x and every parameter."""
    x = x.detach().clone().requires_grad_()
    out = layer(x, graph)
    generator = torch.Generator().manual_seed(1)
    # Numbers that all types have.
    direction = torch.randn(out.shape, generator=generator, dtype=torch.bfloat16).to(out)
    names, leaves = zip(("x", x), *layer.named_parameters(), strict=True)
    gradients = [torch.zeros_like(leaf) for leaf in leaves]
    if out.requires_grad:  # where nothing is joined, zeros depend on nothing
        gradients = torch.autograd.grad(out, leaves, direction, materialize_grads=True)
    return {"output": out.detach(), **dict(zip(names, gradients, strict=True))}


def disagreement(layer, x, graph, backends):
    """The relative error of the output and of each gradient, the edges as the measure."""
    measure = outputs_and_gradients(with_backend(layer, "edges"), x, graph)
    errors = {}
    for backend in backends:
        found = outputs_and_gradients(with_backend(layer, backend), x, graph)
        for name in measure:
            errors[backend, name] = relative_error(found[name], measure[name])
    return errors


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("filter", FILTERS)
@settings(max_examples=6)
@given(data=st.data())
def test_back_ends_agree_on_the_output_and_every_gradient(filter, form, data):
    domain = data.draw(domains(form))
    layer = data.draw(layers(domain=domain, filter=filter, ends=ENDS))
    others = backends_for(form, filter)[1:]
    errors = disagreement(layer, features(layer, domain), domain.graph(), others)
    assert max(errors.values()) < LIMIT, errors


def filters_of_one_path(kind, dtype):
    """Each path of a layer with the layer and a filter that has no other path."""
    torch.manual_seed(0)
    radial = Radial(number=2)
    layer = PQTensorFieldLayer(
        "1x0e + 1x1o", "1x1o + 1x2e", RADIUS, filter=kind, lmax_p=2, lmax_q=2,
        p_radial=radial, q_radial=radial, quadrature="sum"
    )  # fmt: skip
    (whole,) = layer.filters
    for path in layer.paths:
        filter = PQFilter(
            kind, (path,), whole.channels_in, whole.channels_out,
            whole.phi_p, whole.phi_q_out, whole.phi_q_in,
            unit_directions=False, antipodal=False, quadrature=whole.quadrature,
        ).to(dtype)  # fmt: skip
        yield path, layer, filter


def evaluated(backend, x, scan, filter):
    """The output of a filter, and its gradients for the features and the weights."""
    x = x.detach().clone().requires_grad_()
    out = EVALUATE[backend].evaluate(x, scan.edges, scan.q, filter, BUDGET)
    direction = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape).to(out)
    grad_x, grad_w = torch.autograd.grad(out, (x, filter.weight), direction)
    return {"output": out.detach(), "x": grad_x, "weight": grad_w}


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        *(("points", torch.float64), ("grid", torch.float32), ("nodes", torch.float64)),
        pytest.param("grid", torch.float64, marks=pytest.mark.exhaustive),
        pytest.param("nodes", torch.float32, marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.parametrize("kind", ["tp", "diff", "p", "q"])
def test_back_ends_agree_on_every_path_alone(kind, form, dtype):
    domain = small_domain(form)
    (scan,) = domain.graph().scans
    for path, layer, filter in filters_of_one_path(kind, dtype):
        x = features(layer, domain, dtype)
        results = {
            backend: evaluated(backend, x, scan, filter) for backend in backends_for(form, kind)
        }
        measure = results.pop("edges")
        assert measure["output"].abs().max() > 1e-3, f"{path} does something"
        for (backend, found), name in product(results.items(), measure):
            error = relative_error(found[name], measure[name])
            assert error < AGREEMENT[dtype], f"{name} of {path} by {backend}: {error:.1e}"


@pytest.mark.parametrize("kind", ["gaussian", "cosine", "bessel", "smooth_finite"])
@pytest.mark.parametrize("filter", ["tp", "diff"])
def test_back_ends_agree_on_the_gradients_of_learnable_radial_functions(kind, filter):
    torch.manual_seed(0)
    layer = PQTensorFieldLayer(
        "1x0e", "1x0e + 1x1o", RADIUS, filter=filter, lmax_p=1, lmax_q=1,
        p_radial=Radial(kind, 3, learnable=True, hidden=(4,)),
        q_radial=Radial(kind, 3, learnable=True, hidden=(4,)), quadrature="sum"
    )  # fmt: skip
    layer = randomised(layer, 0)
    for form in FORMS:
        domain = small_domain(form)
        others = backends_for(form, filter)[1:]
        errors = disagreement(layer, features(layer, domain), domain.graph(), others)
        assert max(errors.values()) < LIMIT, errors


@pytest.mark.parametrize("filter", ["tp", "diff", "p + q"])
@pytest.mark.parametrize("backend", ["edges", "recoupled", "auto"])
@pytest.mark.parametrize("reduce", [False, True])
def test_a_batch_is_each_of_its_scans_alone(filter, backend, reduce):
    torch.manual_seed(0)
    layer = PQTensorFieldLayer(
        "1x0e + 1x1o", "1x0e + 1x1o", RADIUS, filter=filter, lmax_p=1, lmax_q=1, bias=True,
        self_interaction=not reduce, q_out=None if reduce else "graph", backend=backend,
        quadrature="sum",
    )  # fmt: skip
    layer = randomised(layer, 0)
    one, two = small_domain("grid", 0), small_domain("points", 1)
    scans = [one, Grid(one.mask[:1], one.affine, one.q), two, Points(two.p[:2], table_of(5, 2))]
    xs = [features(layer, scan, seed=i) for i, scan in enumerate(scans)]
    alone = [layer(x, scan.graph()) for x, scan in zip(xs, scans, strict=True)]
    batch = PQGraph.merge([scan.graph() for scan in scans])
    assert len(batch.scans) == 3, "patches of one scan become one part"
    together = layer(batch.stack(xs), batch)
    expected = torch.cat(alone) if reduce else batch.stack(alone)
    assert relative_error(together, expected) < 1e-14


@pytest.mark.parametrize("backend", ["edges", "recoupled", "auto"])
def test_a_batch_of_nodes_and_of_maps(backend):
    torch.manual_seed(0)
    layer = PQTensorFieldLayer(
        "1x0e", "1x0e + 1x1o", RADIUS, lmax_q=1, backend=backend, quadrature="sum"
    ).double()
    scans = [small_domain("nodes", 0), small_domain("nodes", 1)]
    xs = [features(layer, scan) for scan in scans]
    alone = torch.cat([layer(x, scan.graph()) for x, scan in zip(xs, scans, strict=True)])
    batch = PQGraph.merge([scan.graph() for scan in scans])
    assert relative_error(layer(torch.cat(xs), batch), alone) < 1e-14

    layer = PQTensorFieldLayer(
        "1x0e", "1x1o", RADIUS, q_in=None, backend=backend, quadrature="sum"
    ).double()
    scans = [small_domain(form) for form in ("grid", "points", "grid")]
    xs = [features(layer, scan, seed=i) for i, scan in enumerate(scans)]
    alone = torch.cat([layer(x, scan.graph()) for x, scan in zip(xs, scans, strict=True)])
    batch = PQGraph.merge([scan.graph() for scan in scans])
    assert relative_error(layer(torch.cat(xs), batch), alone) < 1e-14


# -- gradients -----------------------------------------------------------------------------------


def tiny_layer(filter, backend, *, quadrature="sum", **options):
    torch.manual_seed(0)
    radial = Radial("gaussian", 2, learnable=True)
    layer = PQTensorFieldLayer(
        "1x0e + 1x1o", "1x0e + 1x1o", RADIUS, filter=filter, lmax_p=1, lmax_q=1,
        p_radial=radial, q_radial=radial, backend=backend, quadrature=quadrature, **options
    )  # fmt: skip
    return randomised(layer, 0)


@pytest.mark.parametrize(
    ("filter", "form", "backend"),
    [
        # What the others give for random layers is compared with the edges above.
        pytest.param(*c, marks=() if c[-1] == "edges" else pytest.mark.exhaustive)
        for filter in ("tp", "diff", "p + q")
        for c in combinations(filter)
    ],
)
def test_gradients_of_features_and_parameters(backend, filter, form):
    options = {"bias": True, "self_interaction": True} if form == "points" else {"q_out": None}
    layer = tiny_layer(filter, backend, **options)
    domain = small_domain(form)
    x, graph = features(layer, domain).requires_grad_(), domain.graph()
    assert gradcheck(lambda x, *_: layer(x, graph), (x, *layer.parameters()), fast_mode=True)


@pytest.mark.parametrize("reduce", [False, True])
@pytest.mark.parametrize("filter", ["tp", "diff", "p + q"])
@pytest.mark.parametrize("backend", ["edges", "recoupled"])
def test_gradients_of_the_geometry(backend, filter, reduce):
    layer = tiny_layer(filter, backend, q_out=None if reduce else "graph")
    domain = small_domain("points")
    p = torch.from_numpy(domain.p).requires_grad_()
    q = torch.from_numpy(domain.q[1:]).requires_grad_()  # |q| has a kink at 0
    x = features(layer, Points(domain.p, domain.q[1:]))

    def of_points(p, q):
        return layer(x, PQGraph.from_points(p, q, RADIUS))

    def of_nodes(p, q):
        # One node in each voxel: moved alone, nodes of one voxel would part.
        q = torch.cat([q, q[:1]]) * torch.tensor([1, 1, 1, 1.1], dtype=q.dtype)[:, None]
        return layer(x[:, 0], PQGraph.from_nodes(p, q, RADIUS))

    assert gradcheck(of_points, (p, q), fast_mode=True)
    assert gradcheck(of_nodes, (p, q), fast_mode=True)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("backend", ["edges", "recoupled"])
def test_where_nodes_coincide_slopes_are_numbers_and_zero_offsets_have_none(backend, filter):
    layer = tiny_layer(filter, backend)
    p = torch.tensor([[0.0, 0, 0], [0, 0, 0], [1, 0, 0]]).double().requires_grad_()
    q = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 1, 0], [0, -1, 0]]).double().requires_grad_()
    x = features(layer, Points(p.detach().numpy(), q.detach().numpy()))
    out = layer(x, PQGraph.from_points(p, q, RADIUS))
    grad_p, grad_q = torch.autograd.grad(out.square().sum(), (p, q), materialize_grads=True)
    assert bool(grad_p.isfinite().all())
    assert bool(grad_q.isfinite().all())
    assert grad_p.any() == (filter != "q")
    assert grad_q.any() == (filter != "p")

    alike = PQGraph.from_points(p[:2], q[:1], RADIUS)  # every offset is zero
    out = layer(x[:2, :1], alike)
    grad_p, grad_q = torch.autograd.grad(out.square().sum(), (p, q), materialize_grads=True)
    assert not grad_p.any()
    assert not grad_q.any()


# -- edge cases ----------------------------------------------------------------------------------


def check_runs(layer, x, graph, shape):
    """Every back end that can run gives finite numbers, and all agree, gradients too."""
    able = [
        backend
        for backend in BACKENDS[1:]
        if all(
            backend not in plan.impossible
            for plan in with_backend(layer, "auto").explain(graph).plans
        )
    ]
    if all(f.kind != "diff" for f in layer.filters):
        able.append("triton")
    errors = disagreement(layer, x, graph, able)
    assert max(errors.values()) < AGREEMENT[x.dtype], errors
    out = with_backend(layer, "auto")(x, graph)
    assert out.shape == shape
    assert bool(out.isfinite().all())
    return out


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("q_out", ["graph", None])
def test_an_empty_mask(filter, q_out):
    layer = tiny_layer(filter, "edges", q_out=q_out)
    shape = (0, 3, 4) if q_out else (0, 4)
    x = torch.zeros(0, 3, 4).double()
    grid = PQGraph.from_grid(np.zeros((2, 2, 2)), np.eye(4), table_of(0, 3), RADIUS)
    points = PQGraph.from_points(np.zeros((0, 3)), table_of(0, 3), RADIUS)
    nodes = PQGraph.from_nodes(np.zeros((0, 3)), np.zeros((0, 3)), RADIUS)
    check_runs(layer, x, grid, shape)
    check_runs(layer, x, points, shape)
    check_runs(layer, torch.zeros(0, 4).double(), nodes, (0, 4))


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("q_out", ["graph", None])
def test_one_voxel_one_direction(filter, q_out):
    layer = tiny_layer(filter, "edges", q_out=q_out)
    domain = Points(np.zeros((1, 3)), np.array([[0.0, 0.6, 0.8]]))
    x = features(layer, domain)
    out = check_runs(layer, x, domain.graph(), (1, 1, 4) if q_out else (1, 4))
    if q_out or filter == "p":  # every offset vanishes: scalars to scalars, vectors to vectors
        kernel = layer.kernel(*torch.zeros(1, 3).double(), *torch.from_numpy(domain.q).repeat(2, 1))
        assert relative_error(kernel[0, 1:], torch.zeros(3).double()) == 0.0
        assert relative_error(out.flatten(), kernel @ x.flatten()) < 1e-14


@pytest.mark.parametrize("filter", FILTERS)
def test_isolated_voxels_do_not_see_each_other(filter):
    layer = tiny_layer(filter, "edges")
    domain = Points(10.0 * np.arange(9).reshape(3, 3), table_of(0, 3))
    x = features(layer, domain)
    out = check_runs(layer, x, domain.graph(), x.shape)
    for i in range(3):
        alone = layer(x[i : i + 1], Points(domain.p[i : i + 1], domain.q).graph())
        assert relative_error(out[i : i + 1], alone) < 1e-13


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("filter", FILTERS)
def test_radius_zero_keeps_to_the_voxel(filter, form):
    layer = PQTensorFieldLayer(
        "1x0e", "1x0e + 1x1o", 0.0, filter=filter, lmax_q=1, quadrature="sum"
    ).double()
    domain = small_domain(form)
    x = features(layer, domain)
    out = check_runs(layer, x, domain.graph(), (*x.shape[:-1], 4))
    assert relative_error(layer(x, domain.graph(0.0)), out) < 1e-14
    x = x.clone()
    x[0] += 1.0
    changed = (layer(x, domain.graph()) - out).flatten(1).abs().amax(1) > 0
    voxel_of_row = domain.graph().scans[0].q.voxel if form == "nodes" else torch.arange(len(x))
    assert changed.tolist() == (voxel_of_row == voxel_of_row[0]).tolist()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("filter", FILTERS)
def test_without_any_path_the_output_is_zero(filter, form):
    # One harmonic of order 1 has odd parity; only "tp" reaches pseudovectors, by l_p = l_q = 1.
    cap = {"lmax_p": 0} if "tp" in filter else {}
    layer = PQTensorFieldLayer(
        "1x0e", "1x1e", RADIUS, filter=filter, group="O3", **cap, quadrature="sum"
    ).double()
    assert layer.paths == ()
    domain = small_domain(form)
    x = features(layer, domain)
    out = check_runs(layer, x, domain.graph(), (*x.shape[:-1], 3))
    assert out.abs().max() == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_may_be_strided_and_keep_their_type(dtype):
    for filter, form, backend in (*combinations("tp"), *combinations("diff")):
        layer = tiny_layer(filter, backend).to(dtype)
        domain = small_domain(form)
        x = features(layer, domain, dtype)
        strided = x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim)))
        assert not strided.is_contiguous()
        out = layer(strided, domain.graph())
        assert out.dtype == dtype
        assert relative_error(out, layer(x, domain.graph())) < AGREEMENT[dtype]


@pytest.mark.parametrize("backend", ["edges", "recoupled"])
def test_coefficients_stay_exact_when_the_type_changes(backend):
    layer = tiny_layer("tp + diff", backend)
    reference = copy.deepcopy(layer)
    layer = layer.float().double()  # as when a trained float32 model is evaluated in float64
    reference.load_state_dict(layer.state_dict())
    domain = small_domain("points")
    x = features(layer, domain)
    out = layer(x, domain.graph())
    assert relative_error(out, dense_sum(reference, x, domain)) < LIMIT
    single = layer.float()(x.float(), domain.graph())
    assert relative_error(single.double(), out) < AGREEMENT[torch.float32]


# -- what the layer is made of -------------------------------------------------------------------


def test_one_set_of_weights_serves_any_table_and_holds_no_geometry():
    layer = tiny_layer("tp + diff + p + q", "recoupled", bias=True, self_interaction=True)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    for n, form in product((1, 2, 5), ("grid", "points")):
        domain = small_domain(form)
        table = table_of(n, n)
        if form == "grid":
            domain = Grid(domain.mask, domain.affine, table)
        else:
            domain = Points(domain.p, table)
        x = features(layer, domain)
        assert layer(x, domain.graph()).shape == x.shape
    after = layer.state_dict()
    assert (
        before.keys()
        == after.keys()
        == {name for name, _ in layer.named_parameters()}
        | {name for name in before if name.startswith("self_interaction.")}
    )
    assert all(before[name].equal(after[name]) for name in before)
    assert not list(layer.filters.buffers())


def test_a_copy_from_its_state_is_the_same_layer():
    first, second = (tiny_layer("tp", "recoupled", bias=True) for _ in range(2))
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.zero_()
    second.load_state_dict(first.state_dict())
    domain = small_domain("grid")
    x = features(first, domain)
    assert second(x, domain.graph()).equal(first(x, domain.graph()))


def test_a_wider_graph_is_cut_to_the_radius_of_the_layer():
    layer = tiny_layer("tp", "recoupled")
    for form in FORMS:
        domain = small_domain(form)
        x = features(layer, domain)
        out = layer(x, domain.graph(RADIUS))
        assert relative_error(layer(x, domain.graph(2.5 * RADIUS)), out) < 1e-14


@pytest.mark.parametrize("reduce", [False, True])
@pytest.mark.parametrize("filter", ["tp", "diff", "p + q"])
def test_a_graph_made_and_first_used_in_inference_mode_can_be_trained_on(filter, reduce):
    layer = tiny_layer(filter, "recoupled", q_out=None if reduce else "graph")
    for form, radius in product(FORMS, (RADIUS, 2 * RADIUS)):
        domain = small_domain(form)
        x = features(layer, domain)
        with torch.inference_mode():
            graph = domain.graph(radius)
            out = layer(x, graph)
        trained = outputs_and_gradients(layer, x, graph)
        # matmul may multiply in another order where a gradient is asked for
        assert relative_error(trained["output"], out) < LIMIT
        assert all(bool(gradient.isfinite().all()) for gradient in trained.values())


def test_high_orders():
    radial = Radial(number=1)
    layer = PQTensorFieldLayer(
        "1x4e",
        "1x3o",
        RADIUS,
        lmax_p=4,
        lmax_q=3,
        p_radial=radial,
        q_radial=radial,
        quadrature="sum",
    ).double()
    assert max(path.l_filter for path in layer.paths) == 5
    domain = Points(np.array([[0.0, 0, 0], [1, 0.5, 2]]), table_of(0, 2))
    check_runs(layer, features(layer, domain), domain.graph(), (2, 2, 7))


def test_given_quadrature_weights_are_used_as_they_are():
    layer = tiny_layer("tp", "edges", q_out=None)
    domain = small_domain("points")
    x, q_weights = features(layer, domain), torch.tensor([0.5, -1.0, 2.0, 0.0])
    graph = PQGraph.from_points(domain.p, domain.q, RADIUS, q_weights=q_weights)
    weighted = x * q_weights[:, None] * len(q_weights)
    out = check_runs(layer, x, graph, (4, 4))
    assert relative_error(out, layer(weighted, domain.graph())) < 1e-14


def test_a_self_interaction_maps_channels_of_equal_order():
    for group in GROUPS:
        layer = PQTensorFieldLayer(
            "1x1o + 2x0e + 1x1e", "1x1e + 1x0e + 2x1o", RADIUS, filter="p", group=group,
            self_interaction=True, quadrature="sum"
        ).double()  # fmt: skip
        with torch.no_grad():
            for filter in layer.filters:
                filter.weight.zero_()
        domain = small_domain("points")
        x = torch.eye(8).double()[:, None, None].expand(8, 4, 4, 8)
        matrix = torch.stack([layer(row, domain.graph())[1, 2] for row in x], dim=1)
        vectors_in, vectors_out = {"o": 0, "e": 5}, {"e": 0, "o": 4, "o'": 7}
        for (a, i), (b, o) in product(vectors_in.items(), vectors_out.items()):
            block = matrix[o : o + 3, i : i + 3]
            assert (
                relative_error(block, block[0, 0] * torch.eye(3).double()) < 1e-14
                or not block.any()
            )
            assert bool(block.any()) == (group == "SO3" or a == b[0])
        assert matrix[3, 3:5].abs().min() > 0
        assert not matrix[3, :3].any()
        assert not matrix[3, 5:].any()


def test_a_bias_is_added_to_even_scalars():
    for group, places in (("SO3", [0, 4]), ("O3", [4])):
        layer = PQTensorFieldLayer(
            "1x0e", "1x0o + 1x1e + 1x0e", RADIUS, group=group, bias=True, quadrature="sum"
        )
        with torch.no_grad():
            layer.bias.copy_(torch.arange(1.0, len(places) + 1))
        domain = small_domain("grid")
        out = layer(torch.zeros(*domain.shape, 1), domain.graph())
        expected = torch.zeros(5)
        expected[places] = layer.bias.detach()
        assert out.equal(expected.expand_as(out))


def test_repr_shows_irreps_paths_and_parameters():
    layer = PQTensorFieldLayer(
        "1x0e", "4x0e + 2x1o", 5.0, filter="tp + p", q_out=None, quadrature="sum"
    )
    weights = sum(p.numel() for p in layer.parameters())
    assert repr(layer) == (
        "PQTensorFieldLayer(1x0e -> 4x0e+2x1o | pq -> p, tp + p, SO3, 5 mm | "
        f"{len(layer.paths)} paths | {weights:,} weights)"
    )


def test_nothing_of_the_size_of_the_product_of_the_edges_is_made():
    grid = Grid(np.ones((12, 12, 12), bool), affine_of(np.diag([2.0, 2, 2])), table_of(0, 64))
    layer = PQTensorFieldLayer(
        "1x0e", "1x0e + 1x1o", 3.5, lmax_p=1, lmax_q=1,
        p_radial=Radial(number=1), q_radial=Radial(number=1), quadrature="sum"
    )  # fmt: skip
    x = features(layer, grid, torch.float32).requires_grad_()
    largest = largest_allocation(lambda: layer(x, grid.graph(3.5)).sum().backward())
    edges = len(grid.graph(3.5).scans[0].edges.dst) * 64 * 64
    assert edges > 1.5e8
    assert 0 < largest < x.element_size() * edges / 10


# -- what does not fit is refused ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filter": "pp"}, "unknown filter 'pp'"),
        ({"selection": "any"}, "selection must be one of 'paper', 'tp1', 'all', not 'any'"),
        ({"selection": "all"}, 'selection="all" needs lmax_p'),
        ({"group": "SO2"}, "group must be one of 'SO3', 'O3', not 'SO2'"),
        ({"q_directions": "none"}, "q_directions must be one of 'vectors', 'unit'"),
        ({"backend": "fast"}, "backend must be one of 'auto', 'edges', 'dense', 'fourier', 'rec"),
        ({"memory_budget": 0}, "memory_budget must be a positive number of bytes, not 0"),
        ({"p_radius": -1.0}, "p_radius must be a length in mm, not -1.0"),
        ({"q_max": 0.0}, "q_max must be positive, not 0.0"),
        ({"lmax_q": -1}, "lmax_q must be at least 0"),
        ({"self_interaction": True, "q_out": None}, "reduces q-space (q_out=None)"),
        (
            {"self_interaction": True, "q_in": None, "q_out": "graph"},
            "expands a map (q_out='graph')",
        ),
        ({"q_out": "grid"}, "q_out must be one of 'input', 'graph', not 'grid'"),
        ({"q_in": "input"}, "q_in must be one of 'graph', not 'input'"),
        ({"irreps_out": "1x1o", "bias": True}, "a bias is added to scalars, and the output 1x1o"),
        ({"irreps_out": "1x0o", "bias": True, "group": "O3"}, "the output 1x0o has none"),
        ({"q_in": None, "filter": "q"}, "a map without q-space has p-offsets only"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    arguments = {"irreps_in": "1x0e", "irreps_out": "1x0e", "p_radius": RADIUS, **options}
    with pytest.raises(ValueError, match=re.escape(message)):
        PQTensorFieldLayer(**arguments)


def test_features_and_graphs_that_do_not_fit_are_refused():
    layer = PQTensorFieldLayer("2x0e", "1x0e", RADIUS, quadrature="sum")
    p, q = np.zeros((3, 3)), table_of(0, 4)
    graph = PQGraph.from_points(p, q, RADIUS)

    def refused(message, layer, x, graph):
        with pytest.raises(ValueError, match=message):
            layer(x, graph)

    refused(
        r"the shape \(3, 4\), but this layer needs \(V, Q, dim_in\)", layer, torch.ones(3, 4), graph
    )
    refused(r"with dim_in = 2 \(2x0e\)", layer, torch.ones(3, 4, 1), graph)
    refused("the features have 2 rows, but the graph has 3", layer, torch.ones(2, 4, 2), graph)
    refused("3 directions, but the graph has 4", layer, torch.ones(3, 3, 2), graph)
    refused("5 directions, but the graph has 4", layer, torch.ones(3, 5, 2), graph)
    without = PQGraph.from_points(p, None, RADIUS)
    refused("built without q-space", layer, torch.ones(3, 1, 2), without)
    narrow = PQGraph.from_points(p, q, RADIUS / 2)
    refused("build the graph with radius=3 or more", layer, torch.ones(3, 4, 2), narrow)
    strong = PQGraph.from_points(p, 2 * q, RADIUS)
    refused(
        "a q-vector of length 3.4, larger than the q_max = 2", layer, torch.ones(3, 4, 2), strong
    )
    refused("but the graph is on cpu", layer, torch.ones(3, 4, 2, device="meta"), graph)
    resampled = PQGraph.from_points(p, q, RADIUS, q_out=q[:2])
    interacting = PQTensorFieldLayer(
        "2x0e", "1x0e", RADIUS, self_interaction=True, quadrature="sum"
    )
    refused("has different nodes", interacting, torch.ones(3, 4, 2), resampled)
    nodes = PQGraph.from_nodes(p, q[:3], RADIUS)
    refused(r"needs \(N, dim_in\)", layer, torch.ones(3, 4, 2), nodes)
    on_map = PQTensorFieldLayer("2x0e", "1x0e", RADIUS, q_in=None, quadrature="sum")
    refused(r"needs \(V, dim_in\)", on_map, torch.ones(3, 4, 2), graph)
    expanding = PQTensorFieldLayer(
        "2x0e", "1x0e", RADIUS, q_in=None, q_out="graph", quadrature="sum"
    )
    refused(r"needs \(V, dim_in\)", expanding, torch.ones(3, 4, 2), graph)
    refused("built without q-space", expanding, torch.ones(3, 2), without)


@pytest.mark.parametrize(
    ("filter", "form", "backend", "dtype"),
    [  # every combination in one of the types or, in `make test-all`, in both
        pytest.param(*c, dtype, marks=() if n % 2 == i else pytest.mark.exhaustive)
        for n, c in enumerate(c for f in ("tp", "diff") for c in combinations(f))
        for i, dtype in enumerate((torch.bfloat16, torch.float16))
    ],
)
def test_half_precision_takes_no_more_than_its_rounding(backend, filter, form, dtype):
    """Measured by the definition in float64, with the same rounded weights."""
    options = {"self_interaction": True, "bias": True} if form != "nodes" else {"q_out": None}
    domain = small_domain(form)
    half = tiny_layer(filter, backend, **options).to(dtype)
    exact = tiny_layer(filter, "edges", **options)
    exact.load_state_dict({name: w.double() for name, w in half.state_dict().items()})
    x = features(exact, domain).to(dtype)
    found = outputs_and_gradients(half, x, domain.graph())
    measure = outputs_and_gradients(exact, x.double(), domain.graph())
    eps = torch.finfo(dtype).eps
    assert {f.dtype for f in found.values()} == {dtype}
    assert relative_error(found["output"].double(), measure["output"]) < eps
    for name, m in measure.items():  # of which some are sums of rounded parts
        assert relative_error(found[name].double(), m) < 4 * eps, name


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_with_the_back_end_of_its_choice(form):
    domain = small_domain(form)
    layer = tiny_layer("tp", "auto").bfloat16()
    x = features(layer, domain).bfloat16()
    assert layer(x, domain.graph()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("features_in", "weights_in", "message"),
    [
        (torch.float64, torch.float32, r"are torch.float64, but the weights are torch.float32"),
        (torch.float32, torch.float64, r"call x.to\(torch.float64\) or move the module by .to"),
        (torch.bfloat16, torch.float32, r"are torch.bfloat16, but the weights are torch.float32"),
        (torch.int64, torch.float32, r"torch.int64, not real numbers: call x.to\(torch.float32\)"),
        (torch.complex64, torch.float32, r"are torch.complex64, not real numbers"),
        (torch.bool, torch.float64, r"torch.bool, not real numbers: call x.to\(torch.float64\)"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "edges", "dense"])
def test_types_that_do_not_go_together_are_named(backend, features_in, weights_in, message):
    domain = small_domain("grid")
    layer = tiny_layer("tp", backend).to(weights_in)
    x = torch.ones(features(layer, domain).shape).to(features_in)
    with pytest.raises(ValueError, match=message):
        layer(x, domain.graph())


@pytest.mark.parametrize("backend", ["edges", "recoupled", "fourier", "dense", "auto"])
@pytest.mark.parametrize("q", [{}, {"q_out": None}, {"q_in": None}])
def test_autocast_takes_no_more_than_rounding_to_bfloat16(q, backend):
    table = table_of(0, 5)
    domain = Grid(np.ones((3, 2, 2), bool), affine_of(np.diag([2.0, 2.0, 2.0])), table)
    graph = domain.graph(RADIUS)
    layer = PQTensorFieldLayer(
        "2x0e + 1x1o",
        "3x0e + 2x1o",
        RADIUS,
        q_max=Q_MAX,
        bias=True,
        backend=backend,
        **q,
        quadrature="sum",
    )
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    x = x if "q_in" in q else x[:, None].expand(-1, len(table), -1).clone()
    results = []
    for enabled in (False, True):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = layer(leaf, graph)
        assert y.dtype == torch.float32
        y.square().sum().backward()
        results.append((y.detach(), leaf.grad))
    for exact, rounded in zip(*results, strict=True):
        assert (
            relative_error(rounded, exact) < 2.0**-6
        )  # two roundings of 2**-8, each on both sides
