"""Sums over edges between nodes: a twin that equals the definition, kernels that equal the twin."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from e3nn import o3
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.ahead_of_time import compile_kernel, for_targets
from tests.strategies import RADIUS, Nodes, layers, relative_error, seeds, table_of
from tripq.backends.edges import evaluate
from tripq.filters.filter import PQFilter
from tripq.kernels import nodes_triton, nodes_twin
from tripq.kernels.launch import accumulation_dtype
from tripq.kernels.nodes import aggregate_nodes
from tripq.kernels.nodes_arguments import Constants, Coupling, Geometry, NodeCsr, Term
from tripq.kernels.nodes_constants import compiled, harmonic_polynomial
from tripq.so3.harmonics import spherical_harmonics, unit_vectors
from tripq.so3.recoupling import clebsch_gordan

PLAIN = ((1, 1),)
ANTIPODAL = ((1, 1), (1, -1))
ALL_SIGNS = ((1, 1), (1, -1), (-1, 1), (-1, -1))

#: Couplings, the numbers of both kinds of radial functions, the signs and whether p is joined in.
CASES = {
    "scalars": ((0, 0, 0, 0, 0), (1, 1), PLAIN, False),
    "vectors": ((1, 1, 1, 1, 1), (2, 3), PLAIN, False),
    "mixed orders": ((2, 1, 1, 2, 3), (3, 2), PLAIN, False),
    "no inner harmonic": ((2, 0, 1, 1, 2), (2, 1), PLAIN, False),
    "antipodal": ((1, 2, 1, 2, 1), (1, 3), ANTIPODAL, False),
    "joint": ((0, 2, 1, 1, 1), (2, 2), PLAIN, True),
    "joint antipodal": ((0, 2, 2, 1, 1), (1, 2), ALL_SIGNS, True),
    "fourth order": ((1, 4, 3, 2, 1), (1, 1), PLAIN, False),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@dataclass
class Problem:
    """The arguments of the sum for one coupling."""

    x: Tensor
    phi_p: Tensor
    phi_q: Tensor
    geometry: Geometry
    edges: NodeCsr
    coupling: Coupling

    @classmethod
    def random(cls, case, seed=0, n_out=4, n_in=3, n_types=3, n_edges=40, mul=2):
        """Repeated edges, zero offsets in p and q, and an output node without edges."""
        (l_p, l_q, l_in, l_1, l_out), (k_p, k_q), signs, joint = case
        rng = np.random.default_rng(seed)

        def normal(*shape):
            return torch.from_numpy(rng.normal(size=shape))

        def ends(number, n=n_edges):
            return torch.from_numpy(rng.integers(0, number, n))

        p_offsets, q_out, q_in = normal(n_types, 3), normal(n_out, 3), normal(n_in, 3)
        p_offsets[:1] = 0
        shared = min(n_out, n_in, 2)
        q_out[:shared] = q_in[:shared]
        edges = NodeCsr.build(
            ends(max(n_out - 1, 1)),
            ends(n_in),
            ends(n_types),
            torch.from_numpy(rng.uniform(0.1, 1, n_edges)),
            n_out,
            n_in,
            n_types,
        )
        geometry = Geometry(spherical_harmonics((l_p,), p_offsets)[l_p], p_offsets, q_out, q_in)
        flat = tuple(sign for pair in signs for sign in pair)
        return cls(
            normal(n_in, mul, 2 * l_in + 1),
            normal(n_types, k_p),
            normal(n_in, k_q),
            geometry,
            edges,
            Coupling(l_p, l_q, l_in, l_1, l_out, flat, joint),
        )

    def to(self, device=None, dtype=None):
        """The same with leaves that take gradients."""
        exact = None if dtype is None else accumulation_dtype(dtype)
        leaves = (t.to(device, dtype).requires_grad_() for t in (self.x, self.phi_p, self.phi_q))
        return Problem(
            *leaves,
            Geometry(*(t.to(device, exact) for t in self.geometry)),
            NodeCsr(*(t.to(device) for t in self.edges.tensors())),
            self.coupling,
        )

    @property
    def leaves(self):
        return self.x, self.phi_p, self.phi_q

    def sum(self, x=None, phi_p=None, phi_q=None):
        """The sum by the public function, which reads harmonics from a table of all orders."""
        c = self.coupling
        table = self.geometry.harmonics_p.new_zeros(len(self.phi_p), (c.l_p + 2) ** 2)
        table[:, c.l_p**2 : (c.l_p + 1) ** 2] = self.geometry.harmonics_p
        (result,) = aggregate_nodes(
            [self.x if x is None else x],
            self.phi_p if phi_p is None else phi_p,
            table,
            self.phi_q if phi_q is None else phi_q,
            *self.geometry[1:],
            self.edges,
            [Term(0, c.l_p, c.l_q, c.l_1, c.l_out)],
            tuple(zip(c.signs[::2], c.signs[1::2], strict=True)),
            c.joint,
        )
        return result

    def twin(self, grad=None):
        """The sum and, for its gradient `grad`, those of x, phi_p and phi_q, all by the twin."""
        fixed = Constants(self.geometry, self.edges, self.coupling)
        x, phi_p, phi_q = (t.detach() for t in self.leaves)
        found = nodes_twin.sum_over_edges(x, phi_p, phi_q, fixed)
        grad = torch.ones_like(found) if grad is None else grad
        return (
            found,
            nodes_twin.gradient_for_features(grad, phi_p, phi_q, fixed),
            nodes_twin.gradient_for_radial(grad, x, phi_p, phi_q, fixed, True),
            nodes_twin.gradient_for_radial(grad, x, phi_p, phi_q, fixed, False),
        )


def written_out(problem):
    """The sum, edge by edge and component by component of the definition."""
    c, edges = problem.coupling, problem.edges
    p_offsets, q_out, q_in = problem.geometry[1:]
    outer = torch.tensor(clebsch_gordan(c.l_p, c.l_1, c.l_out))
    inner = torch.tensor(clebsch_gordan(c.l_q, c.l_in, c.l_1))
    n_out, (mul, _), k = len(q_out), problem.x.shape[1:], len(problem.phi_p[0])
    out = torch.zeros(n_out, mul, k, problem.phi_q.shape[1], 2 * c.l_out + 1, dtype=torch.float64)

    def harmonic(l, v):
        if v.norm() == 0:
            return torch.full((2 * l + 1,), 1.0 if l == 0 else 0.0, dtype=torch.float64)
        return o3.spherical_harmonics(l, v, normalize=True, normalization="component")

    for n, s, t, w in zip(*(part.tolist() for part in edges.tensors()[:4]), strict=True):
        ys = []
        for i in range(0, len(c.signs), 2):
            offset = c.signs[i] * q_out[n] - c.signs[i + 1] * q_in[s]
            ys.append(harmonic(c.l_q, p_offsets[t] - offset if c.joint else offset))
        y_q = sum(ys) / len(ys)
        to_1 = torch.einsum("q,ci,qin->cn", y_q, problem.x[s], inner)
        to_out = torch.einsum("p,cn,pno->co", harmonic(c.l_p, p_offsets[t]), to_1, outer)
        radial = w * problem.phi_p[t][:, None] * problem.phi_q[s][None, :]
        out[n] += radial[None, :, :, None] * to_out[:, None, None, :]
    return out


# -- the twin ------------------------------------------------------------------------------------


@pytest.mark.parametrize("l", range(7))
def test_the_polynomials_are_the_spherical_harmonics(l):
    monomials, coefficients = harmonic_polynomial(l)
    v = torch.randn(20, 3, dtype=torch.float64)
    found = torch.zeros(20, 2 * l + 1, dtype=torch.float64)
    for j, c in enumerate(coefficients):
        component, *exponents = monomials[4 * j : 4 * j + 4]
        assert sum(exponents) == l
        found[:, component] += c * unit_vectors(v).pow(torch.tensor(exponents)).prod(dim=1)
    torch.testing.assert_close(found, spherical_harmonics((l,), v)[l], rtol=0, atol=1e-12)


@given(seed=seeds, sizes=st.tuples(*[st.integers(1, 5)] * 3), n_edges=st.integers(0, 20))
def test_edges_are_arranged_by_both_ends_and_by_type(seed, sizes, n_edges):
    rng = np.random.default_rng(seed)
    given_edges = [torch.from_numpy(rng.integers(0, n, n_edges)) for n in sizes]
    weight = torch.from_numpy(rng.random(n_edges))
    edges = NodeCsr.build(*given_edges, weight, *sizes)
    kept = zip(*(part.tolist() for part in edges.tensors()[:4]), strict=True)
    assert sorted(kept) == sorted(zip(*(t.tolist() for t in (*given_edges, weight)), strict=True))
    every = torch.arange(n_edges)
    for end, starts, order, n in (
        (edges.dst, edges.output_starts, every, sizes[0]),
        (edges.src, edges.input_starts, edges.input_order, sizes[1]),
        (edges.type, edges.type_starts, edges.type_order, sizes[2]),
    ):
        assert sorted(order.tolist()) == every.tolist()
        assert len(starts) == n + 1
        for i in range(n):
            run = order[starts[i] : starts[i + 1]]
            assert run.tolist() == torch.nonzero(end == i).flatten().tolist()


@every_case
@given(seed=seeds, n_out=st.integers(1, 4), n_in=st.integers(1, 4), n_edges=st.integers(0, 9))
def test_the_sum_is_that_over_its_edges(case, seed, n_out, n_in, n_edges):
    problem = Problem.random(case, seed, n_out, n_in, n_edges=n_edges)
    assert relative_error(problem.sum(), written_out(problem)) < 1e-13


@every_case
def test_gradients_are_derivatives(case):
    problem = Problem.random(case, n_out=2, n_in=3, n_edges=6).to()
    assert torch.autograd.gradcheck(problem.sum, problem.leaves)


@every_case
def test_chunks_of_edges_change_nothing(case, monkeypatch):
    problem = Problem.random(case)
    at_once = problem.twin()
    monkeypatch.setattr(nodes_twin, "_CHUNK", 1)
    for in_chunks, expected in zip(problem.twin(), at_once, strict=True):
        assert relative_error(in_chunks, expected) < 1e-13


def small_layers(**options):
    """Layers on nodes with a table of their own at every voxel, and what they work on."""
    p = np.random.default_rng(0).uniform(-1.5, 1.5, (3, 3))
    domain = Nodes(p, table_of(0, 6), (1, 3, 2))
    return layers(domain=domain, **options).map(lambda layer: (layer, domain))


def by_nodes(x, scan, filter: PQFilter):
    """What a filter gives on nodes: sums for all couplings, and its weights on each node."""
    space = scan.q
    joined, table = space.edges, scan.edges
    edges = NodeCsr.build(
        joined.dst,
        joined.src,
        table.type[joined.p_edge],
        joined.weights,
        len(space.q_out),
        len(space.q),
        len(table.offsets),
    )
    mixings = filter.recoupling.mixings
    outer = filter.outer_harmonics(table.offsets)
    highest = max(outer)
    zeros = table.offsets.new_zeros(len(table.offsets), (highest + 1) ** 2)
    for l, y in outer.items():
        zeros[:, l**2 : (l + 1) ** 2] = y
    keys = [
        (mixing, row, column)
        for mixing in mixings
        for row in mixing.rows
        for column in mixing.columns
    ]
    sums = aggregate_nodes(
        [
            x[:, filter.index_in(g)].view(-1, c.mul, 2 * c.l + 1)
            for g, c in enumerate(filter.channels_in)
        ],
        filter.phi_p(table.offsets.norm(dim=-1)),
        zeros,
        filter.phi_q_in(space.q.norm(dim=-1)),
        table.offsets,
        *(unit_vectors(q) if filter.unit_directions else q for q in (space.q_out, space.q)),
        edges,
        [
            Term(column.channels, row.l, column.l, mixing.l_1, filter.channels_out[row.channels].l)
            for mixing, row, column in keys
        ],
        filter.signs,
        filter.kind == "diff",
    )
    phi_out = filter.phi_q_out(space.q_out.norm(dim=-1))
    matrices = dict(zip((m.l_1 for m in mixings), filter.mixing_matrices(), strict=True))
    out = x.new_zeros(len(space.q_out), filter.dim_out)
    for (mixing, row, column), total in zip(keys, sums, strict=True):
        matrix = matrices[mixing.l_1][:, column.start : column.stop, row.start : row.stop]
        matrix = matrix.unflatten(2, (filter.radial[0], -1)).unflatten(1, (filter.radial[2], -1))
        mixed = torch.einsum("ncabo,ny,ybcad->ndo", total, phi_out, matrix)
        out = out.index_add(1, filter.index_out(row.channels), mixed.flatten(1))
    return out


@pytest.mark.parametrize("antipodal", [False, True])
@pytest.mark.parametrize("kind", ["tp", "diff", "p", "q"])
@given(data=st.data())
def test_filters_on_nodes_are_weights_on_these_sums(kind, antipodal, data):
    layer, domain = data.draw(small_layers(filter=kind, antipodal=antipodal))
    scan = domain.graph(RADIUS).scans[0]
    x = torch.randn(len(domain.q), layer.irreps_in.dim, dtype=torch.float64)
    for filter in layer.filters:
        if filter.paths:
            expected = evaluate(x, scan.edges, scan.q, filter, 1 << 24)
            assert relative_error(by_nodes(x, scan, filter), expected) < 1e-12


# -- the operators -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vectors", "joint antipodal"])
def test_operators_are_registered_as_torch_wants_them(name):
    problem = Problem.random(CASES[name], n_edges=9).to()
    c = problem.coupling
    geometry, edges = list(problem.geometry), problem.edges.tensors()
    same = geometry, edges, list(c[:5]), list(c.signs), c.joint
    torch.library.opcheck(torch.ops.tripq.node_sum.default, (*problem.leaves, *same))
    grad = torch.randn_like(problem.sum()).detach()
    x, phi_p, phi_q = (t.detach() for t in problem.leaves)
    operators = torch.ops.tripq
    arguments = grad, phi_p, phi_q, *same
    torch.library.opcheck(operators.node_sum_gradient_for_features.default, arguments)
    for of_p in (True, False):
        arguments = grad, x, phi_p, phi_q, *same, of_p
        torch.library.opcheck(operators.node_sum_gradient_for_radial.default, arguments)


def test_compiled_is_eager():
    problem = Problem.random(CASES["vectors"]).to()
    compiled = torch.compile(problem.sum, fullgraph=True, backend="aot_eager")
    for leaves in (problem.leaves, problem.to().leaves):
        found, expected = compiled(*leaves), problem.sum(*leaves)
        assert torch.equal(found, expected)
        grads = (torch.autograd.grad(out.square().sum(), leaves) for out in (found, expected))
        for a, b in zip(*grads, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("needed", range(3))
def test_only_the_gradient_that_is_asked_for(needed):
    problem = Problem.random(CASES["mixed orders"])
    leaf = problem.leaves[needed].requires_grad_()
    (found,) = torch.autograd.grad(problem.sum().sum(), leaf)
    assert torch.equal(found, problem.twin()[1 + needed])


def test_the_sum_has_the_common_type_of_its_terms():
    problem = Problem.random(CASES["vectors"])
    expected = problem.sum()
    for types, common, limit in (
        ((torch.float32, torch.float32, torch.float32), torch.float32, 1e-5),
        ((torch.float32, torch.float64, torch.float32), torch.float64, 1e-5),
        ((torch.bfloat16, torch.float32, torch.float32), torch.float32, 2e-2),
        ((torch.bfloat16, torch.bfloat16, torch.bfloat16), torch.bfloat16, 5e-2),
    ):
        leaves = [t.detach().to(dtype) for t, dtype in zip(problem.leaves, types, strict=True)]
        found = problem.sum(*(leaf.requires_grad_() for leaf in leaves))
        assert found.dtype == common
        assert relative_error(found.double(), expected) < limit
        grads = torch.autograd.grad(found.sum(), leaves)
        assert [g.dtype for g in grads] == list(types)


def test_autocast_leaves_the_directions_exact():
    problem = Problem.random(CASES["vectors"])
    # Far from the origin half precision would not tell these q-vectors apart.
    far = replace(
        problem,
        geometry=problem.geometry._replace(
            q_out=problem.geometry.q_out + 100, q_in=problem.geometry.q_in + 100
        ),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        leaves = [t.float() @ torch.eye(t.shape[-1]) for t in problem.leaves]
        found = far.sum(*leaves)
    assert found.dtype == leaves[0].dtype == torch.bfloat16
    assert relative_error(found.double(), problem.sum()) < 2e-2


@pytest.mark.parametrize("name", ["harmonics_p", "p_offsets", "q_out", "q_in"])
def test_coordinates_have_no_gradient(name):
    problem = Problem.random(CASES["vectors"])
    part = getattr(problem.geometry, name).clone().requires_grad_()
    problem.geometry = problem.geometry._replace(**{name: part})
    with pytest.raises(ValueError, match="no gradients for coordinates"):
        problem.sum()


# -- the kernels ---------------------------------------------------------------------------------

LIMITS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def assert_kernels_equal_the_twin(problem, device, dtype):
    problem = problem.to(device, dtype)
    found = problem.sum()
    grad = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(found)
    results = found, *torch.autograd.grad(found, problem.leaves, grad)
    # The twin in float64, on the numbers that the kernels got.
    expected = problem.to(dtype=torch.float64).twin(grad.double())
    for result, right in zip(results, expected, strict=True):
        assert result.dtype == dtype
        assert relative_error(result.double(), right) < LIMITS[dtype]


@pytest.mark.usefixtures("poisoned")
@every_case
def test_kernels_equal_the_twin(case, triton_device):
    assert_kernels_equal_the_twin(Problem.random(case), triton_device, torch.float64)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_in_lower_precision(dtype, triton_device):
    problem = Problem.random(CASES["mixed orders"], n_edges=20)
    assert_kernels_equal_the_twin(problem, triton_device, dtype)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    "sizes",
    [
        {"mul": 1},
        {"n_in": 1, "n_out": 1, "n_types": 1, "n_edges": 1, "mul": 1},
        {"n_edges": 0},
        {"n_edges": 0, "n_out": 0},
        {"n_edges": 0, "n_in": 0, "n_types": 0},
        {"mul": 0},
        {"n_out": 2, "n_in": 2, "n_types": 1, "n_edges": 64, "mul": 3},
    ],
    ids=str,
)
def test_kernels_of_all_sizes(sizes, triton_device):
    problem = Problem.random(CASES["antipodal"], **sizes)
    assert_kernels_equal_the_twin(problem, triton_device, torch.float64)


@pytest.mark.usefixtures("poisoned")
def test_kernels_in_slices_and_splits(triton_device, monkeypatch):
    case = ((1, 1, 1, 1, 1), (6, 2), PLAIN, False)
    monkeypatch.setattr(nodes_triton, "_SPLIT", 5)
    monkeypatch.setattr(nodes_triton, "_ACCUMULATORS", 40)
    assert nodes_triton.slice_of(6, 2 * 2 * 3) == 3
    assert_kernels_equal_the_twin(Problem.random(case), triton_device, torch.float64)


@pytest.mark.usefixtures("poisoned")
def test_kernels_take_strides(triton_device):
    problem = Problem.random(CASES["vectors"], n_edges=9).to(triton_device)
    expected = problem.twin(problem.sum().detach())
    strided = [t.detach().mT.contiguous().mT.requires_grad_() for t in problem.leaves]
    assert not any(t.is_contiguous() for t in strided)
    found = problem.sum(*strided)
    grad = found.detach().transpose(0, 4).contiguous().transpose(0, 4)
    results = found, *torch.autograd.grad(found, strided, grad)
    for result, right in zip(results, expected, strict=True):
        assert relative_error(result, right) < 1e-12


def test_kernels_read_nothing_of_nodes_that_are_not_joined(triton_device):
    problem = Problem.random(CASES["vectors"], n_in=2, n_edges=9)
    ahead = torch.full((1, 1), torch.nan, dtype=torch.float64)
    edges = problem.edges
    shifted = Problem(
        torch.cat([ahead.expand(1, *problem.x.shape[1:]), problem.x]),
        torch.cat([ahead.expand(1, 2), problem.phi_p]),
        torch.cat([ahead.expand(1, 3), problem.phi_q]),
        Geometry(
            torch.cat([ahead.expand(1, 3), problem.geometry.harmonics_p]),
            torch.cat([ahead.expand(1, 3), problem.geometry.p_offsets]),
            problem.geometry.q_out,
            torch.cat([ahead.expand(1, 3), problem.geometry.q_in]),
        ),
        NodeCsr.build(edges.dst, edges.src + 1, edges.type + 1, edges.weight, 4, 3, 4),
        problem.coupling,
    ).to(triton_device)
    found = shifted.sum()
    expected = problem.twin()
    grads = torch.autograd.grad(found.sum(), shifted.leaves)
    assert relative_error(found.cpu(), expected[0]) < 1e-12
    for grad, right in zip(grads, expected[1:], strict=True):
        assert relative_error(grad[1:].cpu(), right) < 1e-12
        assert grad[0].count_nonzero() == 0


# -- ahead of time -------------------------------------------------------------------------------


def resources(name, orders, target, *, radial=(3, 3), half="fp32", full="fp32", sizes=None):
    """Compile a kernel for the orders of a coupling, and print what it takes."""
    kernel = getattr(nodes_triton, name)
    coupling = Coupling(*orders, (1, 1), False)
    width = radial[1] * (2 * orders[-1] + 1) * int(full[2:]) // 32
    constants = {
        "C": compiled(coupling),
        "K_P": radial[0],
        "K_Q": radial[1],
        "SLICE": nodes_triton.slice_of(radial[0], width),
        "OF_P": True,
        "BLOCK": nodes_triton.BLOCK,
    }
    types = dict.fromkeys(("x", "phi_p", "phi_q", "other", "grad", "out"), f"*{half}")
    types["geometry"] = Geometry(*[f"*{full}"] * 4)
    types["edges"] = nodes_triton.Edges("*i64", "*i64", "*i64", f"*{full}", "*i64", "*i64")
    # Triton turns a size of 1 into a constant.
    constants |= sizes or {}
    types |= {} if sizes else dict.fromkeys(("mul", "splits"), "i32")
    found = compile_kernel(
        kernel,
        {key: types[key] for key in types if key in kernel.arg_names},
        {key: constants[key] for key in constants if key in kernel.arg_names},
        target,
        num_warps=1,
    )
    print(f"{name} {orders} {half} {target}: {found}")
    return found


KERNELS = ("_sum", "_to_features", "_to_radial")


@pytest.mark.parametrize(("kernel", "target"), for_targets([(name,) for name in KERNELS], ()))
def test_kernels_compile_and_spill_nothing(kernel, target):
    found = resources(kernel, (4, 4, 4, 4, 4), target)
    assert target == "gfx942" or found.spilled == 0


@pytest.mark.parametrize(
    ("kernel", "half", "full"),
    [  # the types in turn or, in `make test-all`, every kernel in both
        pytest.param(kernel, *types, marks=() if n % 2 == i else pytest.mark.exhaustive)
        for n, kernel in enumerate(KERNELS)
        for i, types in enumerate((("fp64", "fp64"), ("bf16", "fp32")))
    ],
)
def test_kernels_compile_in_other_types(kernel, half, full):
    assert resources(kernel, (2, 2, 2, 2, 2), "sm_90", half=half, full=full).spilled == 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_compile_for_one_channel(kernel):
    sizes = {"mul": 1, "splits": 1}
    assert resources(kernel, (1, 1, 1, 1, 1), "sm_90", sizes=sizes).spilled == 0
