r"""The recoupled layer on a padded box: every stage a matrix product, neighbours found by a shift.

The voxels of a grid are laid out in a box with a margin of zeros, flattened to a row of length L.
On it a neighbour is a fixed distance away, and the sum over neighbours is a sum of shifted rows:

1. q-aggregation and q-coupling: ``A[l_1] = C (E x)``;
2. channel mixing: ``Z[l_1] = W[l_1] A[l_1]``;
3. p-aggregation: ``G = M Z`` for every edge type, and ``out[i + shift] += G[i]``.

Opposite offsets have harmonics that differ by :math:`(-1)^{l_p}` only.  So G is computed for one of
each pair, its part of even and its part of odd order apart: the sum of the two is for the offset
itself, their difference for its opposite.

All is done a few output directions at a time, and the backward pass computes stages 1 and 2 again:
what is kept is the input alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Numbers that the stages of a chunk may hold: 64 MB in float32.
_WORKING = 1 << 24

#: Where a block of a mixing matrix begins: (which matrix, first column or row).
Place = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Coupling:
    """How one harmonic is coupled to one group of input channels.

    Attributes
    ----------
    harmonic, group : int
        Which embedding and which input.
    matrix : Tensor of shape (sum of 2 l_1 + 1, (2 l_q + 1)(2 l_in + 1)), or None
        Clebsch-Gordan coefficients for all `targets`; None where they are the identity.
    targets : tuple of Place
        Where the columns of each l_1 go.
    """

    harmonic: int
    group: int
    matrix: Tensor | None
    targets: tuple[Place, ...]


@dataclass(frozen=True, eq=False)
class Layout:
    """Sizes of everything, and what meets what.

    Attributes
    ----------
    k_p, k_q : int
        Numbers of radial functions of the p-offset and of q_in.
    orders : tuple of int
        2 l_1 + 1 for each mixing matrix.
    inputs, outputs : tuple of (int, int)
        Channels and components, (mul, 2 l + 1), of each group.
    couplings : tuple of Coupling
        Stage 1.
    even, odd : tuple of tuple of Place
        For each output group the rows that stage 3 gathers, by the parity of l_p.
    """

    k_p: int
    k_q: int
    orders: tuple[int, ...]
    inputs: tuple[tuple[int, int], ...]
    outputs: tuple[tuple[int, int], ...]
    couplings: tuple[Coupling, ...]
    even: tuple[tuple[Place, ...], ...]
    odd: tuple[tuple[Place, ...], ...]


@dataclass(frozen=True, eq=False)
class Operands:
    """The tensors of a layer, for some of its Q_out output directions.

    Attributes
    ----------
    x : list of Tensors of shape (Q_in, (2 l + 1) mul L)
        Input groups: components, then channels, then the box.
    embeddings : list of Tensors of shape (Q_out, K_q (2 l + 1), Q_in)
        Of the q-offsets, one for each harmonic.
    mixing : list of Tensors of shape (Q_out, columns, rows)
        One for each l_1.
    even, odd : list of Tensors of shape (H (2 l_out + 1), R)
        Of one of each pair of p-offsets, one for each output group.
    """

    x: Sequence[Tensor]
    embeddings: Sequence[Tensor]
    mixing: Sequence[Tensor]
    even: Sequence[Tensor]
    odd: Sequence[Tensor]

    @classmethod
    def unpack(cls, flat: Sequence[Tensor], layout: Layout) -> Operands:
        """From one list in the order of the attributes."""
        sizes = (
            len(layout.inputs),
            len({c.harmonic for c in layout.couplings}),
            len(layout.orders),
            len(layout.outputs),
            len(layout.outputs),
        )
        parts, start = [], 0
        for size in sizes:
            parts.append(flat[start : start + size])
            start += size
        return cls(*parts)

    def pack(self) -> list[Tensor]:
        """All in one list."""
        return [*self.x, *self.embeddings, *self.mixing, *self.even, *self.odd]

    def directions(self, chunk: slice) -> Operands:
        """Those of some output directions."""
        return Operands(
            self.x,
            [e[chunk] for e in self.embeddings],
            [w[chunk] for w in self.mixing],
            self.even,
            self.odd,
        )


def convolve(operands: Operands, layout: Layout, shifts: tuple[int, ...]) -> list[Tensor]:
    """Evaluate the layer.

    Parameters
    ----------
    operands : Operands
        For all output directions.
    layout : Layout
        Their sizes.
    shifts : tuple of int
        Distances in the flat box, out - in, of one of each pair of opposite offsets: 0, if it is
        among them, and positive ones.

    Returns
    -------
    list of Tensors of shape (Q_out, mul, 2 l_out + 1, L)
        One for each output group; what stands in the margin means nothing.
    """
    result: tuple[Tensor, ...] = _Convolution.apply(layout, shifts, *operands.pack())  # type: ignore[no-untyped-call]
    return list(result)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, layout: Layout, shifts: tuple[int, ...], *flat: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.layout, ctx.shifts = layout, shifts
        ctx.save_for_backward(*flat)
        operands = Operands.unpack(flat, layout)
        n_q, length = operands.mixing[0].shape[0], _length(operands, layout)
        outs = [flat[0].new_zeros(n_q, mul, dim, length) for mul, dim in layout.outputs]
        for chunk in _chunks(operands, layout):
            _, gathered = _mix(operands.directions(chunk), layout)
            for g, (even, odd) in enumerate(gathered):
                for out, z_even, z_odd in zip(outs[g][chunk], even, odd, strict=True):
                    _shift_add(
                        _project(operands.even[g], z_even, out.shape[1]),
                        _project(operands.odd[g], z_odd, out.shape[1]),
                        shifts,
                        out,
                    )
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        layout: Layout = ctx.layout
        operands = Operands.unpack(ctx.saved_tensors, layout)
        total = Operands.unpack([t.new_zeros(t.shape) for t in ctx.saved_tensors], layout)
        needed = Operands.unpack(ctx.needs_input_grad[2:], layout)
        for chunk in _chunks(operands, layout):
            part, part_total = operands.directions(chunk), total.directions(chunk)
            coupled, gathered = _mix(part, layout)
            grad_gathered = []
            for g, (even, odd) in enumerate(gathered):
                d_even, d_odd = torch.empty_like(even), torch.empty_like(odd)
                for i, grad in enumerate(grads[g][chunk]):
                    g_even, g_odd = _shift_gather(grad, ctx.shifts)
                    torch.matmul(part.even[g].T, g_even, out=d_even[i])
                    torch.matmul(part.odd[g].T, g_odd, out=d_odd[i])
                    # Either may be empty, and then has no gradient.
                    if needed.even[g]:
                        total.even[g].add_(torch.einsum("cml,crl->mr", g_even, even[i]))
                    if needed.odd[g]:
                        total.odd[g].add_(torch.einsum("cml,crl->mr", g_odd, odd[i]))
                grad_gathered.append((d_even, d_odd))
            _mix_backward(grad_gathered, coupled, part, layout, part_total, any(needed.embeddings))
        flat = zip(ctx.needs_input_grad[2:], total.pack(), strict=True)
        return None, None, *(grad if need else None for need, grad in flat)


# -- stages 1 and 2 ------------------------------------------------------------------------------


def _mix(operands: Operands, layout: Layout) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
    """Coupled features (Q, columns, 2 l_1 + 1, L), and mixed ones as stage 3 wants them."""
    mixing = operands.mixing
    n_q, length = mixing[0].shape[0], _length(operands, layout)
    coupled = [
        w.new_empty(n_q, w.shape[1], n, length) for w, n in zip(mixing, layout.orders, strict=True)
    ]
    for coupling in layout.couplings:
        mul, _ = layout.inputs[coupling.group]
        embedding = operands.embeddings[coupling.harmonic].flatten(0, 1)
        product = (embedding @ operands.x[coupling.group]).view(n_q * layout.k_q, -1, mul * length)
        if coupling.matrix is not None:
            product = torch.matmul(coupling.matrix, product)
        for block, rows in _coupled_blocks(coupled, product, coupling, layout):
            block.copy_(rows)
    mixed = [
        torch.bmm(w.transpose(1, 2), a.flatten(2)).view(n_q, -1, n, length)
        for w, a, n in zip(mixing, coupled, layout.orders, strict=True)
    ]
    gathered = []
    for places_even, places_odd, (mul, _) in zip(
        layout.even, layout.odd, layout.outputs, strict=True
    ):
        both = []
        for places in (places_even, places_odd):
            width = sum(layout.k_p * layout.orders[i] for i, _ in places)
            rows = mixing[0].new_empty(n_q, mul, width, length)
            for target, source in _mixed_blocks(rows, mixed, places, layout):
                target.copy_(source)
            both.append(rows)
        gathered.append((both[0], both[1]))
    return coupled, gathered


def _mix_backward(
    grad_gathered: list[tuple[Tensor, Tensor]],
    coupled: list[Tensor],
    operands: Operands,
    layout: Layout,
    total: Operands,
    embeddings_needed: bool,
) -> None:
    """Add the gradients of stages 1 and 2 to `total`."""
    mixing = operands.mixing
    n_q, length = mixing[0].shape[0], _length(operands, layout)
    grad_mixed = [
        w.new_empty(n_q, w.shape[2], n, length) for w, n in zip(mixing, layout.orders, strict=True)
    ]
    for places_even, places_odd, grads in zip(layout.even, layout.odd, grad_gathered, strict=True):
        for places, rows in zip((places_even, places_odd), grads, strict=True):
            for source, target in _mixed_blocks(rows, grad_mixed, places, layout):
                target.copy_(source)
    grad_coupled = []
    for w, a, z, grad_w in zip(mixing, coupled, grad_mixed, total.mixing, strict=True):
        grad_w.copy_(torch.bmm(a.flatten(2), z.flatten(2).transpose(1, 2)))
        grad_coupled.append(torch.bmm(w, z.flatten(2)).view_as(a))
    for coupling in layout.couplings:
        mul, dim = layout.inputs[coupling.group]
        n_rows = sum(layout.orders[i] for i, _ in coupling.targets)
        product = mixing[0].new_empty(n_q * layout.k_q, n_rows, mul * length)
        for block, rows in _coupled_blocks(grad_coupled, product, coupling, layout):
            rows.copy_(block)
        if coupling.matrix is not None:
            product = torch.matmul(coupling.matrix.T, product)
        flat = product.view(-1, dim * mul * length)
        embedding = operands.embeddings[coupling.harmonic].flatten(0, 1)
        total.x[coupling.group].addmm_(embedding.T, flat)
        if embeddings_needed:
            gradient = flat @ operands.x[coupling.group].T
            target = total.embeddings[coupling.harmonic]
            target.add_(gradient.view_as(target))


def _coupled_blocks(
    coupled: list[Tensor], product: Tensor, coupling: Coupling, layout: Layout
) -> list[tuple[Tensor, Tensor]]:
    """Views of the same numbers, in the matrices of stage 2 and as stage 1 leaves them."""
    mul, _ = layout.inputs[coupling.group]
    k_q, pairs, row = layout.k_q, [], 0
    for i, start in coupling.targets:
        n, length = coupled[i].shape[2:]
        block = coupled[i][:, start : start + k_q * mul].view(-1, k_q, mul, n, length)
        rows = product[:, row : row + n].view(-1, k_q, n, mul, length).transpose(2, 3)
        pairs.append((block, rows))
        row += n
    return pairs


def _mixed_blocks(
    gathered: Tensor, mixed: list[Tensor], places: tuple[Place, ...], layout: Layout
) -> list[tuple[Tensor, Tensor]]:
    """Views of the same numbers, as stage 3 wants them and as stage 2 leaves them."""
    n_q, mul, _, length = gathered.shape
    k_p, pairs, row = layout.k_p, [], 0
    for i, start in places:
        n = layout.orders[i]
        target = gathered[:, :, row : row + k_p * n].view(n_q, mul, k_p, n, length)
        source = mixed[i][:, start : start + k_p * mul].view(n_q, k_p, mul, n, length)
        pairs.append((target, source.transpose(1, 2)))
        row += k_p * n
    return pairs


# -- stage 3 -------------------------------------------------------------------------------------


def _project(matrix: Tensor, z: Tensor, dim: int) -> Tensor:
    """(H dim, R) and (mul, R, L) to (mul, H, dim, L)."""
    return torch.matmul(matrix, z).view(z.shape[0], -1, dim, z.shape[2])


def _shift_add(even: Tensor, odd: Tensor, shifts: tuple[int, ...], out: Tensor) -> None:
    """Add (mul, H, dim, L) at every offset and at its opposite to `out` (mul, dim, L)."""
    length = out.shape[-1]
    for h, shift in enumerate(shifts):
        if shift == 0:
            out += even[:, h]
        elif shift < length:
            out[..., shift:] += (even[:, h] + odd[:, h])[..., : length - shift]
            out[..., : length - shift] += (even[:, h] - odd[:, h])[..., shift:]


def _shift_gather(grad: Tensor, shifts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The transpose: (mul, dim, L) to even and odd parts (mul, H dim, L)."""
    mul, dim, length = grad.shape
    even = grad.new_empty(mul, len(shifts), dim, length)
    odd = torch.empty_like(even)
    ahead, behind = torch.empty_like(grad), torch.empty_like(grad)
    for h, shift in enumerate(shifts):
        if shift == 0:
            even[:, h] = grad
            odd[:, h] = 0
            continue
        keep = max(length - shift, 0)
        ahead[..., :keep], ahead[..., keep:] = grad[..., length - keep :], 0
        behind[..., length - keep :], behind[..., : length - keep] = grad[..., :keep], 0
        torch.add(ahead, behind, out=even[:, h])
        torch.sub(ahead, behind, out=odd[:, h])
    return even.flatten(1, 2), odd.flatten(1, 2)


# -- sizes ---------------------------------------------------------------------------------------


def _length(operands: Operands, layout: Layout) -> int:
    mul, dim = layout.inputs[0]
    return operands.x[0].shape[1] // (mul * dim)


def _chunks(operands: Operands, layout: Layout) -> list[slice]:
    """Output directions, as many at a time as the working memory allows."""
    per_direction = sum(
        (w.shape[1] + 2 * w.shape[2]) * n
        for w, n in zip(operands.mixing, layout.orders, strict=True)
    )
    step = max(1, _WORKING // (per_direction * max(1, _length(operands, layout))))
    n_q = operands.mixing[0].shape[0]
    return [slice(start, start + step) for start in range(0, n_q, step)]
