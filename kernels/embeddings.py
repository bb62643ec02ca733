r"""Embeddings of edges: spherical harmonics of their offsets, radial functions of their lengths.

Harmonics in "component" normalisation follow from those of the order before, with the unit vector
u of the offset and Clebsch-Gordan coefficients C,

.. math:: Y_l = \sqrt{(2 l + 1) / l}\; C(l; l - 1, 1)\, Y_{l-1} \otimes u,
    \qquad \nabla_u Y_l = l \sqrt{(2 l + 1) / l}\; C(l; l - 1, 1)\, Y_{l-1},

the second because a harmonic of order l is a homogeneous polynomial whose derivatives are harmonics
of order l - 1.  The kernels evaluate these sums, a few terms for each component; the twin is
`tripq.so3.harmonics.spherical_harmonics`.

Radial functions are e3nn's `soft_one_hot_linspace` with ``cutoff=True``, each of them shifted and
scaled if a scale and a shift are given: ``f_k(a_k x + b_k)``.

Gradients of the twins are those of autograd.
"""

from __future__ import annotations

from functools import cache
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tripq.infra.e3nn import math as e3nn_math
from tripq.kernels.launch import (
    accumulation_dtype,
    gradients_of_twin,
    higher_derivatives,
    only_needed,
    runs_in_triton,
)
from tripq.kernels.operators import operator
from tripq.so3.harmonics import spherical_harmonics
from tripq.so3.recoupling import clebsch_gordan

#: Bessel functions are sin(k x) / x; nearer to zero than this share of their range they are
#: evaluated at it, where they differ from their limit by the square of it.
BESSEL_NEAR_ZERO = 1e-7

# -- spherical harmonics ---------------------------------------------------------------------------


def edge_harmonics(offsets: Tensor, lmax: int) -> Tensor:
    """Real spherical harmonics of the directions of `offsets`, in e3nn's basis.

    Parameters
    ----------
    offsets : Tensor of shape (E, 3)
        Offsets of any length, in world axes.
    lmax : int
        The largest order.

    Returns
    -------
    Tensor of shape (E, (lmax + 1)^2)
        Orders 0 to `lmax` side by side, the squares of each summing to 2 l + 1.  An offset shorter
        than `tripq.so3.harmonics.ZERO_LENGTH` has no direction: there every order but 0 is 0, with
        gradient 0.

    Examples
    --------
    >>> y = edge_harmonics(torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 0.0]]), 1)
    >>> y.square().round().tolist()
    [[1.0, 0.0, 0.0, 3.0], [1.0, 0.0, 0.0, 0.0]]
    """
    if lmax == 0:
        return torch.ones_like(offsets[:, :1])
    result: Tensor = _edge_harmonics(offsets, lmax)
    return result


def harmonics_twin(offsets: Tensor, lmax: int) -> Tensor:
    """The torch twin of `edge_harmonics`."""
    exact = offsets.to(accumulation_dtype(offsets.dtype))
    harmonics = spherical_harmonics(range(lmax + 1), exact)
    return torch.cat([harmonics[l] for l in range(lmax + 1)], dim=-1).to(offsets.dtype)


class Recursion(NamedTuple):
    """Recursion for the harmonics of all orders up to a maximum, from each order to the next.

    Attributes
    ----------
    terms : tuple of int
        For each term three numbers: component of order l, of order l - 1, and of the unit vector.
    coefficients : tuple of float
        One for each term.
    begins : tuple of int
        Start of the terms of order 1, 2, ..., and their end.
    """

    terms: tuple[int, ...]
    coefficients: tuple[float, ...]
    begins: tuple[int, ...]


@cache
def harmonic_recursion(lmax: int) -> Recursion:
    """The recursion up to order `lmax`, without terms that vanish by symmetry.

    Examples
    --------
    >>> recursion = harmonic_recursion(4)
    >>> recursion.begins
    (0, 3, 14, 35, 66)
    """
    terms: list[int] = []
    coefficients: list[float] = []
    begins = [0]
    for l in range(1, lmax + 1):
        coupling = sqrt((2 * l + 1) / l) * clebsch_gordan(l - 1, 1, l).transpose(2, 0, 1)
        nonzero = np.argwhere(np.abs(coupling) > 1e-9)
        terms.extend(nonzero.ravel().tolist())
        coefficients.extend(coupling[tuple(nonzero.T)].tolist())
        begins.append(len(coefficients))
    return Recursion(tuple(terms), tuple(coefficients), tuple(begins))


def _keep_offsets(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    offsets, ctx.lmax = inputs
    ctx.save_for_backward(offsets)


def _differentiate_harmonics(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
    (offsets,) = ctx.saved_tensors
    lmax = ctx.lmax
    if runs_in_triton(offsets) and not higher_derivatives():
        return _edge_harmonics_backward(grad, offsets, lmax), None
    (found,) = gradients_of_twin(lambda: harmonics_twin(offsets, lmax), [offsets], [True], grad)
    return found, None


_edge_harmonics = operator(
    "edge_harmonics",
    "(Tensor offsets, SymInt lmax) -> Tensor",
    lambda offsets, lmax: offsets.new_empty(offsets.shape[0], (lmax + 1) ** 2),
    twin=harmonics_twin,
    kernel="embeddings_triton.edge_harmonics",
    keep=_keep_offsets,
    differentiate=_differentiate_harmonics,
)
_edge_harmonics_backward = operator(
    "edge_harmonics_backward",
    "(Tensor grad, Tensor offsets, SymInt lmax) -> Tensor",
    lambda grad, offsets, lmax: offsets.new_empty(offsets.shape),
    kernel="embeddings_triton.edge_harmonics_backward",
)

# -- radial functions ------------------------------------------------------------------------------


class Family(NamedTuple):
    """Radial functions without their learned scales and shifts.

    Attributes
    ----------
    kind : {"gaussian", "cosine", "bessel", "smooth_finite"}
        The family.
    number : int
        Number of functions.
    start, stop : float
        The functions are centred at equal steps between these two, excluding both.  Bessel
        functions are those of the range from `start` to `stop`.
    """

    kind: str
    number: int
    start: float
    stop: float


def edge_radial(
    lengths: Tensor, family: Family, scale: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    """Radial functions of the lengths of edges.

    Parameters
    ----------
    lengths : Tensor of shape (E,)
        In mm for p-offsets; |q| is in units of sqrt(b / b_ref).
    family : Family
        The functions.
    scale, shift : Tensors of shape (number,), optional
        Scale and shift of the lengths for each function.

    Returns
    -------
    Tensor of shape (E, number)

    Examples
    --------
    >>> phi = edge_radial(torch.tensor([0.0, 2.0, 4.0]), Family("cosine", 2, -2.0, 4.0))
    >>> phi.round(decimals=4).abs().tolist()
    [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    """
    learned = [x for x in (scale, shift) if x is not None]
    dtype = lengths.dtype
    for x in learned:
        dtype = torch.promote_types(dtype, x.dtype)
    scale, shift = (None if x is None else x.to(dtype) for x in (scale, shift))
    result: Tensor = _edge_radial(lengths.to(dtype), *family, scale, shift)
    return result


def radial_twin(
    lengths: Tensor, family: Family, scale: Tensor | None, shift: Tensor | None
) -> Tensor:
    """The torch twin of `edge_radial`."""
    kind, number, start, stop = family
    dtype = accumulation_dtype(lengths.dtype)
    x = lengths.to(dtype)
    learned = scale is not None or shift is not None
    if learned:
        x = x[:, None].expand(-1, number)
    if scale is not None:
        x = x * scale.to(dtype)
    if shift is not None:
        x = x + shift.to(dtype)
    if kind == "bessel":
        x = x.clamp(min=BESSEL_NEAR_ZERO * stop)
    values = e3nn_math.soft_one_hot_linspace(x, start, stop, number, basis=kind, cutoff=True)
    if learned:
        values = values.diagonal(dim1=-2, dim2=-1)
    return values.to(lengths.dtype).contiguous()


def radial_height(kind: str) -> float:
    """Value at its centre of a radial function that has a centre, as e3nn normalises it."""
    return _height(kind, torch.get_default_dtype())


@cache
def _height(kind: str, default: torch.dtype) -> float:
    # e3nn rounds one of its factors to torch's default type, `default` in the key of the cache.
    centre = torch.zeros((), dtype=torch.float64)
    return float(e3nn_math.soft_one_hot_linspace(centre, -1.0, 1.0, 1, basis=kind, cutoff=True))


def _keep_lengths(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    lengths, *family, scale, shift = inputs
    ctx.family = Family(*family)
    ctx.save_for_backward(lengths, scale, shift)


def _differentiate_radial(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    lengths, scale, shift = ctx.saved_tensors
    family = ctx.family
    needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[-2:])
    if runs_in_triton(lengths) and not higher_derivatives():
        every = _edge_radial_backward(grad, lengths, *family, scale, shift)
        gradients = only_needed(every, needed)
    else:
        gradients = gradients_of_twin(
            lambda: radial_twin(lengths, family, scale, shift),
            (lengths, scale, shift),
            needed,
            grad,
        )
    return (gradients[0], None, None, None, None, *gradients[1:])


def _read(*args: Any) -> tuple[Any, ...]:
    """The arguments of an operator, with those of the family as one."""
    *tensors, kind, number, start, stop, scale, shift = args
    return *tensors, Family(kind, number, start, stop), scale, shift


_FAMILY = "str kind, SymInt number, float start, float stop, Tensor? scale, Tensor? shift"

_edge_radial = operator(
    "edge_radial",
    f"(Tensor lengths, {_FAMILY}) -> Tensor",
    lambda lengths, family, *_: lengths.new_empty(lengths.shape[0], family.number),
    twin=radial_twin,
    kernel="embeddings_triton.edge_radial",
    read=_read,
    keep=_keep_lengths,
    differentiate=_differentiate_radial,
)
# Gradients for lengths (E,), scale (number,) and shift (number,).
_edge_radial_backward = operator(
    "edge_radial_backward",
    f"(Tensor grad, Tensor lengths, {_FAMILY}) -> (Tensor, Tensor, Tensor)",
    lambda grad, lengths, family, *_: tuple(
        lengths.new_empty(shape) for shape in (lengths.shape, family.number, family.number)
    ),
    kernel="embeddings_triton.edge_radial_backward",
    read=_read,
)
