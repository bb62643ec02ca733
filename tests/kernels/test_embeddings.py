"""Embeddings of edges: harmonics against e3nn's, radial functions against the module's."""

from __future__ import annotations

import pytest
import torch
from e3nn import o3

from tests.kernels.ahead_of_time import compile_kernel, for_targets
from tripq.filters.radial import Radial, RadialFunctions
from tripq.kernels.embeddings import (
    Family,
    edge_harmonics,
    edge_radial,
    harmonic_recursion,
    harmonics_twin,
    radial_twin,
)
from tripq.so3.harmonics import ZERO_LENGTH

KINDS = ("gaussian", "cosine", "bessel", "smooth_finite")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}

kinds = pytest.mark.parametrize("kind", KINDS)


def relative_error(value, reference):
    error = (value.double() - reference.double()).abs().max()
    return float(error / reference.double().abs().max().clamp(min=1e-30))


def by_order(y):
    """The columns of each order."""
    lmax = round(y.shape[-1] ** 0.5) - 1
    return y.split([2 * l + 1 for l in range(lmax + 1)], dim=-1)


def some_offsets(n, dtype, device="cpu", seed=0):
    """Offsets of all lengths, the zero vector among them, and not contiguous."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.randn(3, n, generator=generator, dtype=torch.float64)
    offsets = offsets * torch.logspace(-2, 2, n, dtype=torch.float64)
    offsets[:, n // 2] = 0
    offsets[:, n // 3] = 0.4 * ZERO_LENGTH
    return offsets.to(dtype).to(device).T


def on_axes(dtype):
    return torch.cat([torch.eye(3, dtype=dtype), -2 * torch.eye(3, dtype=dtype)])


def some_lengths(n, dtype, device="cpu", seed=0):
    """Lengths from 0 to beyond the range of the functions, every other number of a buffer."""
    generator = torch.Generator().manual_seed(seed)
    lengths = 5 * torch.rand(n, 2, generator=generator, dtype=torch.float64)
    return lengths.to(dtype).to(device)[:, 0]


def family(kind, number, end=4.1):
    """Functions on the lengths from 0 to `end`."""
    return Family(kind, number, 0.0 if kind == "bessel" else -end / number, end)


def warp(number, dtype, device="cpu"):
    """A scale and a shift for each function."""
    scale = torch.linspace(0.8, 1.3, number, dtype=torch.float64)
    shift = torch.linspace(-0.2, 0.3, number, dtype=torch.float64)
    return scale.to(dtype).to(device), shift.to(dtype).to(device)


def value_and_gradients(function, inputs, seed=1):
    """The value, and the gradients for all inputs of its product with fixed random numbers."""
    inputs = [x if x is None else x.detach().requires_grad_() for x in inputs]
    out = function(*inputs)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    learned = [x for x in inputs if x is not None]
    return out.detach(), torch.autograd.grad(out, learned, weights.to(out))


# -- what is computed ------------------------------------------------------------------------------


@pytest.mark.parametrize("lmax", range(7))
def test_harmonics_are_those_of_e3nn(lmax):
    v = torch.cat([some_offsets(40, torch.float64), on_axes(torch.float64)])
    directed = v.norm(dim=1) > ZERO_LENGTH
    y = edge_harmonics(v, lmax)
    expected = o3.spherical_harmonics(
        list(range(lmax + 1)), v[directed], normalize=True, normalization="component"
    )
    assert torch.allclose(y[directed], expected, rtol=0, atol=1e-12)
    assert torch.equal(y[~directed, 0], torch.ones(2, dtype=v.dtype))
    assert not y[~directed, 1:].any()


@pytest.mark.parametrize("l", range(1, 7))
def test_one_recursion_gives_the_harmonics_and_their_gradients(l):
    terms, coefficients, begins = harmonic_recursion(l)
    order = slice(begins[l - 1], begins[l])
    m, k, i = torch.tensor(terms).view(-1, 3)[order].T
    coupling = torch.zeros(2 * l + 1, 2 * l - 1, 3, dtype=torch.float64)
    coupling[m, k, i] = torch.tensor(coefficients, dtype=torch.float64)[order]

    u = torch.randn(20, 3, dtype=torch.float64)
    u = (u / u.norm(dim=1, keepdim=True)).requires_grad_()
    lower, y = (
        o3.spherical_harmonics(j, u, normalize=False, normalization="component") for j in (l - 1, l)
    )
    assert torch.allclose(torch.einsum("mki,ek,ei->em", coupling, lower, u), y, atol=1e-13)
    slopes = torch.stack([torch.autograd.grad(c.sum(), u, retain_graph=True)[0] for c in y.T], 1)
    # e3nn's polynomials differ off the sphere, where a change of length leads: so along it only.
    along = torch.eye(3) - u[:, :, None] * u[:, None, :]
    gradients = torch.einsum("mki,ek->emi", l * coupling, lower)
    assert torch.allclose(gradients @ along, slopes @ along, atol=1e-12)


@kinds
@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("cutoff", [False, True])
def test_radial_functions_are_those_of_the_module(kind, learnable, cutoff):
    phi = RadialFunctions(Radial(kind, 3, learnable=learnable), end=4.0, cutoff=cutoff).double()
    scale = shift = None
    if learnable:
        scale, shift = warp(3, torch.float64)
        phi.scale.data = scale
        if kind == "bessel":
            shift = None
        else:
            phi.shift.data = shift
    lengths = torch.cat([some_lengths(50, torch.float64), torch.tensor([0.0, 1e-9, 4.0])])
    values = edge_radial(lengths, Family(kind, 3, phi._start, phi._stop), scale, shift)
    assert torch.equal(values, phi(lengths))


@pytest.mark.parametrize("lmax", [0, 1, 4])
def test_gradient_of_harmonics(lmax):
    def harmonics(v):
        return edge_harmonics(v, lmax) * v.new_ones(()) + 0 * v[:, :1]

    v = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(harmonics, (v,))


@kinds
@pytest.mark.parametrize("learnable", [False, True])
def test_gradient_of_radial_functions(kind, learnable):
    inputs = [torch.tensor([0.3, 1.1, 2.5, 3.3], dtype=torch.float64, requires_grad=True)]
    if learnable:
        inputs += [x.requires_grad_() for x in warp(3, torch.float64)]
    assert torch.autograd.gradcheck(lambda x, *ab: edge_radial(x, family(kind, 3), *ab), inputs)


def test_only_the_gradients_that_are_wanted():
    scale, shift = warp(3, torch.float64)
    values = edge_radial(
        some_lengths(9, torch.float64), family("cosine", 3), scale, shift.requires_grad_()
    )
    values.sum().backward()
    assert shift.grad.abs().min() > 0


def test_a_zero_offset_has_no_gradient():
    v = torch.zeros(2, 3, requires_grad=True)
    edge_harmonics(v, 4).sum().backward()
    assert torch.equal(v.grad, torch.zeros(2, 3))


def test_radial_functions_take_the_larger_type():
    lengths, (scale, shift) = some_lengths(5, torch.float32), warp(2, torch.float64)
    assert edge_radial(lengths, family("gaussian", 2), scale, shift).dtype == torch.float64


def test_embeddings_can_be_differentiated_twice():
    v = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([0.3, 1.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda v: edge_harmonics(v, 2), (v,))
    assert torch.autograd.gradgradcheck(lambda x: edge_radial(x, family("gaussian", 2)), (x,))


# -- what torch expects of an operator -------------------------------------------------------------


def test_harmonics_are_an_operator():
    v = some_offsets(6, torch.float32).requires_grad_()
    torch.library.opcheck(torch.ops.tripq.edge_harmonics.default, (v, 3))


@kinds
@pytest.mark.parametrize("learnable", [False, True])
def test_radial_functions_are_an_operator(kind, learnable):
    inputs = [some_lengths(6, torch.float32).requires_grad_(), *family(kind, 3)]
    inputs += [x.requires_grad_() for x in warp(3, torch.float32)] if learnable else [None, None]
    torch.library.opcheck(torch.ops.tripq.edge_radial.default, inputs)


def embed(v, scale, shift):
    y = edge_harmonics(v, 3)
    phi = edge_radial(v.norm(dim=1), family("smooth_finite", 2), scale, shift)
    return y[:, :, None] * phi[:, None, :]


def test_compiled_embeddings_are_the_same():
    # Longer than zero: the norm above has no gradient there.
    inputs = (some_offsets(10, torch.float64) + 0.1, *warp(2, torch.float64))
    compiled = torch.compile(embed, fullgraph=True, backend="aot_eager")
    value, gradients = value_and_gradients(compiled, inputs)
    expected, expected_gradients = value_and_gradients(embed, inputs)
    assert torch.allclose(value, expected)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(gradient, reference)


def test_autocast_leaves_embeddings_as_they_are():
    inputs = (some_offsets(10, torch.float32) + 0.1, *warp(2, torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        value = embed(*inputs)
    assert torch.equal(value, embed(*inputs))


def test_half_precision_rounds_once():
    v, lengths = some_offsets(20, torch.bfloat16), some_lengths(20, torch.bfloat16)
    y, phi = edge_harmonics(v, 3), edge_radial(lengths, family("gaussian", 3))
    assert torch.equal(y, edge_harmonics(v.float(), 3).bfloat16())
    assert torch.equal(phi, edge_radial(lengths.float(), family("gaussian", 3)).bfloat16())


def test_no_edges():
    v, lengths = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, requires_grad=True)
    y, phi = edge_harmonics(v, 2), edge_radial(lengths, family("bessel", 3))
    assert y.shape == (0, 9)
    assert phi.shape == (0, 3)
    (y.sum() + phi.sum()).backward()
    assert v.grad.shape == (0, 3)
    assert lengths.grad.shape == (0,)


# -- the kernels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lmax", "dtype"),
    [  # every order and every precision or, in `make test-all`, all of them together
        pytest.param(lmax, dtype, marks=() if n % 3 == i else pytest.mark.exhaustive)
        for n, lmax in enumerate((1, 2, 4, 6))
        for i, dtype in enumerate(TOLERANCE)
    ],
    ids=str,
)
def test_kernels_of_harmonics(lmax, dtype, triton_device, poisoned):
    v = some_offsets(150, dtype, triton_device)
    y, (gradient,) = value_and_gradients(lambda v: edge_harmonics(v, lmax), (v,))
    expected, (expected_gradient,) = value_and_gradients(
        lambda v: harmonics_twin(v, lmax), (v.double(),)
    )
    for block, reference in zip(by_order(y), by_order(expected), strict=True):
        assert relative_error(block, reference) < TOLERANCE[dtype]
    zero = v.norm(dim=1) < ZERO_LENGTH
    assert int(zero.sum()) == 2
    assert not gradient[zero].any()
    # The gradient falls off as the reciprocal length.
    length = v[~zero].double().norm(dim=1, keepdim=True)
    scaled = gradient[~zero].double() * length
    assert relative_error(scaled, expected_gradient[~zero] * length) < TOLERANCE[dtype]


@pytest.mark.parametrize("l", range(1, 5))
def test_kernels_of_harmonics_give_the_gradient_of_each_order(l, triton_device, poisoned):
    v = some_offsets(8, torch.float64, triton_device)
    _, (gradient,) = value_and_gradients(lambda v: by_order(edge_harmonics(v, 4))[l], (v,))
    _, (expected,) = value_and_gradients(lambda v: by_order(harmonics_twin(v, 4))[l], (v,))
    assert relative_error(gradient, expected) < 1e-12


@pytest.mark.parametrize(
    ("number", "scaled", "shifted", "kind", "dtype"),
    [  # every form of every kind, the precisions in turn or, in `make test-all`, in each of them
        pytest.param(*form, kind, dtype, marks=() if (n + k) % 3 == i else pytest.mark.exhaustive)
        for n, form in enumerate(
            [
                (1, False, False),
                (3, False, False),
                (3, True, False),
                (5, False, True),
                (5, True, True),
            ]
        )
        for k, kind in enumerate(KINDS)
        for i, dtype in enumerate(TOLERANCE)
    ],
    ids=str,
)
def test_kernels_of_radial_functions(number, scaled, shifted, kind, dtype, triton_device, poisoned):
    scale, shift = warp(number, dtype, triton_device)
    # More than one program.
    inputs = (
        some_lengths(1100 // number, dtype, triton_device),
        scale if scaled else None,
        shift if shifted else None,
    )
    double = [x if x is None else x.double() for x in inputs]

    value, gradients = value_and_gradients(
        lambda x, a, b: edge_radial(x, family(kind, number), a, b), inputs
    )
    expected, expected_gradients = value_and_gradients(
        lambda x, a, b: radial_twin(x, family(kind, number), a, b), double
    )
    for k in range(number):
        assert relative_error(value[:, k], expected[:, k]) < TOLERANCE[dtype]
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        assert relative_error(gradient, reference) < TOLERANCE[dtype]


@pytest.mark.parametrize("number", [8, pytest.param(30, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("kind", ["cosine", "bessel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_kernels_agree_where_functions_end(dtype, kind, number, triton_device):
    # Voxels of a grid lie at the very lengths where these have a kink: on either side of it the
    # slope is another. On a GPU torch divides by a number as it multiplies by its rounded inverse,
    # so the twin that the kernels are held to is that of the CPU.
    for end in torch.linspace(2, 8, number).tolist():
        lengths = torch.linspace(-end / 3, end, 5, dtype=dtype)
        arguments = family(kind, 3, end)
        _, (slope,) = value_and_gradients(
            lambda x, a=arguments: edge_radial(x, a), (lengths.to(triton_device),)
        )
        _, (expected,) = value_and_gradients(
            lambda x, a=arguments: radial_twin(x, a, None, None), (lengths,)
        )
        assert relative_error(slope.cpu(), expected) < TOLERANCE[dtype]


def test_kernels_take_no_edges(triton_device):
    v = torch.zeros(0, 3, device=triton_device, requires_grad=True)
    lengths = torch.zeros(0, device=triton_device, requires_grad=True)
    scale, _ = warp(3, torch.float32, triton_device)
    y = edge_harmonics(v, 2)
    phi = edge_radial(lengths, family("cosine", 3), scale.requires_grad_())
    (y.sum() + phi.sum()).backward()
    assert y.shape == (0, 9)
    assert phi.shape == (0, 3)
    assert torch.equal(scale.grad, torch.zeros_like(scale))


def test_kernels_are_operators(triton_device):
    v = some_offsets(3, torch.float32, triton_device)
    lengths, ab = (
        some_lengths(3, torch.float32, triton_device),
        warp(2, torch.float32, triton_device),
    )
    y, phi = torch.randn(3, 9, device=triton_device), torch.randn(3, 2, device=triton_device)
    torch.library.opcheck(torch.ops.tripq.edge_harmonics.default, (v.requires_grad_(), 2))
    torch.library.opcheck(torch.ops.tripq.edge_harmonics_backward.default, (y, v.detach(), 2))
    inputs = (lengths, *family("gaussian", 2), *ab)
    torch.library.opcheck(torch.ops.tripq.edge_radial.default, inputs)
    torch.library.opcheck(torch.ops.tripq.edge_radial_backward.default, (phi, *inputs))


# -- other devices ---------------------------------------------------------------------------------


def assert_light(resources):
    """Nothing is spilled, and several programs fit a multiprocessor of any of the devices.

    A100 and H100 have 65536 registers for 2048 threads, MI300 has 512 for each of 64 lanes.
    """
    assert resources.spilled == 0
    assert resources.registers <= 128
    assert resources.shared <= 2048


@pytest.mark.parametrize(
    ("lmax", "element", "target"),
    for_targets([(4, "fp32"), (4, "fp64"), (4, "bf16"), (6, "fp32")], [(4, "fp32")]),
)
def test_kernels_of_harmonics_compile_without_spilling(lmax, element, target):
    from tripq.kernels import embeddings_triton

    constants = {"C": embeddings_triton.Harmonics.up_to(lmax), "BLOCK": 128}
    types = {name: f"*{element}" for name in ("offsets", "out", "grad")} | {"n_edges": "i64"}
    for name in ("harmonics_kernel", "harmonics_backward_kernel"):
        kernel = getattr(embeddings_triton, name)
        resources = compile_kernel(kernel, types, constants, target)
        print(name, lmax, element, target, resources)
        assert_light(resources)


@pytest.mark.parametrize(
    ("kind", "element", "learned", "target"),
    for_targets(
        [
            *((kind, "fp32", True) for kind in KINDS),
            *(("bessel", element, True) for element in ("fp64", "bf16")),
            ("cosine", "fp32", False),
        ],
        [("bessel", "fp32", True)],
    ),
)
def test_kernels_of_radial_functions_compile_without_spilling(kind, element, learned, target):
    from tripq.kernels import embeddings_triton

    constants = {"C": embeddings_triton.Radial.of(kind, 3), "BLOCK": 256}
    x, total = f"*{element}", "*fp64" if element == "fp64" else "*fp32"
    scale_and_shift = (x, x) if learned else ("constexpr", "constexpr")
    arguments = embeddings_triton.Arguments(x, *scale_and_shift, total)
    types = {"arguments": arguments, "n_edges": "i64", "grad": x}
    for name, out in (
        ("radial_kernel", x),
        ("radial_backward_kernel", embeddings_triton.Gradients(x, total, total)),
    ):
        kernel = getattr(embeddings_triton, name)
        resources = compile_kernel(kernel, types | {"out": out}, constants, target)
        print(name, kind, element, learned, target, resources)
        assert_light(resources)
