r"""The tensor products of `tripq.kernels.tensor_product` in plain torch, which define the results.

For small features f_g (N, 2 l_g + 1, mul_g, I), big features b_j (N, R_j, 2 l_j + 1, I), radial
functions phi (T, K) and harmonics (T, S) of the edge types, the three derivatives of the sum over
edges and couplings in that module are

* `expand_twin`, by the big features: (f, phi) -> b;
* `contract_twin`, by the small features: (b, phi) -> f;
* `correlate_twin`, by the radial functions: (f, b) -> phi.

Each gathers the features of all edges, so memory grows with their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tripq.so3.recoupling import clebsch_gordan


@dataclass(frozen=True)
class Coupling:
    """A group of small features, a block of big ones, and the harmonic between them.

    Attributes
    ----------
    small, big : int
        Numbers of the tensors.
    first : int
        First row of the block.
    l : int
        Order of the harmonic.
    """

    small: int
    big: int
    first: int
    l: int


class Product(NamedTuple):
    """Arguments that the three sums share.

    Attributes
    ----------
    harmonics : Tensor of shape (T, S)
        Spherical harmonics of each edge type, order l in columns l^2 to (l + 1)^2 - 1.
    edges : sequence of nine Tensors
        The edges listed by the big end and by the small end (starts, other end, type), and by type
        (starts, small end, big end).
    couplings : sequence of Coupling
        Their blocks cover every row exactly once.
    to_small : bool
        Whether the coefficients couple to the order of the small features.
    """

    harmonics: Tensor
    edges: Sequence[Tensor]
    couplings: Sequence[Coupling]
    to_small: bool

    def angular(self, l: int, l_small: int, l_big: int) -> Tensor:
        """Matrices between the components of both ends, (T, 2 l_small + 1, 2 l_big + 1)."""
        c = self.harmonics.new_tensor(coefficients(l, l_small, l_big, self.to_small))
        return torch.einsum("tm,mgj->tgj", self.harmonics[:, l * l : (l + 1) ** 2], c)


def expand_twin(
    small: Sequence[Tensor], phi: Tensor, product: Product, orders: Sequence[int]
) -> list[Tensor]:
    """The derivative by the big features, in plain torch."""
    starts, s, t = product.edges[:3]
    d = _ends(starts)
    big = empty_big(small, phi, product, orders)
    blocks: list[list[Tensor]] = [[x[:, :0].to(phi.dtype)] for x in big]
    for c in sorted(product.couplings, key=lambda c: c.first):
        x = small[c.small][s].to(phi.dtype)
        angular = product.angular(c.l, (x.shape[1] - 1) // 2, orders[c.big])
        block = torch.einsum("ek,egj,egci->ekcji", phi[t], angular[t], x).flatten(1, 2)
        zeros = block.new_zeros(len(big[c.big]), *block.shape[1:])
        blocks[c.big].append(zeros.index_add(0, d, block))
    return [torch.cat(rows, dim=1).to(small[0].dtype) for rows in blocks]


def contract_twin(
    big: Sequence[Tensor], phi: Tensor, product: Product, groups: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """The derivative by the small features, in plain torch."""
    starts, d, t = product.edges[3:6]
    s = _ends(starts)
    small = empty_small(big, product, groups)
    total = [torch.zeros_like(x, dtype=phi.dtype) for x in small]
    for c in product.couplings:
        l_small, mul = groups[c.small]
        l_big = (big[c.big].shape[2] - 1) // 2
        angular = product.angular(c.l, l_small, l_big)
        block = big[c.big][:, c.first : c.first + phi.shape[1] * mul]
        x = block[d].to(phi.dtype).unflatten(1, (phi.shape[1], mul))
        block = torch.einsum("ekcji,ek,egj->egci", x, phi[t], angular[t])
        total[c.small] = total[c.small].index_add(0, s, block)
    return [x.to(big[0].dtype) for x in total]


def correlate_twin(
    small: Sequence[Tensor], big: Sequence[Tensor], product: Product, n_radial: int
) -> Tensor:
    """The derivative by the radial functions, in plain torch."""
    starts, s, d = product.edges[6:]
    t = _ends(starts)
    total = product.harmonics.new_zeros(len(product.harmonics), n_radial)
    for c in product.couplings:
        x = small[c.small][s].to(total.dtype)
        l_small, l_big = ((n - 1) // 2 for n in (x.shape[1], big[c.big].shape[2]))
        angular = product.angular(c.l, l_small, l_big)
        block = big[c.big][:, c.first : c.first + n_radial * x.shape[2]]
        y = block[d].to(total.dtype).unflatten(1, (n_radial, x.shape[2]))
        total = total.index_add(0, t, torch.einsum("egj,egci,ekcji->ek", angular[t], x, y))
    return total


def coefficients(l: int, l_small: int, l_big: int, to_small: bool) -> NDArray[np.float64]:
    """Clebsch-Gordan coefficients, shape (2 l + 1, 2 l_small + 1, 2 l_big + 1)."""
    if to_small:
        return clebsch_gordan(l, l_big, l_small).transpose(0, 2, 1)
    return clebsch_gordan(l, l_small, l_big)


def _ends(starts: Tensor) -> Tensor:
    """The node (or type) of each edge of a list, (E,)."""
    return torch.arange(len(starts) - 1, device=starts.device).repeat_interleave(starts.diff())


def empty_big(
    small: Sequence[Tensor], phi: Tensor, product: Product, orders: Sequence[int]
) -> list[Tensor]:
    """Big tensors to be written."""
    n, lanes = len(product.edges[0]) - 1, small[0].shape[3]
    groups = [(0, x.shape[2]) for x in small]
    rows = rows_of(product.couplings, groups, len(orders), phi.shape[1])
    return [small[0].new_empty(n, r, 2 * l + 1, lanes) for r, l in zip(rows, orders, strict=True)]


def empty_small(
    big: Sequence[Tensor], product: Product, groups: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Small tensors to be written."""
    n, lanes = len(product.edges[3]) - 1, big[0].shape[3]
    return [big[0].new_empty(small_shape(n, lanes, group)) for group in groups]


def rows_of(
    couplings: Sequence[Coupling], groups: Sequence[tuple[int, int]], n_big: int, n_radial: int
) -> list[int]:
    """Number of rows of each big tensor."""
    rows = [0] * n_big
    for c in couplings:
        rows[c.big] += n_radial * groups[c.small][1]
    return rows


def small_shape(n: int, lanes: int, group: tuple[int, int]) -> tuple[int, int, int, int]:
    """Shape of the small features of a group (order, channels)."""
    l, mul = group
    return n, 2 * l + 1, mul, lanes
