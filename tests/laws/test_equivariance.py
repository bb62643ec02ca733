"""What happens to the output of a layer when its input is turned, moved, or written differently.

``pytest -rP tests/test_equivariance.py -k table`` prints the errors.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import (
    AGREEMENT,
    BACKENDS,
    CUBE,
    ENDS,
    EQUIVARIANCE,
    FILTERS,
    FORMS,
    GROUPS,
    Q_MAX,
    RADIUS,
    Grid,
    Nodes,
    Points,
    affine_of,
    assert_equivariant,
    backends_for,
    domains,
    equivariance_error,
    features,
    layers,
    randomised,
    relative_error,
    representation,
    rotation_of,
    rotations,
    seeds,
    shifts,
    table_of,
)
from tripq import PQTensorFieldLayer, Radial

EXACT = 1e-12  # float64; between evaluations that differ in the order of sums only


def example(form):
    """Six voxels or so, a q = 0 and directions on two shells; nodes have tables of their own."""
    rng = np.random.default_rng(7)
    if form == "grid":
        linear = rotation_of(7) @ np.diag([2.0, 2.3, -2.6])
        mask = np.array([[[1, 1], [0, 1], [1, 1]], [[1, 0], [0, 0], [0, 1]]], dtype=bool)
        return Grid(mask, affine_of(linear, (30, -20, 9)), table_of(7, 4))
    p = rng.uniform(-2, 2, (6, 3))
    if form == "points":
        return Points(p, table_of(7, 4))
    counts = (3, 1, 2, 2, 3, 1)
    return Nodes(p, np.concatenate([table_of(i, n + 1)[1:] for i, n in enumerate(counts)]), counts)


def make_layer(filter, group, **options):
    torch.manual_seed(0)
    arguments = {"lmax_p": 2, "lmax_q": 2, "q_max": Q_MAX, "p_radial": Radial(number=2)} | options
    return PQTensorFieldLayer(
        "1x1o + 1x0e",
        "1x0e + 1x1o",
        RADIUS,
        filter=filter,
        group=group,
        **arguments,
        quadrature="sum",
    )


# -- motions of the world ------------------------------------------------------------------------


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=8)
@given(data=st.data())
def test_any_layer_commutes_with_motions_of_the_world(form, group, data):
    filter = data.draw(st.sampled_from(FILTERS))
    domain = data.draw(domains(form))
    layer = data.draw(layers(domain=domain, filter=filter, group=group, ends=ENDS))
    motion = data.draw(rotations(group)), data.draw(shifts())
    x = features(layer, domain)
    for layer.backend in backends_for(form, filter):
        assert_equivariant(layer, x, domain, *motion)


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_table_of_errors(step):
    """Every filter, group, kind of graph and precision, antipodal or not, in one table.

    A step of 5 meets each of them, but not all together.
    """
    rotation, shift = rotation_of(1), np.array([11.0, -40.0, 3.0])
    rows = ["filter              precision  back end   rotated  against the edges"]
    for filter, dtype in product(FILTERS, (torch.float32, torch.float64)):
        rotated, between = dict.fromkeys(BACKENDS, 0.0), dict.fromkeys(BACKENDS, 0.0)
        for antipodal, group, form in list(product((False, True), GROUPS, FORMS))[::step]:
            layer = make_layer(filter, group, antipodal=antipodal, lmax_p=1).to(dtype)
            domain, sign = example(form), -1 if group == "O3" else 1
            x = features(layer, domain, dtype)
            layer.backend = "edges"
            with torch.no_grad():
                measure = layer(x, domain.graph())
            for backend in backends_for(form, filter):
                layer.backend = backend
                error = equivariance_error(layer, x, domain, sign * rotation, shift)
                rotated[backend] = max(rotated[backend], error)
                with torch.no_grad():
                    error = relative_error(layer(x, domain.graph()), measure)
                between[backend] = max(between[backend], error)
        precision = str(dtype).removeprefix("torch.")
        rows += [
            f"{filter:20}{precision:11}{backend:9}{rotated[backend]:9.1e}{between[backend]:19.1e}"
            for backend in BACKENDS
        ]
        assert max(rotated.values()) < EQUIVARIANCE[dtype]
        assert max(between.values()) < AGREEMENT[dtype]
    print("\n".join(rows))


class Half(Points):
    """Points that forget to turn their q-vectors along."""

    def moved(self, rotation, shift):
        return replace(super().moved(rotation, shift), q=self.q)


@pytest.mark.parametrize("filter", ["tp", "diff", "q"])
def test_the_measure_sees_what_is_not_equivariant(filter):
    layer = make_layer(filter, "SO3").double()
    whole = example("points")
    x, motion = features(layer, whole), (rotation_of(3), np.zeros(3))
    assert equivariance_error(layer, x, whole, *motion) < EXACT
    with pytest.raises(AssertionError, match="is not below 1e-11"):
        assert_equivariant(layer, x, Half(whole.p, whole.q), *motion)


@pytest.mark.parametrize(
    ("filter", "backend", "step"),
    [
        ("tp", "recoupled", 1),
        *(
            pytest.param(filter, backend, step, marks=pytest.mark.exhaustive if step == 1 else ())
            for filter in FILTERS
            for backend in backends_for("grid", filter)
            for step in (5, 1)
            if (filter, backend) != ("tp", "recoupled")
        ),
    ],
)
@pytest.mark.parametrize("group", GROUPS)
def test_rotations_of_the_cube_permute_the_voxels(group, filter, backend, step):
    """On a cubic grid in any pose they act exactly: the turned voxels are voxels of it.

    One filter and back end meets every rotation, the others every fifth, or all of them, too.
    """
    layer = make_layer(filter, group, lmax_p=1, lmax_q=1, q_out=None, backend=backend).double()
    pose = rotation_of(2)
    mask = np.array([[[1, 1], [0, 1], [1, 1]], [[1, 0], [0, 0], [0, 1]]], dtype=bool)
    grid = Grid(mask, affine_of(2.0 * pose, (5, 6, 7)), table_of(0, 3))
    x = features(layer, grid)
    out = layer(x, grid.graph()).detach()
    voxels = np.argwhere(mask)
    for of_grid in CUBE[group][::step]:
        turned = np.rint(voxels @ of_grid.T).astype(int)
        turned -= turned.min(axis=0)
        moved = np.zeros(turned.max(axis=0) + 1, dtype=bool)
        moved[tuple(turned.T)] = True
        order = np.lexsort(turned.T[::-1])  # of np.argwhere(moved)
        rotation = pose @ of_grid @ pose.T
        d_in, d_out = (
            representation(irreps, rotation, group)
            for irreps in (layer.irreps_in, layer.irreps_out)
        )
        graph = Grid(moved, grid.affine, grid.q @ rotation.T).graph()
        with torch.no_grad():
            found = layer(x[order] @ d_in.T, graph)
        assert relative_error(found, out[order] @ d_out.T) < EXACT


@pytest.mark.parametrize("filter", ["p", "tp"])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("form", FORMS)
def test_layers_on_maps_without_q_space(form, group, filter):
    domain = example(form)
    options = {"self_interaction": True, "bias": True, "q_in": None}
    layer = randomised(make_layer(filter, group, **options), 0)
    assert {path.filter for path in layer.paths} == {"p"}
    x, sign = features(layer, domain), -1 if group == "O3" else 1
    assert layer(x, domain.graph()).shape == (domain.n_voxels, layer.irreps_out.dim)
    for layer.backend in backends_for(form, filter):
        assert_equivariant(layer, x, domain, sign * rotation_of(0), np.array([1.0, 2.0, 3.0]))
    if not isinstance(domain, Nodes):
        without = replace(domain, q=None)
        assert relative_error(layer(x, without.graph()), layer(x, domain.graph())) == 0.0


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("filter", FILTERS)
def test_an_expansion_of_a_map_commutes_with_motions_of_the_world(filter, form, group):
    domain = example(form)
    layer = randomised(make_layer(filter, group, q_in=None, q_out="graph"), 0)
    x, sign = features(layer, domain), -1 if group == "O3" else 1
    for layer.backend in backends_for(form, filter):
        assert_equivariant(layer, x, domain, sign * rotation_of(0), np.array([1.0, 2.0, 3.0]))


# -- how a scan is written down ------------------------------------------------------------------


@settings(max_examples=8)
@given(data=st.data())
def test_how_the_voxels_are_stored_changes_nothing(data):
    """Axes permuted and flipped, the affine adjusted: the same scan."""
    domain = replace(data.draw(domains("grid")), q_out=None)
    layer = data.draw(layers(domain=domain))
    axes = data.draw(st.sampled_from(list(permutations(range(3)))))
    flips = data.draw(st.sampled_from(list(product((1, -1), repeat=3))))
    shape = np.array(domain.mask.shape)[list(axes)]

    stored = np.transpose(domain.mask, axes)[tuple(slice(None, None, sign) for sign in flips)]
    to_original = np.zeros((4, 4))  # stored index to original index
    for new, (old, sign) in enumerate(zip(axes, flips, strict=True)):
        to_original[old, new] = sign
        to_original[old, 3] = 0 if sign > 0 else shape[new] - 1
    to_original[3, 3] = 1
    copy = replace(domain, mask=stored, affine=domain.affine @ to_original)

    number = np.full(domain.mask.shape, -1)
    number[domain.mask] = np.arange(domain.n_voxels)
    original = np.argwhere(stored) @ to_original[:3, :3].T + to_original[:3, 3]
    order = number[tuple(np.rint(original).astype(int).T)]
    np.testing.assert_allclose(copy.centres(), domain.centres()[order], atol=1e-12)

    x = features(layer, domain)
    found, expected = layer(x[order], copy.graph()), layer(x, domain.graph())[order]
    assert relative_error(found, expected) < EXACT


@settings(max_examples=8)
@given(data=st.data(), seed=seeds)
def test_the_order_of_directions_changes_nothing_but_the_order(data, seed):
    domain = data.draw(domains("points"))
    domain = replace(domain, q=table_of(seed, 5))
    layer = data.draw(layers(domain=domain))
    order = np.random.default_rng(seed).permutation(5)
    x = features(layer, domain)
    found = layer(x[:, order], replace(domain, q=domain.q[order]).graph())
    expected = layer(x, domain.graph())
    if layer.q_out == "graph" and domain.q_out is None:
        expected = expected[:, order]
    assert relative_error(found, expected) < EXACT


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=5)
@given(data=st.data())
def test_listing_every_direction_twice_changes_nothing(form, data):
    domain = data.draw(domains(form))
    layer = data.draw(layers(domain=domain))
    x = features(layer, domain)
    expected = layer(x, domain.graph())
    if isinstance(domain, Nodes):
        counts = tuple(2 * n for n in domain.counts)
        twice, axis = replace(domain, q=np.repeat(domain.q, 2, axis=0), counts=counts), 0
    else:
        twice, axis = replace(domain, q=np.tile(domain.q, (2, 1))), 1
    if axis == 0:
        found = layer(x.repeat_interleave(2, dim=0), twice.graph())
        copies = expected.repeat_interleave(2, dim=0)
    else:
        found = layer(torch.cat([x, x], dim=1), twice.graph())
        copies = torch.cat([expected, expected], dim=1) if expected.ndim == 3 else expected
    same_output = layer.q_out is None or domain.q_out is not None
    assert relative_error(found, expected if same_output else copies) < EXACT


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("filter", FILTERS)
@settings(max_examples=2)
@given(data=st.data(), seed=seeds)
def test_an_antipodal_layer_does_not_know_the_signs_of_directions(filter, form, data, seed):
    domain = data.draw(domains(form))
    layer = data.draw(layers(domain=domain, filter=filter, antipodal=True, ends=ENDS))
    rng = np.random.default_rng(seed)
    x = features(layer, domain)

    def flipped(q):
        return None if q is None else q * rng.choice([1, -1], (len(q), 1))

    flips = replace(domain, q=flipped(domain.q), q_out=flipped(domain.q_out))
    for layer.backend in backends_for(form, filter):
        assert relative_error(layer(x, flips.graph()), layer(x, domain.graph())) < EXACT


def test_without_the_antipodal_mode_signs_matter():
    domain = example("points")
    flips = replace(domain, q=domain.q * [[1], [-1], [1], [1]])
    for filter in ("tp", "diff", "q"):
        layer = make_layer(filter, "SO3").double()
        x = features(layer, domain)
        assert relative_error(layer(x, flips.graph()), layer(x, domain.graph())) > 0.01
