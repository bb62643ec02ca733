"""Parts of the kernels of `tripq.kernels.nodes_triton`, with one edge in each lane.

An edge has a unit vector u of its q-offset (or joint offset), harmonics y of both offsets, features
x of one channel and two couplings C; `_harmonics` and `_message` compute

    y_q = mean over the signs of Y_{l_q}(u),        m = C_outer(y_p, C_inner(y_q, x)),

where every number is a tensor of shape (BLOCK,) in registers and vectors are tuples of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tripq.kernels.tuples_triton import add_to, load_row
from tripq.so3.harmonics import ZERO_LENGTH

_NEAR = tl.constexpr(ZERO_LENGTH**2)


@triton.jit
def _lanes(first, end, BLOCK: tl.constexpr):
    """The edge in each lane, and whether it exists; lanes behind the last edge repeat it."""
    lanes = first + tl.arange(0, BLOCK)
    return tl.minimum(lanes, end - 1), lanes < end


@triton.jit
def _powers(v, one, L: tl.constexpr):
    values = (one,)
    for i in tl.static_range(L):
        values = values + (values[i] * v,)
    return values


@triton.jit
def _add_harmonics(
    values, p, q_out, q_in, zero, SIGN_OUT: tl.constexpr, SIGN_IN: tl.constexpr, C: tl.constexpr
):
    offset = ()
    for i in tl.static_range(3):
        component = SIGN_OUT * q_out[i] - SIGN_IN * q_in[i]
        if C.joint:
            component = p[i] - component
        offset = offset + (component + zero,)
    square = offset[0] * offset[0] + offset[1] * offset[1] + offset[2] * offset[2]
    # A zero vector becomes the unit vector 0, whose powers are 0 but for the 1 of order 0.
    near = square < _NEAR
    scale = tl.where(near, zero, 1.0 / tl.sqrt(tl.where(near, zero + 1.0, square)))
    x = _powers(offset[0] * scale, zero + 1.0, C.l_q)
    y = _powers(offset[1] * scale, zero + 1.0, C.l_q)
    z = _powers(offset[2] * scale, zero + 1.0, C.l_q)
    for j in tl.static_range(len(C.monomial_factors)):
        powers = x[C.monomials[4 * j + 1]] * y[C.monomials[4 * j + 2]] * z[C.monomials[4 * j + 3]]
        values = add_to(values, C.monomial_factors[j] * powers, C.monomials[4 * j])
    return values


@triton.jit
def _harmonics(geometry, t, q_out, q_in, zero, DTYPE: tl.constexpr, C: tl.constexpr):
    """The inner harmonic: the mean over the signs is in the factors."""
    p = load_row(geometry.p_offsets + 3 * t, 3, DTYPE)
    values = (zero,) * (2 * C.l_q + 1)
    for i in tl.static_range(len(C.signs) // 2):
        values = _add_harmonics(values, p, q_out, q_in, zero, C.signs[2 * i], C.signs[2 * i + 1], C)
    return values


@triton.jit
def _coupled(
    a,
    b,
    zero,
    TERMS: tl.constexpr,
    FACTORS: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    C: tl.constexpr,
    N: tl.constexpr,
):
    """Contract axes A and B of the coefficients with `a` and `b`; axis C, of length N, stays."""
    values = (zero,) * N
    for j in tl.static_range(len(FACTORS)):
        product = a[TERMS[3 * j + A]] * b[TERMS[3 * j + B]]
        values = add_to(values, FACTORS[j] * product, TERMS[3 * j + C])
    return values


@triton.jit
def _message(x, geometry, t, q_out, q_in, zero, DTYPE: tl.constexpr, C: tl.constexpr):
    """Both couplings, forwards, of features in rows x (2 l_in + 1 numbers)."""
    y_p = load_row(geometry.harmonics_p + t * (2 * C.l_p + 1), 2 * C.l_p + 1, DTYPE)
    y_q = _harmonics(geometry, t, q_out, q_in, zero, DTYPE, C)
    values = load_row(x, 2 * C.l_in + 1, DTYPE)
    to_1 = _coupled(y_q, values, zero, C.inner, C.inner_factors, 0, 1, 2, 2 * C.l_1 + 1)
    return _coupled(y_p, to_1, zero, C.outer, C.outer_factors, 0, 1, 2, 2 * C.l_out + 1)


@triton.jit
def _add_product(total, factor, values, FIRST: tl.constexpr, N: tl.constexpr):
    for i in tl.static_range(N):
        total = add_to(total, factor * values[i], FIRST + i)
    return total


@triton.jit
def _scalar_product(a, b, zero, N: tl.constexpr):
    total = zero
    for i in tl.static_range(N):
        total += a[i] * b[i]
    return total
