"""Tensor products over a graph: the sum written out, its derivatives, and the Triton kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from e3nn import o3
from hypothesis import given
from hypothesis import strategies as st

from tripq.harmonics import spherical_harmonics
from tripq.kernels.tensor_product import Coupling, Edges, contract, expand

L = 2  # highest order of a harmonic here
GROUPS = ((0, 2), (1, 1), (2, 3))  # (l_g, mul_g)
ORDERS = (0, 1, 3)  # l_j


def all_couplings(groups, orders, n_radial):
    """Every coupling there is up to L; their blocks fill the rows of each big tensor."""
    couplings = []
    for j, l_j in enumerate(orders):
        first = 0
        for g, (l_g, mul) in enumerate(groups):
            for l in range(abs(l_g - l_j), min(l_g + l_j, L) + 1):
                couplings.append(Coupling(g, j, first, l))
                first += n_radial * mul
    return couplings


class Problem:
    """A random graph with features: node 0 is the end of no edge, the last type has no edge."""

    def __init__(
        self,
        seed=0,
        n_out=4,
        n_in=3,
        n_edges=9,
        n_types=5,
        n_radial=2,
        lanes=3,
        groups=GROUPS,
        orders=ORDERS,
        dtype=torch.float64,
        device="cpu",
    ):
        rng = np.random.default_rng(seed)
        self.groups, self.orders = groups, orders
        self.couplings = all_couplings(groups, orders, n_radial)

        def integers(low, high):
            return torch.from_numpy(rng.integers(low, max(high, low + 1), n_edges)).to(device)

        def normal(*shape):
            return torch.from_numpy(rng.normal(size=shape)).to(device, dtype)

        self.dst, self.src = integers(min(1, n_out - 1), n_out), integers(0, n_in - 1)
        self.type = integers(0, n_types - 1)
        self.n_out, self.n_in, self.n_types = n_out, n_in, n_types
        self.edges = Edges.build(self.dst, self.src, self.type, n_out, n_in, n_types)
        self.phi = normal(n_types, n_radial)
        harmonics = spherical_harmonics(range(L + 1), normal(n_types, 3))
        self.harmonics = torch.cat([harmonics[l] for l in range(L + 1)], dim=1)
        rows = [0] * len(orders)
        for c in self.couplings:
            rows[c.big] += n_radial * groups[c.small][1]
        self.small = [normal(n_in, 2 * l + 1, mul, lanes) for l, mul in groups]
        self.big = [normal(n_in, r, 2 * l + 1, lanes) for r, l in zip(rows, orders, strict=True)]
        # What a loss would send back: of the shapes of the results.
        self.small_out = [normal(n_out, 2 * l + 1, mul, lanes) for l, mul in groups]
        self.big_out = [
            normal(n_out, r, 2 * l + 1, lanes) for r, l in zip(rows, orders, strict=True)
        ]

    def expand(self, small, phi):
        return expand(small, phi, self.harmonics, self.edges, self.couplings, self.orders)

    def contract(self, big, phi):
        return contract(big, phi, self.harmonics, self.edges, self.couplings, self.groups)


def coupled(l, l_2, l_result, y, x):
    """Order `l` and order `l_2` coupled to `l_result` by e3nn; x of shape (2 l_2 + 1, ...)."""
    c = np.sqrt(2 * l_result + 1) * o3.wigner_3j(l, l_2, l_result, dtype=torch.float64)
    return torch.einsum("abc,a,b...->c...", c, y, x)


def naive_expand(problem):
    big = [torch.zeros_like(x) for x in problem.big_out]
    n_radial = problem.phi.shape[1]
    for n, s, t in zip(problem.dst, problem.src, problem.type, strict=True):
        for c in problem.couplings:
            l_g, mul = problem.groups[c.small]
            y = problem.harmonics[t, c.l**2 : (c.l + 1) ** 2]
            product = coupled(c.l, l_g, problem.orders[c.big], y, problem.small[c.small][s])
            for k in range(n_radial):
                rows = slice(c.first + k * mul, c.first + (k + 1) * mul)
                big[c.big][n, rows] += problem.phi[t, k] * product.transpose(0, 1)
    return big


def naive_contract(problem):
    small = [torch.zeros_like(x) for x in problem.small_out]
    n_radial = problem.phi.shape[1]
    for n, s, t in zip(problem.dst, problem.src, problem.type, strict=True):
        for c in problem.couplings:
            l_g, mul = problem.groups[c.small]
            y = problem.harmonics[t, c.l**2 : (c.l + 1) ** 2]
            for k in range(n_radial):
                rows = slice(c.first + k * mul, c.first + (k + 1) * mul)
                x = problem.big[c.big][s, rows].transpose(0, 1)
                product = coupled(c.l, problem.orders[c.big], l_g, y, x)
                small[c.small][n] += problem.phi[t, k] * product
    return small


def assert_all_close(found, expected, tolerance):
    """Each tensor of a list relative to its own size."""
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert a.is_contiguous()
        scale = b.double().norm()
        assert (a.double() - b.double()).norm() <= tolerance * scale, (a - b).norm() / scale


sizes = st.integers(1, 4)


@given(
    seed=st.integers(0, 2**32 - 1),
    n_out=sizes,
    n_in=sizes,
    n_edges=st.integers(0, 9),
    n_types=sizes,
    n_radial=st.integers(1, 3),
    lanes=sizes,
)
def test_both_are_sums_over_edges_couplings_and_radial_functions(**sizes):
    problem = Problem(**sizes)
    found = problem.expand(problem.small, problem.phi)
    assert_all_close(found, naive_expand(problem), 1e-13)
    found = problem.contract(problem.big, problem.phi)
    assert_all_close(found, naive_contract(problem), 1e-13)


SMALLER = {"n_edges": 5, "n_types": 3, "lanes": 2, "groups": ((0, 2), (1, 1)), "orders": (0, 1)}


def gradients_of(problem):
    """(function, its differentiable inputs) of both operators."""
    phi = problem.phi.clone().requires_grad_()
    n = len(problem.small)
    small = [x.clone().requires_grad_() for x in problem.small]
    n_big = len(problem.big)
    big = [x.clone().requires_grad_() for x in problem.big]
    return (
        (lambda *x: tuple(problem.expand(x[:n], x[n])), (*small, phi)),
        (lambda *x: tuple(problem.contract(x[:n_big], x[n_big])), (*big, phi)),
    )


def test_first_and_second_derivatives():
    for function, inputs in gradients_of(Problem(**SMALLER)):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def arguments_of_operators(problem):
    """The three operators with arguments for them; what may have a gradient requires it."""
    lists = [problem.edges.by_output, problem.edges.by_input]
    edges = [x for csr in lists for x in (csr.starts, csr.other, csr.type)]
    edges += problem.edges.by_type
    couplings = [n for c in problem.couplings for n in (c.small, c.big, c.first, c.l)]
    groups = [n for group in problem.groups for n in group]
    phi = problem.phi.clone().requires_grad_()
    small = [x.clone().requires_grad_() for x in problem.small]
    big = [x.clone().requires_grad_() for x in problem.big_out]
    shared = problem.harmonics, edges, couplings
    operators = torch.ops.tripq
    return (
        (operators.expand.default, (small, phi, *shared, list(problem.orders), False)),
        (operators.contract.default, (big, phi, *shared, groups, True)),
        (operators.correlate.default, (small, big, *shared, phi.shape[1], False)),
    )


@pytest.mark.parametrize("i", range(3), ids=["expand", "contract", "correlate"])
def test_operators_keep_the_rules_of_torch(i):
    operator, args = arguments_of_operators(Problem(**SMALLER))[i]
    torch.library.opcheck(operator, args)


def test_compiled_is_eager():
    for function, inputs in gradients_of(Problem(**SMALLER)):

        def loss(*x, function=function):
            return sum(y.square().sum() for y in function(*x))

        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        expected, found = loss(*inputs), compiled(*inputs)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs)
        )
