"""The gate in one operator against its steps one after the other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.ahead_of_time import AMD, NVIDIA, TARGETS, compile_kernel
from tripq.kernels.gates import Gates, gate, gate_twin
from tripq.kernels.launch import accumulation_dtype

FACTORS = 1.7, 1.8
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 1e-2}
# Scalars; numbers and components of further features.  None of one and of the other; a single
# feature; more than a power of two, and of several orders.
LAYOUTS = [
    Gates(3, (), (), True, *FACTORS),
    Gates(0, (2,), (3,), True, *FACTORS),
    Gates(1, (1,), (5,), False, *FACTORS),
    Gates(5, (3, 1, 2), (3, 5, 9), True, *FACTORS),
]
layouts = pytest.mark.parametrize("gates", LAYOUTS, ids=lambda gates: f"{gates[:4]}")
affines = pytest.mark.parametrize("affine", [False, True], ids=["as-it-is", "normalised"])


SIZES = (3, 4)


def operands(gates, rows=7, affine=True, dtype=torch.float64, device="cpu", seed=0):
    """Features, scale and shift of two scans, and the gradient of the result."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        x = torch.randn(size, generator=generator, dtype=torch.float64)
        return x.to(dtype).to(device)

    x, grad = normal(rows, gates.dim_in), normal(rows, gates.dim_out)
    return x, [normal(2, gates.dim_in) for _ in "ab"] if affine else [None, None], grad


def value_and_gradients(function, x, affine, grad):
    """The value, and the gradients for features, scale and shift."""
    inputs = [v.detach().requires_grad_() for v in (x, *affine) if v is not None]
    out = function(*inputs)
    return out.detach(), *torch.autograd.grad(out, inputs, grad)


def normalised(function, gates, sizes=SIZES):
    """A function of features, scale and shift of two scans, or of features alone."""
    return lambda x, *affine: function(x, gates, *affine, *([sizes] if affine else []))


def errors(gates, x, affine, grad, sizes=SIZES):
    """For value and gradients the largest error over columns, relative to each column."""
    found = value_and_gradients(normalised(gate, gates, sizes), x, affine, grad)
    exact = [None if v is None else v.double() for v in affine]
    twin = normalised(gate_twin, gates, sizes)
    references = value_and_gradients(twin, x.double(), exact, grad.double())
    assert all(value.dtype == x.dtype for value in found)
    for value, reference in zip(found, references, strict=True):
        columns = reference.abs().amax(dim=0)
        scale = columns.clamp(min=float(columns.max()) / 10)
        yield float(((value.double() - reference).abs() / scale).max())


# -- what is computed ------------------------------------------------------------------------------


@given(
    scalars=st.integers(0, 4),
    runs=st.lists(st.tuples(st.integers(1, 4), st.sampled_from((3, 5, 7))), max_size=3),
    norms=st.booleans(),
    affine=st.booleans(),
)
def test_value_and_gradients_are_those_of_the_steps(scalars, runs, norms, affine):
    muls, dims = zip(*runs, strict=True) if runs else ((), ())
    gates = Gates(scalars or int(not runs), muls, dims, norms, *FACTORS)
    assert max(errors(gates, *operands(gates, affine=affine))) < 1e-12


@layouts
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_many_rows_are_evaluated_a_few_at_a_time(gates, dtype, monkeypatch):
    from tripq.kernels import features

    size = gates.dim_in * accumulation_dtype(dtype).itemsize
    monkeypatch.setattr(features, "_CACHED", 3 * size // torch.get_num_threads())
    assert max(errors(gates, *operands(gates, dtype=dtype))) < TOLERANCE[dtype]


def test_features_of_length_zero_have_gradients():
    gates = Gates(0, (1,), (3,), True, 1.0, 2.0)
    x = torch.zeros(2, 4, requires_grad=True)
    gate(x, gates).sum().backward()
    assert torch.equal(x.grad, torch.tensor([0.0, 1, 1, 1]).expand(2, 4))


def test_rows_may_have_any_shape_and_strides():
    gates = LAYOUTS[-1]
    x, _, _ = operands(gates, rows=12)
    expected = gate(x, gates)
    assert torch.equal(gate(x.view(3, 4, -1), gates), expected.view(3, 4, -1))
    torch.testing.assert_close(gate(x.T.contiguous().T, gates), expected)
    assert gate(x[:0], gates).shape == (0, gates.dim_out)


@affines
def test_derivatives_of_all_kinds(affine):
    gates = LAYOUTS[1]
    x, affine, grad = operands(gates, rows=3, affine=affine)
    inputs = [v.requires_grad_() for v in (x, *affine) if v is not None]
    function = normalised(gate, gates, (1, 2))
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs)
    rows = torch.func.vmap(lambda row: gate(row[None], gates)[0])(x)
    torch.testing.assert_close(rows, gate(x, gates))
    by_transform = torch.func.grad(lambda x: (function(x, *inputs[1:]) * grad).sum())(x)
    torch.testing.assert_close(by_transform, torch.autograd.grad(function(*inputs), x, grad)[0])


def test_autocast_does_not_round_the_sums():
    gates = LAYOUTS[-1]
    inputs = operands(gates, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert max(errors(gates, *inputs)) < TOLERANCE[torch.float32]


# -- what torch expects of an operator -------------------------------------------------------------


@pytest.mark.parametrize(
    ("gates", "affine"),
    [  # the first alone and the last normalised or, in `make test-all`, all of them
        pytest.param(gates, affine, marks=() if n == 3 * affine else pytest.mark.exhaustive)
        for n, gates in enumerate(LAYOUTS)
        for affine in (False, True)
    ],
    ids=str,
)
def test_operators(gates, affine):
    x, affine, grad = operands(gates, affine=affine, dtype=torch.float32)
    torch.library.opcheck(
        torch.ops.tripq.gate_backward.default, (grad, x, *gates, *affine, list(SIZES))
    )
    inputs = [None if v is None else v.requires_grad_() for v in (x, *affine)]
    torch.library.opcheck(
        torch.ops.tripq.gate.default, (inputs[0], *gates, *inputs[1:], list(SIZES))
    )


def test_a_compiled_gate_is_the_same():
    gates = LAYOUTS[-1]
    x, affine, grad = operands(gates)
    function = normalised(gate, gates)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for found, expected in zip(
        value_and_gradients(compiled, x, affine, grad),
        value_and_gradients(function, x, affine, grad),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


# -- the kernels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gates", "affine", "dtype"),
    [  # every one of the three or, in `make test-all`, all of them together
        pytest.param(gates, affine, dtype, marks=() if chosen else pytest.mark.exhaustive)
        for n, gates in enumerate(LAYOUTS)
        for affine in (False, True)
        for i, dtype in enumerate(TOLERANCE)
        for chosen in [n % 3 == i and (affine or n == 3)]
    ],
    ids=str,
)
def test_kernels(gates, affine, dtype, triton_device, poisoned, monkeypatch):
    from tripq.kernels import gates_triton

    monkeypatch.setattr(gates_triton, "_TILE", 128)  # several programs
    inputs = operands(gates, affine=affine, dtype=dtype, device=triton_device)
    assert max(errors(gates, *inputs)) < TOLERANCE[dtype]


def test_kernels_take_any_strides(triton_device, poisoned):
    gates = LAYOUTS[-1]
    x, affine, grad = operands(gates, device=triton_device)
    assert max(errors(gates, x.T.contiguous().T, affine, grad.T.contiguous().T)) < 1e-12


@affines
def test_kernels_of_no_rows(affine, triton_device, poisoned):
    gates = LAYOUTS[-1]
    x, affine, grad = operands(gates, rows=0, affine=affine, device=triton_device)
    _, grad_x, *sums = value_and_gradients(normalised(gate, gates, (0, 0)), x, affine, grad)
    assert grad_x.shape == x.shape
    assert all(torch.equal(total, torch.zeros_like(total)) for total in sums)


def test_kernels_of_large_numbers_do_not_overflow(triton_device, poisoned):
    gates = Gates(1, (1,), (3,), True, 1.0, 2.0)
    x = torch.tensor([[-1e4, -1e4, 1.0, 1, 1], [1e4, 1e4, 1, 1, 1]], device=triton_device)
    out = gate(x.requires_grad_(), gates)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(
    ("affine", "element", "target"),
    [  # what takes most registers, in both makers' devices or, in `make test-all`, everything
        pytest.param(affine, element, target, marks=() if chosen else pytest.mark.exhaustive)
        for affine in (False, True)
        for element in ("fp32", "fp64", "bf16")
        for target in TARGETS
        for chosen in [affine and (element, target) in {("fp64", NVIDIA), ("fp32", AMD)}]
    ],
)
def test_kernels_compile_without_spilling(affine, element, target):
    from tripq.kernels import gates_triton

    layout = gates_triton.Layout.of(Gates(24, (6, 8), (3, 5), True, *FACTORS))
    dtype = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}[element]
    x, total = f"*{element}", "*fp64" if element == "fp64" else "*fp32"
    known = (x, x) if affine else ("constexpr", "constexpr")
    sums = (total, total) if affine else ("constexpr", "constexpr")
    types = {"x": x, "grad": x, "affine": gates_triton.Affine(*known), "n_rows": "i64"}
    constants = {"C": layout, "ROWS": layout.rows(dtype)}
    for name, out in (
        ("gate_kernel", x),
        ("gate_backward_kernel", gates_triton.Gradients(x, *sums)),
    ):
        kernel = getattr(gates_triton, name)
        resources = compile_kernel(kernel, types | {"out": out}, constants, target)
        print(name, affine, element, target, resources)
        assert resources.spilled == 0
