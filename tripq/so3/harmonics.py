"""Spherical harmonics of offsets, with a convention for the direction of a zero offset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor

from tripq.infra.e3nn import o3

#: Offsets shorter than this (mm in p-space; in q-space |q| is of order 1) have no direction.  Far
#: below any voxel size or spacing of directions, far above the rounding of coordinates in float64
#: and of q-vectors in float32.
ZERO_LENGTH = 1e-6


def directions(v: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors along `v`, and a mask of zero vectors.

    Returns
    -------
    unit : Tensor of shape (..., 3)
        ``v / |v|``; an arbitrary fixed direction, without gradient, where `v` is zero.
    zero : Tensor of shape (...), bool
        Where ``|v| < ZERO_LENGTH``.
    """
    zero = v.detach().norm(dim=-1) < ZERO_LENGTH
    # The zero vectors are replaced before the norm is taken: a mask on the result would still let
    # the infinite slope of the norm at zero through, as NaN.
    # Made on its device: a copy to it would be waited for.
    pole = torch.eye(3, dtype=v.dtype, device=v.device)[1]
    safe = torch.where(zero[..., None], pole, v)
    return safe / safe.norm(dim=-1, keepdim=True), zero


def unit_vectors(v: Tensor) -> Tensor:
    """Unit vectors along `v`, and 0 (with zero gradient) where `v` is zero; shape (..., 3)."""
    unit, zero = directions(v)
    return torch.where(zero[..., None], torch.zeros_like(unit), unit)


def spherical_harmonics(orders: Iterable[int], v: Tensor) -> dict[int, Tensor]:
    """Real spherical harmonics of the directions of `v`, in e3nn's basis.

    Parameters
    ----------
    orders : iterable of int
        The orders l.
    v : Tensor of shape (..., 3)
        Offsets of any length, in world axes.

    Returns
    -------
    dict from l to Tensor of shape (..., 2 l + 1)
        In "component" normalisation: the squares of the components sum to 2 l + 1.  A zero vector
        has no direction: there order 0 is 1, as everywhere, and every higher order is 0 with
        gradient 0, the only equivariant choice.

    Examples
    --------
    >>> y = spherical_harmonics((0, 1), torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 0.0]]))
    >>> y[0].tolist(), [[round(c, 3) for c in row] for row in y[1].tolist()]
    ([[1.0], [1.0]], [[0.0, 0.0, 1.732], [0.0, 0.0, 0.0]])
    """
    wanted = sorted(set(orders))
    if not wanted:
        return {}
    unit, zero = directions(v)
    together = o3.spherical_harmonics(wanted, unit, normalize=False, normalization="component")
    harmonics = dict(zip(wanted, together.split([2 * l + 1 for l in wanted], dim=-1), strict=True))
    return {
        l: y if l == 0 else torch.where(zero[..., None], torch.zeros_like(y), y)
        for l, y in harmonics.items()
    }


def mean_over_signs(
    harmonics: Callable[[Tensor], Sequence[Tensor]],
    q_out: Tensor,
    q_in: Tensor,
    signs: Sequence[tuple[float, float]],
) -> list[Tensor]:
    """Mean of harmonics of the q-offsets over the signs of both q-vectors.

    Parameters
    ----------
    harmonics : callable
        Gives tensors of q-offsets (..., 3).
    q_out, q_in : Tensor
        Broadcast against each other, (..., 3).
    signs : sequence of (float, float)
        Of q_out and of q_in: the offsets are ``sign_out * q_out - sign_in * q_in``.

    Returns
    -------
    list of Tensor
        The mean of each of the tensors.
    """
    terms = [harmonics(sign_out * q_out - sign_in * q_in) for sign_out, sign_in in signs]
    if len(terms) == 1:
        return list(terms[0])
    return [reduce(add, of_one) / len(terms) for of_one in zip(*terms, strict=True)]
