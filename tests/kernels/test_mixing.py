"""Channel mixing against a matrix product for each direction."""

from __future__ import annotations

import pytest
import torch
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.ahead_of_time import compile_kernel, for_targets
from tripq.kernels import mixing_triton
from tripq.kernels.mixing import mix, mix_grad_a_twin, mix_grad_w_twin, mix_twin

sizes = st.integers(0, 4)

# Directions, channels in and out, components, voxels: all of them 1; less than a tile; more than a
# tile and no multiple of one, in channels in, in channels out, and in voxels; tiles filled exactly.
SHAPES = [
    (1, 1, 1, 1, 1),
    (3, 5, 3, 5, 7),
    (2, 70, 5, 3, 9),
    (1, 3, 67, 3, 20),
    (2, 17, 20, 1, 150),
    (1, 16, 64, 1, 64),
]
# The interpreter multiplies the bits of bfloat16, not the numbers, so float16 stands for both.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3}

shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def operands(shape, dtype=torch.float64, device="cpu", seed=0):
    """Features, matrices, and the gradient of the result."""
    n_q, n_c, n_r, n_m, n_voxels = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        x = torch.randn(size, generator=generator, dtype=torch.float64)
        return x.to(dtype).to(device)

    a, w = normal(n_q, n_c, n_m, n_voxels), normal(n_q, n_c, n_r)
    return a, w, normal(n_voxels, n_r, n_m, n_q)


def relative_errors(values, references):
    """The error of each direction of each tensor, directions first, relative to its own size."""
    for value, reference in zip(values, references, strict=True):
        for x, y in zip(value.double(), reference.double(), strict=True):
            yield float((x - y).abs().max() / y.abs().max())


def value_and_gradients(function, a, w, grad):
    """Value and gradients, all with the directions first."""
    a, w = a.detach().requires_grad_(), w.detach().requires_grad_()
    out = function(a, w)
    return out.detach().movedim(-1, 0), *torch.autograd.grad(out, (a, w), grad)


def expected(a, w, grad):
    """The twins in float64."""
    a, w, grad = a.double(), w.double(), grad.double()
    return mix_twin(a, w).movedim(-1, 0), mix_grad_a_twin(grad, w), mix_grad_w_twin(grad, a)


def scattered(x):
    """The same numbers in a larger buffer of NaN, with its dimensions the other way round."""
    buffer = x.new_full([2 * n + 1 for n in reversed(x.shape)], torch.nan)
    view = buffer.permute(*range(x.ndim - 1, -1, -1))[tuple(slice(0, 2 * n, 2) for n in x.shape)]
    return view.copy_(x)


# -- what is computed ------------------------------------------------------------------------------


@given(n_q=sizes, n_c=sizes, n_r=sizes, n_m=st.sampled_from((1, 3)), n_voxels=sizes)
def test_each_direction_has_its_matrix(n_q, n_c, n_r, n_m, n_voxels):
    a, w, _ = operands((n_q, n_c, n_r, n_m, n_voxels))
    out = mix(a, w)
    assert out.shape == (n_voxels, n_r, n_m, n_q)
    assert out.is_contiguous()
    for q in range(n_q):
        for v in range(n_voxels):
            assert torch.allclose(out[v, :, :, q], w[q].T @ a[q, :, :, v])


def test_gradients():
    a, w, _ = operands((2, 3, 4, 3, 2))
    assert torch.autograd.gradcheck(mix, (a.requires_grad_(), w.requires_grad_()))


def test_only_the_gradient_that_is_wanted():
    a, w, _ = operands((2, 3, 4, 3, 2))
    mix(a, w.requires_grad_()).sum().backward()
    assert torch.allclose(w.grad, a.sum(dim=(2, 3))[:, :, None].expand_as(w))


def test_the_larger_type_is_taken():
    a, w, _ = operands((2, 3, 4, 3, 2))
    assert mix(a.float(), w).dtype == torch.float64


# -- what torch expects of an operator -------------------------------------------------------------


@shapes
def test_operators(shape):
    a, w, grad = operands(shape, torch.float32)
    torch.library.opcheck(torch.ops.tripq.mix_grad_a.default, (grad, w))
    torch.library.opcheck(torch.ops.tripq.mix_grad_w.default, (grad, a))
    torch.library.opcheck(torch.ops.tripq.mix.default, (a.requires_grad_(), w.requires_grad_()))


def test_compiled_mixing_is_the_same():
    inputs = operands((2, 3, 4, 3, 5))
    compiled = torch.compile(mix, fullgraph=True, backend="aot_eager")
    for x, y in zip(
        value_and_gradients(compiled, *inputs), value_and_gradients(mix, *inputs), strict=True
    ):
        assert torch.allclose(x, y)


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_mixes_in_the_lower_precision(compiled):
    a, w, grad = operands((2, 30, 4, 3, 5), torch.float32)
    function = torch.compile(mix, fullgraph=True, backend="aot_eager") if compiled else mix
    references = mix(a, w), mix_grad_w_twin(grad, a)
    with torch.autocast("cpu", torch.bfloat16):
        out = function(a, w.requires_grad_())
    assert out.dtype == torch.bfloat16
    out.backward(grad.bfloat16())
    assert w.grad.dtype == torch.float32
    assert max(relative_errors((out.detach(), w.grad), references)) < 2e-2


def test_autocast_leaves_double_precision():
    a, w, _ = operands((2, 3, 4, 3, 5))
    with torch.autocast("cpu", torch.bfloat16):
        out = mix(a, w)
    assert torch.equal(out, mix(a, w))


# -- the kernels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [  # every shape and every precision or, in `make test-all`, all of them together
        pytest.param(shape, dtype, marks=() if n % 3 == i else pytest.mark.exhaustive)
        for n, shape in enumerate(SHAPES)
        for i, dtype in enumerate(TOLERANCE)
    ],
    ids=str,
)
def test_kernels(shape, dtype, triton_device, poisoned):
    inputs = operands(shape, dtype, triton_device)
    results = value_and_gradients(mix, *inputs)
    assert all(result.dtype == dtype for result in results)
    assert max(relative_errors(results, expected(*inputs))) < TOLERANCE[dtype]


def test_kernels_take_any_strides(triton_device, poisoned):
    inputs = operands((3, 5, 6, 3, 7), torch.float64, triton_device)
    results = value_and_gradients(mix, *map(scattered, inputs))
    assert max(relative_errors(results, expected(*inputs))) < 1e-12


def test_kernels_split_long_sums(triton_device, poisoned, monkeypatch):
    # 15 tiles of 32 voxels for each of 2 directions, in splits of 15, of 4 and of 1.
    a, _, grad = inputs = operands((2, 3, 4, 3, 130), torch.float64, triton_device)
    for programs in (1, 8, 100):
        monkeypatch.setattr(mixing_triton, "_PROGRAMS", programs)
        grad_w = mixing_triton.mix_grad_w(grad, a)
        assert max(relative_errors([grad_w], expected(*inputs)[2:])) < 1e-12


@pytest.mark.parametrize("empty", range(5))
def test_kernels_of_empty_tensors(empty, triton_device, poisoned):
    shape = [2, 3, 4, 3, 5]
    shape[empty] = 0
    inputs = operands(shape, torch.float64, triton_device)
    for result, zeros in zip(value_and_gradients(mix, *inputs), expected(*inputs), strict=True):
        assert torch.equal(result, zeros)


def test_kernels_are_operators(triton_device):
    a, w, grad = operands((2, 3, 4, 3, 5), torch.float32, triton_device)
    torch.library.opcheck(torch.ops.tripq.mix_grad_a.default, (grad, w))
    torch.library.opcheck(torch.ops.tripq.mix_grad_w.default, (grad, a))
    torch.library.opcheck(torch.ops.tripq.mix.default, (a.requires_grad_(), w.requires_grad_()))


# -- other devices ---------------------------------------------------------------------------------

SIZES = ("n_q", "n_k", "n_c", "n_r", "n_rows", "n_m", "n_voxels", "tiles_of_split")
TENSORS = {"x": "Features", "w": "Matrices", "out": "Features", "grad": "Features", "a": "Features"}


def types_of(kernel, element, ones):
    """The types of the arguments of `kernel`; strides that are 1 are constants, also returned.

    `ones` are names such as ``"x.voxel"``.
    """
    types, constants = dict.fromkeys(SIZES, "i32"), {}
    for name in set(TENSORS) & set(kernel.arg_names):
        group = getattr(mixing_triton, TENSORS[name])
        strides = [f"{name}.{axis}" for axis in group._fields[1:]]
        types[name] = group(f"*{element}", *("constexpr" if s in ones else "i64" for s in strides))
        place = kernel.arg_names.index(name)
        constants |= {(place, i): 1 for i, s in enumerate(strides, 1) if s in ones}
    return {name: kind for name, kind in types.items() if name in kernel.arg_names}, constants


compilations = pytest.mark.parametrize(
    ("element", "accumulator", "rows", "target"),
    for_targets(
        [
            ("fp32", tl.float32, 16),
            ("fp32", tl.float32, 64),
            ("fp64", tl.float64, 64),
            ("bf16", tl.float32, 64),
        ],
        [("fp32", tl.float32, 64)],
    ),
)


@compilations
@pytest.mark.parametrize("ones", [("x.voxel", "w.row"), ("out.voxel", "w.channel")])
def test_products_compile_without_spilling(ones, element, accumulator, rows, target):
    kernel = mixing_triton.product_kernel
    constants = {"ACC": accumulator, "PRECISION": "ieee", "ROWS": rows, "VOXELS": 64, "STEP": 16}
    types, strides = types_of(kernel, element, ones)
    resources = compile_kernel(kernel, types, constants | strides, target)
    print("product_kernel", ones, element, rows, target, resources)
    assert resources.spilled == 0


@compilations
def test_correlations_compile_without_spilling(element, accumulator, rows, target):
    kernel = mixing_triton.correlation_kernel
    constants = {"ACC": accumulator, "PRECISION": "ieee", "STEP": 32}
    constants |= {"ROWS": rows, "COLUMNS": rows}
    types, strides = types_of(kernel, element, ("a.voxel", "grad.direction"))
    types["out"] = "*fp64" if element == "fp64" else "*fp32"
    resources = compile_kernel(kernel, types, constants | strides, target)
    print("correlation_kernel", element, rows, target, resources)
    assert resources.spilled == 0


@pytest.mark.parametrize("name", ["product_kernel", "correlation_kernel"])
def test_kernels_compile_where_every_size_is_one(name):
    # Triton makes constants of the sizes and strides that are 1.
    kernel = getattr(mixing_triton, name)
    constants = {"ACC": tl.float32, "PRECISION": "ieee", "ROWS": 16}
    constants |= {"STEP": 32, "COLUMNS": 16} if "COLUMNS" in kernel.arg_names else {}
    constants |= {"STEP": 16, "VOXELS": 64} if "VOXELS" in kernel.arg_names else {}
    ones = {f"{tensor}.{axis}" for tensor in TENSORS for axis in mixing_triton.Features._fields}
    types, strides = types_of(kernel, "fp32", ones | {"w.row"})
    if name == "correlation_kernel":
        types["out"] = "*fp32"
        strides = {place: 1 for place in strides if place[0] != kernel.arg_names.index("out")}
    sizes = set(SIZES) & set(kernel.arg_names)
    types = {name: kind for name, kind in types.items() if name not in sizes}
    compile_kernel(kernel, types, constants | strides | dict.fromkeys(sizes, 1), "sm_90")
