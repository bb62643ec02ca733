"""Tensor products over a graph: the sum written out, its derivatives, and the Triton kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from e3nn import o3
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.ahead_of_time import compile_kernel, for_targets
from tripq.domain.adjacency import Adjacency
from tripq.kernels.tensor_product import Coupling, contract, expand
from tripq.kernels.tensor_product_twin import Product, contract_twin, correlate_twin, expand_twin
from tripq.so3.harmonics import spherical_harmonics

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
        self.device = torch.device(device)
        self.groups, self.orders = groups, orders
        self.couplings = all_couplings(groups, orders, n_radial)

        def integers(low, high):
            return torch.from_numpy(rng.integers(low, max(high, low + 1), n_edges)).to(device)

        def normal(*shape):
            return torch.from_numpy(rng.normal(size=shape)).to(device, dtype)

        self.dst, self.src = integers(min(1, n_out - 1), n_out), integers(0, n_in - 1)
        self.type = integers(0, n_types - 1)
        self.n_out, self.n_in, self.n_types = n_out, n_in, n_types
        self.edges = Adjacency.build(self.dst, self.src, self.type, n_out, n_in, n_types)
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
    for function, inputs in gradients_of(Problem(**SMALLER, n_out=2, n_in=2)):
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


def test_features_are_kept_for_the_gradient_of_phi_only():
    problem = Problem(**SMALLER)
    for needs_phi in (False, True):
        for function, (*features, phi) in gradients_of(problem):
            kept = []
            with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, id):  # noqa: B023
                function(*features, phi.detach().requires_grad_(needs_phi))
            pointers = {x.data_ptr() for x in kept}
            assert all((x.data_ptr() in pointers) == needs_phi for x in features)


def test_sums_of_half_precision_features_are_kept_in_single_precision():
    problem = Problem(dtype=torch.float32)
    exact = problem.expand([x.bfloat16().float() for x in problem.small], problem.phi)
    found = problem.expand([x.bfloat16() for x in problem.small], problem.phi)
    assert_all_close(found, [x.bfloat16() for x in exact], 1e-3)
    exact = problem.contract([x.bfloat16().float() for x in problem.big], problem.phi)
    found = problem.contract([x.bfloat16() for x in problem.big], problem.phi)
    assert_all_close(found, [x.bfloat16() for x in exact], 1e-3)


def test_features_decide_the_type_also_under_autocast():
    problem = Problem(**SMALLER)
    phi = problem.phi.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        for features, function in (
            (problem.small, problem.expand),
            (problem.big, problem.contract),
        ):
            expected = function(features, phi)
            for dtype, tolerance in ((torch.float64, 0), (torch.float32, 1e-6)):
                found = function([x.to(dtype) for x in features], phi)
                assert all(x.dtype == dtype for x in found)
                assert_all_close([x.double() for x in found], expected, tolerance)
            mixed = function([features[0].float(), *features[1:]], phi)
            assert all(x.dtype == torch.float64 for x in mixed)
            (gradient,) = torch.autograd.grad(sum(x.sum() for x in found), phi)
            assert gradient.dtype == torch.float64


def test_no_coupling_gives_no_rows_and_zeros():
    problem = Problem(groups=((1, 2),), orders=(0, 2))
    problem.couplings = []
    big = problem.expand(problem.small, problem.phi)
    assert [x.shape for x in big] == [(4, 0, 1, 3), (4, 0, 5, 3)]
    small = problem.contract([x[:, :0] for x in problem.big], problem.phi)
    assert [x.equal(torch.zeros(4, 3, 2, 3, dtype=x.dtype)) for x in small] == [True]


def test_what_does_not_fit_together_is_refused():
    problem = Problem()
    first = problem.couplings[0]
    for couplings, message in (
        (problem.couplings[1:], "should begin at row 0"),
        ([*problem.couplings, first], "should begin at row"),
        ([Coupling(1, 0, 0, 2)], "cannot couple orders 1 and 0"),
    ):
        problem.couplings = couplings
        with pytest.raises(ValueError, match=message):
            problem.expand(problem.small, problem.phi)
        with pytest.raises(ValueError, match=message):
            problem.contract(problem.big, problem.phi)
    problem = Problem()
    with pytest.raises(ValueError, match="should be of shape"):
        problem.expand([x[:-1] for x in problem.small], problem.phi)
    with pytest.raises(ValueError, match="should be of shape"):
        problem.contract([x[:, :-1] for x in problem.big], problem.phi)
    with pytest.raises(ValueError, match="5 edge types, but 4 rows of phi"):
        problem.expand(problem.small, problem.phi[:-1])
    problem.harmonics = problem.harmonics[:, :4]
    with pytest.raises(ValueError, match="more than 4 components"):
        problem.expand(problem.small, problem.phi)
    problem.harmonics.requires_grad_()
    with pytest.raises(ValueError, match="constants of the geometry"):
        problem.contract(problem.big, problem.phi)


# -- the Triton kernels --------------------------------------------------------------------------


def by_block(problem, big):
    """Rows of big tensors, coupling by coupling."""
    n_radial = problem.phi.shape[1]
    return [
        big[c.big][:, c.first : c.first + n_radial * problem.groups[c.small][1]].contiguous()
        for c in problem.couplings
    ]


def lists(problem, small_to_big):
    ends = [problem.edges.by_output, problem.edges.by_input]
    by_type, src, dst = problem.edges.by_type
    if not small_to_big:
        ends, src, dst = ends[::-1], dst, src
    return [x for csr in ends for x in (csr.starts, csr.other, csr.type)] + [by_type, src, dst]


def assert_is_twin(problem, tolerance):
    """Both operators and their gradients, block by block, against the twins in float64."""
    phi = problem.phi.clone().requires_grad_()
    small = [x.clone().requires_grad_() for x in problem.small]
    big = [x.clone().requires_grad_() for x in problem.big]
    small_64, big_64, small_out, big_out = (
        [x.double() for x in features]
        for features in (problem.small, problem.big, problem.small_out, problem.big_out)
    )
    phi_64, harmonics = problem.phi.double(), problem.harmonics.double()

    def assert_close(found, expected):
        assert all(x.dtype == problem.small[0].dtype for x in found)
        assert_all_close([x.double().contiguous() for x in found], expected, tolerance)

    found = problem.expand(small, phi)
    product = Product(harmonics, lists(problem, True), problem.couplings, False)
    expected = expand_twin(small_64, phi_64, product, problem.orders)
    assert_close(by_block(problem, found), by_block(problem, expected))
    *gradients, gradient_phi = torch.autograd.grad(found, (*small, phi), problem.big_out)
    expected = contract_twin(big_out, phi_64, product, problem.groups)
    assert_close(gradients, expected)
    expected = correlate_twin(small_64, big_out, product, phi.shape[1])
    assert_all_close([gradient_phi.double()], [expected], tolerance)

    found = problem.contract(big, phi)
    product = Product(harmonics, lists(problem, False), problem.couplings, True)
    expected = contract_twin(big_64, phi_64, product, problem.groups)
    assert_close(found, expected)
    *gradients, gradient_phi = torch.autograd.grad(found, (*big, phi), problem.small_out)
    expected = expand_twin(small_out, phi_64, product, problem.orders)
    assert_close(by_block(problem, gradients), by_block(problem, expected))
    expected = correlate_twin(small_out, big_64, product, phi.shape[1])
    assert_all_close([gradient_phi.double()], [expected], tolerance)


@pytest.mark.usefixtures("poisoned")
def test_triton_computes_what_its_twin_computes(triton_device):
    problem = Problem(n_out=3, n_in=2, n_edges=4, n_types=3, device=triton_device)
    assert_is_twin(problem, 1e-12)


ONE = {"groups": ((1, 2),), "orders": (1,)}  # a single group, coupled by three harmonics


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.usefixtures("poisoned")
def test_triton_in_lower_precision(triton_device, dtype, tolerance):
    problem = Problem(**ONE, n_edges=5, dtype=dtype, device=triton_device)
    assert_is_twin(problem, tolerance)


@pytest.mark.parametrize(
    "sizes",
    [
        {"n_edges": 0},
        {"n_out": 1, "n_in": 1, "n_edges": 2, "n_types": 1, "lanes": 1, "n_radial": 1},
        {"n_out": 1, "groups": ((0, 1),), "orders": (0,), "lanes": 1},
        {"n_edges": 0, "n_out": 0},
        {"n_edges": 0, "n_in": 0},
        {"n_edges": 0, "n_types": 0},
        {"lanes": 0},
        {"n_radial": 0},
        {"groups": ((1, 0), (1, 1)), "orders": (0,)},
    ],
    ids=str,
)
@pytest.mark.usefixtures("poisoned")
def test_triton_with_little_or_nothing_to_sum(triton_device, sizes):
    assert_is_twin(Problem(**ONE | sizes, device=triton_device), 1e-12)


@pytest.mark.usefixtures("poisoned")
def test_triton_splits_lanes_radial_functions_and_sums(triton_device, monkeypatch):
    from tripq.kernels import tensor_product_triton

    # One radial function at a time, 128 lanes at a time, 7 programs for a sum over all edges.
    monkeypatch.setattr(tensor_product_triton, "_REGISTERS", 1)
    monkeypatch.setattr(tensor_product_triton, "_PROGRAMS", 7)
    sizes = {"n_out": 2, "n_in": 2, "n_types": 2, "n_edges": 5, "lanes": 131}
    problem = Problem(**sizes, groups=((1, 1),), orders=(0,), device=triton_device)
    assert_is_twin(problem, 1e-12)


@pytest.mark.usefixtures("poisoned")
def test_triton_with_strided_features_and_tables(triton_device):
    problem = Problem(n_edges=3, groups=((1, 2),), orders=(0,), device=triton_device)
    for name in ("small", "big", "small_out", "big_out"):
        strided = [x.transpose(0, 3).contiguous().transpose(0, 3) for x in getattr(problem, name)]
        setattr(problem, name, strided)
    problem.phi, problem.harmonics = (
        x.t().contiguous().t() for x in (problem.phi, problem.harmonics)
    )
    assert_is_twin(problem, 1e-12)


def test_triton_repeats_itself_bit_for_bit(triton_device):
    n_edges = 5 if triton_device.type == "cpu" else 20  # one after the other, or all at once
    sizes = {"n_edges": n_edges, "groups": ((1, 2),), "orders": (0,)}
    problem = Problem(**sizes, dtype=torch.float32, device=triton_device)

    def outcome():
        results = []
        for function, inputs in gradients_of(problem):
            out = function(*inputs)
            results += [*out, *torch.autograd.grad(sum(x.square().sum() for x in out), inputs)]
        return results

    assert all(a.equal(b) for a, b in zip(outcome(), outcome(), strict=True))


def compile_for(target, name, coupling, table="fp32", features="fp32"):
    """Compile a kernel for three radial functions, as it is launched where lanes are many."""
    from tripq.kernels import tensor_product_triton

    kernel = getattr(tensor_product_triton, f"{name}_kernel")
    l, n_small, n_big = coupling[0], 2 * coupling[1] + 1, 2 * coupling[2] + 1
    constants = {"C": tensor_product_triton.constants(l, n_small, n_big, 3, False)}
    size = torch.float64.itemsize if table == "fp64" else torch.float32.itemsize
    tile = tensor_product_triton.tile(4096, (n_small + n_big + 3 * (n_big + 1)) * size)
    constants = constants | {"BLOCK": tile["BLOCK"], "ADD": True}
    types = {x: f"*{table}" for x in ("phi", "partial")}
    types |= {x: f"*{features}" for x in ("small", "big")}
    edges = "EdgesByType" if name == "correlate" else "Edges"
    types["edges"] = getattr(tensor_product_triton, edges)(f"*{table}", "*i64", "*i64", "*i64")
    if name == "contract":  # adds to sums
        types["small"] = f"*{table}"
    names = set(kernel.arg_names)
    types = {x: types.get(x, "i64") for x in names - set(constants)}
    constants = {x: value for x, value in constants.items() if x in names}
    return compile_kernel(kernel, types, constants, target, tile["num_warps"])


KERNELS = ("expand", "contract", "correlate")
kernels = pytest.mark.parametrize("name", KERNELS)


@kernels
@pytest.mark.parametrize(  # l, l_g, l_j
    ("coupling", "target"), for_targets([((2, 2, 2),), ((4, 4, 4),)], [((2, 2, 2),)]), ids=str
)
def test_kernels_fit_the_registers(name, coupling, target):
    resources = compile_for(target, name, coupling)
    print(resources)
    assert resources.spilled == 0


@pytest.mark.parametrize(
    ("name", "table", "features"),
    [  # the types in turn or, in `make test-all`, every kernel in both
        pytest.param(name, *types, marks=() if n % 2 == i else pytest.mark.exhaustive)
        for n, name in enumerate(KERNELS)
        for i, types in enumerate((("fp64", "fp64"), ("fp32", "bf16")))
    ],
)
def test_kernels_of_other_types_fit_the_registers(name, table, features):
    resources = compile_for("sm_90", name, (3, 2, 3), table, features)
    print(resources)
    assert resources.spilled == 0


@pytest.mark.parametrize(
    "name",
    [
        "correlate",  # which takes most registers
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("expand", "contract")),
    ],
)
def test_the_highest_order_that_orders_up_to_4_lead_to(name):
    resources = compile_for("sm_80", name, (4, 4, 8))
    print(resources)
    assert resources.spilled == 0
