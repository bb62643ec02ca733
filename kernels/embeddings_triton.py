"""Triton kernels of `tripq.kernels.embeddings`, which defines their results.

Kernels are compiled for one set of functions, the constants C (`Harmonics` or `Radial`).  Arguments
of radial functions, `Arguments`, and their gradients, `Gradients`, are tuples of pointers.
"""

from __future__ import annotations

from math import factorial, pi
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tripq.kernels.embeddings import BESSEL_NEAR_ZERO, Family, harmonic_recursion, radial_height
from tripq.kernels.launch import accumulation_dtype
from tripq.kernels.tuples_triton import add_to
from tripq.so3.harmonics import ZERO_LENGTH

# Edges of one program of the harmonics, one for each thread of its four warps.
_EDGES = 128
# Numbers of one tile of the radial functions, edges times functions.
_TILE = 1024

_PI = tl.constexpr(pi)
# The power series of sin(pi t) / t and cos(pi t) in t^2, from the highest power down: on |t| <= 1/2
# exact to rounding in float64.
_POWERS = tl.constexpr(12)
_SIN = tl.constexpr(
    tuple((-1) ** j * pi ** (2 * j + 1) / factorial(2 * j + 1) for j in range(11, -1, -1))
)
_COS = tl.constexpr(tuple((-1) ** j * pi ** (2 * j) / factorial(2 * j) for j in range(11, -1, -1)))

# -- spherical harmonics ---------------------------------------------------------------------------


class Harmonics(NamedTuple):
    """Constants of a kernel of harmonics; see `tripq.kernels.embeddings.Recursion`.

    Attributes
    ----------
    lmax : int
        The largest order.
    terms, coefficients, begins : tuple of numbers
        The recursion.
    zero : float
        Shorter offsets have no direction.
    """

    lmax: int
    terms: tuple[int, ...]
    coefficients: tuple[float, ...]
    begins: tuple[int, ...]
    zero: float = ZERO_LENGTH

    @classmethod
    def up_to(cls, lmax: int) -> Harmonics:
        """The constants for all orders up to the largest."""
        return cls(lmax, *harmonic_recursion(lmax))


@triton.jit
def _zeros(like, N: tl.constexpr):
    return (tl.zeros_like(like),) * N


@triton.jit
def _direction(offsets, edge, inside, ACC: tl.constexpr, ZERO: tl.constexpr):
    """Unit vectors (three tensors), reciprocal lengths, and a mask of nonzero offsets."""
    x = tl.load(offsets + 3 * edge, mask=inside, other=0.0).to(ACC)  # (BLOCK,)
    y = tl.load(offsets + 3 * edge + 1, mask=inside, other=0.0).to(ACC)
    z = tl.load(offsets + 3 * edge + 2, mask=inside, other=0.0).to(ACC)
    length = tl.sqrt(x * x + y * y + z * z)
    directed = length >= ZERO
    # Where there is no direction the factor is 0, and with it every order but 0.
    factor = tl.where(directed, 1 / tl.where(directed, length, 1), 0)
    return (x * factor, y * factor, z * factor), factor


@triton.jit
def _next_order(previous, unit, L: tl.constexpr, C: tl.constexpr):
    """Harmonics of order L from those of order L - 1."""
    BEGIN: tl.constexpr = C.begins[L - 1]
    END: tl.constexpr = C.begins[L]
    y = _zeros(unit[0], 2 * L + 1)
    for j in tl.static_range(BEGIN, END):
        term = C.coefficients[j] * previous[C.terms[3 * j + 1]] * unit[C.terms[3 * j + 2]]
        y = add_to(y, term, C.terms[3 * j])
    return y


@triton.jit
def _add_gradient(total, grad, previous, L: tl.constexpr, C: tl.constexpr):
    """Add the gradient for the unit vector of order L, from harmonics of order L - 1."""
    BEGIN: tl.constexpr = C.begins[L - 1]
    END: tl.constexpr = C.begins[L]
    for j in tl.static_range(BEGIN, END):
        term = (L * C.coefficients[j]) * previous[C.terms[3 * j + 1]] * grad[C.terms[3 * j]]
        total = add_to(total, term, C.terms[3 * j + 2])
    return total


@triton.jit
def _load_order(row, inside, L: tl.constexpr, ACC: tl.constexpr):
    """One order of a row of harmonics, 2 L + 1 tensors."""
    values = ()
    for m in tl.static_range(2 * L + 1):
        value = tl.load(row + (L * L + m), mask=inside, other=0.0).to(ACC)
        values = values + (value,)
    return values


@triton.jit
def _own_edges(n_edges, BLOCK: tl.constexpr):
    """The edges of a program, and which of these exist, (BLOCK,)."""
    edge = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return edge, edge < n_edges


@triton.jit
def harmonics_kernel(
    offsets,  # (E, 3)
    out,  # (E, (lmax + 1)^2)
    n_edges,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Harmonics of a block of edges, order by order."""
    ACC: tl.constexpr = tl.float64 if offsets.dtype.element_ty == tl.float64 else tl.float32
    edge, inside = _own_edges(n_edges, BLOCK)
    unit, factor = _direction(offsets, edge, inside, ACC, C.zero)
    row = out + edge * ((C.lmax + 1) * (C.lmax + 1))
    y = (tl.zeros_like(factor) + 1,)
    tl.store(row, y[0], mask=inside)
    for l in tl.static_range(1, C.lmax + 1):
        y = _next_order(y, unit, l, C)
        for m in tl.static_range(2 * l + 1):
            tl.store(row + (l * l + m), y[m], mask=inside)


@triton.jit
def harmonics_backward_kernel(
    grad,  # (E, (lmax + 1)^2)
    offsets,  # (E, 3)
    out,  # (E, 3)
    n_edges,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradient for a block of offsets: of the polynomials, then of the normalisation."""
    ACC: tl.constexpr = tl.float64 if offsets.dtype.element_ty == tl.float64 else tl.float32
    edge, inside = _own_edges(n_edges, BLOCK)
    unit, factor = _direction(offsets, edge, inside, ACC, C.zero)
    row = grad + edge * ((C.lmax + 1) * (C.lmax + 1))
    y = (tl.zeros_like(factor) + 1,)
    total = _zeros(factor, 3)
    for l in tl.static_range(1, C.lmax + 1):
        g = _load_order(row, inside, l, ACC)
        total = _add_gradient(total, g, y, l, C)
        y = _next_order(y, unit, l, C)
    # A change of length does not turn the unit vector.
    radial = total[0] * unit[0] + total[1] * unit[1] + total[2] * unit[2]
    for i in tl.static_range(3):
        tl.store(out + 3 * edge + i, factor * (total[i] - radial * unit[i]), mask=inside)


def edge_harmonics(offsets: Tensor, lmax: int) -> Tensor:
    """Launch the forward kernel; (E, 3) -> (E, (lmax + 1)^2)."""
    n_edges = offsets.shape[0]
    out = torch.empty((n_edges, (lmax + 1) ** 2), dtype=offsets.dtype, device=offsets.device)
    if n_edges:
        _launch_harmonics(harmonics_kernel, (offsets.contiguous(), out), n_edges, lmax)
    return out


def edge_harmonics_backward(grad: Tensor, offsets: Tensor, lmax: int) -> Tensor:
    """Launch the backward kernel; (E, (lmax + 1)^2), (E, 3) -> (E, 3)."""
    n_edges = offsets.shape[0]
    out = torch.empty((n_edges, 3), dtype=offsets.dtype, device=offsets.device)
    if n_edges:
        tensors = (grad.contiguous(), offsets.contiguous(), out)
        _launch_harmonics(harmonics_backward_kernel, tensors, n_edges, lmax)
    return out


def _launch_harmonics(
    kernel: triton.JITFunction, tensors: tuple[Tensor, ...], n_edges: int, lmax: int
) -> None:
    with torch.cuda.device_of(tensors[0]):
        kernel[(triton.cdiv(n_edges, _EDGES),)](
            *tensors,
            n_edges,
            C=Harmonics.up_to(lmax),
            BLOCK=_EDGES,
            num_warps=_EDGES // 32,
            enable_fp_fusion=True,
        )


# -- radial functions ------------------------------------------------------------------------------


class Arguments(NamedTuple):
    """Arguments of radial functions.

    Attributes
    ----------
    lengths : Tensor of shape (E,)
        Of the edges.
    scale, shift : Tensors of shape (number,), or None
        Of the lengths, for each function.
    grid : Tensor of shape (number + 2,)
        Start, centres and stop, in the type of the sums.
    """

    lengths: Tensor
    scale: Tensor | None
    shift: Tensor | None
    grid: Tensor


class Gradients(NamedTuple):
    """Gradients of radial functions.

    Attributes
    ----------
    lengths : Tensor of shape (E,)
        For the lengths.
    scale, shift : Tensors of shape (programs, number)
        For scale and shift: sums over the edges of each program.
    """

    lengths: Tensor
    scale: Tensor
    shift: Tensor


class Radial(NamedTuple):
    """Constants of a kernel of radial functions.

    Attributes
    ----------
    kind : str
        Of `tripq.kernels.embeddings.Family`.
    number, columns : int
        Of functions, and the same rounded up to a power of two.
    height : float
        See `tripq.kernels.embeddings.radial_height`.
    near_zero : float
        See `tripq.kernels.embeddings.BESSEL_NEAR_ZERO`.
    """

    kind: str
    number: int
    columns: int
    height: float
    near_zero: float = BESSEL_NEAR_ZERO

    @classmethod
    def of(cls, kind: str, number: int) -> Radial:
        """The constants for some functions of a kind."""
        height = 0.0 if kind == "bessel" else radial_height(kind)
        return cls(kind, number, triton.next_power_of_2(number), height)


@triton.jit
def _divide(x, y):
    """Correctly rounded, as torch's: lengths on a grid coincide with the ends of functions."""
    return x / y if x.dtype == tl.float64 else tl.div_rn(x, y)


@triton.jit
def _horner(x, COEFFICIENTS: tl.constexpr):
    total = tl.zeros_like(x)
    for j in tl.static_range(_POWERS):
        total = total * x + COEFFICIENTS[j]
    return total


@triton.jit
def _sin_cos(t):
    """The sine and cosine of pi t.

    The library's functions for any angle need a stack for very large ones.
    """
    half_turns = tl.floor(t + 0.5)
    r = t - half_turns  # in [-1/2, 1/2]
    sign = 1 - 2 * (half_turns - 2 * tl.floor(half_turns / 2))
    return sign * r * _horner(r * r, _SIN), sign * _horner(r * r, _COS)


@triton.jit
def _centred(x, grid, k, C: tl.constexpr):
    """Values and slopes of the functions that are copies of one bump."""
    first = tl.load(grid)
    step = tl.load(grid + 1) - first
    d = _divide(x - tl.load(grid + 1 + k)[None, :], step)  # (BLOCK, K)
    inside = (d < 1) & (d > -1)
    if C.kind == "gaussian":
        value = C.height * tl.exp(-d * d)
        slope = -2 * d * value
    elif C.kind == "cosine":
        sine, cosine = _sin_cos(d / 2)
        value = tl.where(inside, C.height * cosine, 0)
        slope = tl.where(inside, (-_PI / 2 * C.height) * sine, 0)
    else:
        tl.static_assert(C.kind == "smooth_finite")
        gap = tl.where(inside, 1 - d * d, 1)
        value = tl.where(inside, C.height * tl.exp(-2 * d * d / gap), 0)
        slope = -4 * d / (gap * gap) * value
    return value, slope / step


@triton.jit
def _bessel(x, grid, k, C: tl.constexpr):
    """Values and slopes of sqrt(2 / c) sin(pi t) / r, where r = x - start and t = k r / c."""
    start = tl.load(grid)
    stop = tl.load(grid + (C.number + 1))
    c = stop - start
    nearest = C.near_zero * stop
    r = tl.maximum(x, nearest) - start  # (BLOCK, K)
    inside = (r > 0) & (_divide(r, c) < 1)
    per_length = ((k + 1).to(x.dtype) / c)[None, :]
    t = tl.where(inside, per_length * r, 1)
    sine, cosine = _sin_cos(t)
    z = _PI * t
    sinc = sine / z
    # Near zero the two terms of the slope cancel; there its series is exact to rounding.
    square = z * z
    series = -z / 3 * (1 - square / 10 * (1 - square / 28 * (1 - square / 54)))
    slope = tl.where(z < 0.1, series, (cosine - sinc) / z)
    frequency = _PI * per_length
    amplitude = tl.sqrt(2 / c) * frequency
    value = tl.where(inside, amplitude * sinc, 0)
    return value, tl.where(inside & (x >= nearest), amplitude * frequency * slope, 0)


@triton.jit
def _evaluate(x, grid, k, C: tl.constexpr):
    """Values and slopes of the radial functions at the argument of each, x (BLOCK, K)."""
    if C.kind == "bessel":
        value, slope = _bessel(x, grid, k, C)
    else:
        value, slope = _centred(x, grid, k, C)
    return value, slope


@triton.jit
def _stretch(x, scale, shift, k):
    """The argument a_k x + b_k of each function, (BLOCK, K)."""
    warped = x[:, None] + tl.zeros_like(k)[None, :].to(x.dtype)
    if scale is not None:
        warped = x[:, None] * tl.load(scale + k).to(x.dtype)[None, :]
    if shift is not None:
        warped = warped + tl.load(shift + k).to(x.dtype)[None, :]
    return warped


@triton.jit
def _functions(arguments, edge, known, C: tl.constexpr):
    """Lengths (BLOCK,), columns (K,), which of both exist, and values and slopes (BLOCK, K)."""
    column = tl.arange(0, C.columns)
    inside = known[:, None] & (column < C.number)[None, :]
    k = tl.minimum(column, C.number - 1)
    x = tl.load(arguments.lengths + edge, mask=known, other=0.0).to(arguments.grid.dtype.element_ty)
    warped = _stretch(x, arguments.scale, arguments.shift, k)
    value, slope = _evaluate(warped, arguments.grid, k, C)
    return x, column, inside, value, slope


@triton.jit
def radial_kernel(
    arguments,  # Arguments
    out,  # (E, number)
    n_edges,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Radial functions of a block of edges."""
    edge, known = _own_edges(n_edges, BLOCK)
    _, column, inside, value, _ = _functions(arguments, edge, known, C)
    tl.store(out + edge[:, None] * C.number + column[None, :], value, mask=inside)


@triton.jit
def radial_backward_kernel(
    grad,  # (E, number)
    arguments,  # Arguments
    out,  # Gradients
    n_edges,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of a block of edges."""
    ACC: tl.constexpr = arguments.grid.dtype.element_ty
    edge, known = _own_edges(n_edges, BLOCK)
    x, column, inside, _, slope = _functions(arguments, edge, known, C)
    g = tl.load(grad + edge[:, None] * C.number + column[None, :], mask=inside, other=0.0).to(ACC)
    change = tl.where(inside, g * slope, 0)  # (BLOCK, K), for the argument of each function
    by_function = tl.program_id(0).to(tl.int64) * C.number + column
    tl.store(out.scale + by_function, tl.sum(change * x[:, None], 0), mask=column < C.number)
    tl.store(out.shift + by_function, tl.sum(change, 0), mask=column < C.number)
    if arguments.scale is not None:
        scale = tl.load(arguments.scale + column, mask=column < C.number, other=0.0)
        change = change * scale.to(ACC)[None, :]
    tl.store(out.lengths + edge, tl.sum(change, 1), mask=known)


def edge_radial(
    lengths: Tensor, family: Family, scale: Tensor | None, shift: Tensor | None
) -> Tensor:
    """Launch the forward kernel; (E,) -> (E, number)."""
    n_edges = lengths.shape[0]
    out = torch.empty((n_edges, family.number), dtype=lengths.dtype, device=lengths.device)
    if n_edges:
        arguments = _arguments(lengths, family, scale, shift)
        _launch_radial(radial_kernel, (arguments, out), n_edges, family)
    return out


def edge_radial_backward(
    grad: Tensor, lengths: Tensor, family: Family, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the backward kernel; gradients for lengths (E,), scale and shift (number,)."""
    n_edges, number = lengths.shape[0], family.number
    arguments = _arguments(lengths, family, scale, shift)
    shape = (2, triton.cdiv(n_edges, _block(number)), number)
    parts = torch.empty(shape, dtype=arguments.grid.dtype, device=lengths.device)
    gradients = Gradients(torch.empty_like(arguments.lengths), parts[0], parts[1])
    if n_edges:
        tensors = (grad.contiguous(), arguments, gradients)
        _launch_radial(radial_backward_kernel, tensors, n_edges, family)
    grad_scale, grad_shift = (part.sum(dim=0).to(lengths.dtype) for part in parts)
    return gradients.lengths, grad_scale, grad_shift


def _arguments(
    lengths: Tensor, family: Family, scale: Tensor | None, shift: Tensor | None
) -> Arguments:
    """Contiguous arguments; start, centres and stop are rounded as e3nn rounds them."""
    dtype, n_steps = accumulation_dtype(lengths.dtype), family.number + 2
    grid = torch.linspace(family.start, family.stop, n_steps, dtype=dtype, device=lengths.device)
    scale, shift = (None if x is None else x.contiguous() for x in (scale, shift))
    return Arguments(lengths.contiguous(), scale, shift, grid)


def _block(number: int) -> int:
    """Edges of one program."""
    return max(1, _TILE // triton.next_power_of_2(number))


def _launch_radial(
    kernel: triton.JITFunction,
    tensors: tuple[Tensor | Arguments | Gradients, ...],
    n_edges: int,
    family: Family,
) -> None:
    with torch.cuda.device_of(next(x for x in tensors if isinstance(x, Tensor))):
        kernel[(triton.cdiv(n_edges, _block(family.number)),)](
            *tensors,
            n_edges,
            C=Radial.of(family.kind, family.number),
            BLOCK=_block(family.number),
            enable_fp_fusion=True,
        )
