"""Coupling and recoupling coefficients against e3nn, sympy and the definition."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from e3nn import o3
from hypothesis import given, settings
from hypothesis import strategies as st
from sympy.physics.wigner import wigner_6j

from tests.strategies import irreps, rotation_of, seeds
from tripq import PQTensorFieldLayer
from tripq.so3.paths import Path
from tripq.so3.recoupling import clebsch_gordan, recoupling_coefficient
from tripq.testing import wigner_d

orders = st.integers(0, 3)


def coupled(a, b):
    """The orders that a and b couple to."""
    return range(abs(a - b), a + b + 1)


@given(l_a=orders, l_b=orders)
def test_coupling_is_a_change_of_orthonormal_basis(l_a, l_b):
    columns = [clebsch_gordan(l_a, l_b, l_c) for l_c in coupled(l_a, l_b)]
    matrix = np.concatenate(columns, axis=2).reshape((2 * l_a + 1) * (2 * l_b + 1), -1)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=1e-14)


@given(l_a=orders, l_b=orders, seed=seeds, data=st.data())
def test_coupling_commutes_with_rotations(l_a, l_b, seed, data):
    l_c = data.draw(st.sampled_from(coupled(l_a, l_b)))
    d_a, d_b, d_c = (wigner_d(l, rotation_of(seed)).numpy() for l in (l_a, l_b, l_c))
    c = clebsch_gordan(l_a, l_b, l_c)
    turned = np.einsum("ia,jb,kc,abc->ijk", d_a, d_b, d_c, c)
    np.testing.assert_allclose(turned, c, atol=1e-13)


@pytest.mark.parametrize(("l_a", "l_b", "l_c"), [(0, 0, 0), (1, 2, 1), (2, 2, 3), (3, 1, 2)])
def test_coupling_is_that_of_e3nn(l_a, l_b, l_c):
    wigner = o3.wigner_3j(l_a, l_b, l_c).double().numpy()
    expected = np.sqrt(2 * l_c + 1) * wigner
    np.testing.assert_allclose(clebsch_gordan(l_a, l_b, l_c), expected, atol=1e-6)


def test_coefficients_cannot_be_spoilt_for_the_next_caller():
    with pytest.raises(ValueError, match="read-only"):
        clebsch_gordan(1, 1, 1)[0, 0, 0] = 1.0


@st.composite
def recouplings(draw):
    """(l_in, l_out, l_p, l_q, l_filter) that couple to each other."""
    l_p, l_q, l_in = draw(orders), draw(orders), draw(orders)
    l_f = draw(st.sampled_from(coupled(l_p, l_q)))
    l_out = draw(st.sampled_from(coupled(l_f, l_in)))
    return l_in, l_out, l_p, l_q, l_f


def intermediate(l_in, l_out, l_p, l_q):
    return sorted(set(coupled(l_q, l_in)) & set(coupled(l_p, l_out)))


@given(case=recouplings())
def test_the_definition_is_a_sum_over_the_other_order_of_coupling(case):
    l_in, l_out, l_p, l_q, l_f = case
    t = np.einsum("fio,pqf->opqi", clebsch_gordan(l_f, l_in, l_out), clebsch_gordan(l_p, l_q, l_f))
    b = sum(
        recoupling_coefficient(*case, l_1)
        * np.einsum(
            "pno,qin->opqi", clebsch_gordan(l_p, l_1, l_out), clebsch_gordan(l_q, l_in, l_1)
        )
        for l_1 in intermediate(l_in, l_out, l_p, l_q)
    )
    np.testing.assert_allclose(b, t, atol=1e-14)


@given(case=recouplings())
def test_recoupling_coefficients_are_6j_symbols(case):
    # Racah's formula for |<(l_p l_q) l_f, l_in; l_out | l_p, (l_q l_in) l_1; l_out>|; the sign is
    # that of the basis.
    l_in, l_out, l_p, l_q, l_f = case
    for l_1 in intermediate(l_in, l_out, l_p, l_q):
        symbol = float(wigner_6j(l_p, l_q, l_f, l_in, l_out, l_1))
        expected = np.sqrt((2 * l_f + 1) * (2 * l_1 + 1)) * abs(symbol)
        assert abs(recoupling_coefficient(*case, l_1)) == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("kind", ["tp", "diff", "p", "q"])
@settings(max_examples=10)
@given(irreps_in=irreps(), irreps_out=irreps(), seed=seeds)
def test_mixing_matrices_hold_the_filter(kind, irreps_in, irreps_out, seed):
    """Contracted with their couplings they give, for random harmonics, the filter's own sum."""
    layer = PQTensorFieldLayer(
        irreps_in, irreps_out, 3.0, filter=kind, lmax_p=2, lmax_q=2, q_max=1.0, quadrature="sum"
    ).double()
    (filter,) = layer.filters
    rng = np.random.default_rng(seed)
    harmonics = {(side, l): rng.normal(size=2 * l + 1) for side in "pq" for l in range(5)}
    phi = [rng.normal(size=number) for number in filter.radial]

    def couplings(path: Path) -> tuple[int, int]:
        return (0, path.l_filter) if kind == "diff" else (path.l_p, path.l_q)

    harmonics["p", 0] = np.ones(1)  # the constant one, which "diff" and "q" couple last
    direct = np.zeros((layer.irreps_out.dim, layer.irreps_in.dim))
    for path, weight in filter.path_weights():
        outer, inner = couplings(path)
        angular = np.einsum(
            "p,q,pqf,fio->oi",
            harmonics["p", outer],
            harmonics["q", inner],
            clebsch_gordan(outer, inner, path.l_filter),
            clebsch_gordan(path.l_filter, path.l_in, path.l_out),
        )
        scale = np.einsum("uvabc,a,b,c->uv", weight.detach().numpy(), *phi)
        add(direct, filter, path, np.einsum("uv,oi->uovi", scale, angular))

    recoupled = np.zeros_like(direct)
    matrices = filter.mixing_matrices()
    for mixing, matrix in zip(filter.recoupling.mixings, matrices, strict=True):
        matrix = np.einsum("b,bxy->yx", phi[1], matrix.detach().numpy())
        for row, column in product(mixing.rows, mixing.columns):
            out, inp = filter.channels_out[row.channels], filter.channels_in[column.channels]
            block = matrix[row.start : row.stop, column.start : column.stop]
            scale = np.einsum(
                "aucv,a,c->uv",
                block.reshape(filter.radial[0], out.mul, filter.radial[2], inp.mul),
                phi[0],
                phi[2],
            )
            if not (
                triangular(row.l, mixing.l_1, out.l) and triangular(column.l, inp.l, mixing.l_1)
            ):
                np.testing.assert_array_equal(scale, 0)
                continue
            angular = np.einsum(
                "p,q,pno,qin->oi",
                harmonics["p", row.l],
                harmonics["q", column.l],
                clebsch_gordan(row.l, mixing.l_1, out.l),
                clebsch_gordan(column.l, inp.l, mixing.l_1),
            )
            ends = Path(inp.l, out.l, 0, 0, 0, kind, inp.parity, out.parity)
            add(recoupled, filter, ends, np.einsum("uv,oi->uovi", scale, angular))
    np.testing.assert_allclose(recoupled, direct, atol=1e-12)


def triangular(a, b, c):
    return abs(a - b) <= c <= a + b


def add(total, filter, path, block):
    """Add (mul_out, 2 l_out + 1, mul_in, 2 l_in + 1) at the channels that a path joins."""
    (rows,) = (
        c.index for c in filter.channels_out if (c.l, c.parity) == (path.l_out, path.parity_out)
    )
    (columns,) = (
        c.index for c in filter.channels_in if (c.l, c.parity) == (path.l_in, path.parity_in)
    )
    total[np.ix_(rows, columns)] += block.reshape(len(rows), len(columns))
