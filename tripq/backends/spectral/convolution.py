r"""The layer on boxes of a grid in Fourier space, where the sum over neighbours is a product.

For an input :math:`I`, with Fourier transform :math:`\hat I` along the three axes of the grid,

.. math::
    \hat L_f(q_{out}) = \sum_b \hat P_{b f} \sum_c T_{b c} \sum_{q_{in}}
    E_c(q_{out}, q_{in})\, \hat I_f(q_{in}),

with the p-embedding P (radial functions times harmonics), the q-embedding E and the coefficients T
that join the two and the channels.  At each frequency this is

1. q-aggregation: ``A = E I``, a matrix product;
2. a matrix ``J = P T`` for each shell of output directions;
3. their product ``L = J A``.

Harmonics of even order are real in Fourier space and those of odd order imaginary, so all matrices
are real: J holds the two kinds one above the other.

The grid is cut into tiles with a halo as wide as the neighbourhood.  What is kept for the backward
pass is the input alone: the stages are computed again, a few frequencies at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from tripq.backends.spectral.stages import (
    Layout,
    Operands,
    Packed,
    Stages,
    matrices,
    multiply,
)
from tripq.backends.spectral.tiles import Tiles
from tripq.backends.spectral.transforms import frequencies, transform, transform_back
from tripq.kernels.launch import gradients_of_twin, higher_derivatives, needs_twin
from tripq.kernels.operators import operator


def convolve(x: Tensor, operands: Operands, layout: Layout, tiles: Tiles, budget: int) -> Tensor:
    """Evaluate the layer.

    Parameters
    ----------
    x : Tensor of shape (V, Q_in, dim_in)
        Features.
    operands : Operands
        Tensors.
    layout : Layout
        Index layout of inputs and output shells.
    tiles : Tiles
        Positions of the voxels.
    budget : int
        Bytes that temporary arrays may take, if single tiles and frequencies fit.

    Returns
    -------
    Tensor of shape (V, Q_out, dim_out)
    """
    if needs_twin():
        return convolve_twin(x, operands, layout, tiles)
    result: Tensor = _Convolution.apply(layout, tiles, budget, x, *operands.pack())
    return result


def convolve_twin(x: Tensor, operands: Operands, layout: Layout, tiles: Tiles) -> Tensor:
    """The torch twin of `convolve`, for all tiles and frequencies at once."""
    padded = torch.cat([x, x.new_zeros(1, *x.shape[1:])])
    aggregated = []
    for channels, directions, embedding in zip(
        layout.channels, layout.directions, operands.embeddings, strict=True
    ):
        box = padded[:, directions[:, None], channels][tiles.source]  # (B, places, Q_i, C_i)
        box = box.unflatten(1, tiles.shape)
        spectrum = torch.fft.rfftn(box, dim=(1, 2, 3)).flatten(1, 3)
        product = torch.einsum("bfqc,qko->bfcko", spectrum, embedding.to(spectrum.dtype))
        aggregated.append(product.flatten(2, 3))
    totals = []
    for s, run in enumerate(layout.runs):
        terms = []
        for coefficients, a in zip(operands.coefficients, aggregated, strict=True):
            even, odd = (
                torch.einsum("fp,pdc->fdc", operands.transfer[:, half], coefficients[s][half])
                for half in (slice(0, layout.n_even), slice(layout.n_even, None))
            )
            terms.append(torch.einsum("fdc,bfco->bfod", torch.complex(even, -odd), a[..., run]))
        totals.append(torch.stack(terms).sum(dim=0))
    spectrum = torch.cat(totals, dim=2).unflatten(1, frequencies(tiles.shape))
    core = (slice(None), *(slice(n) for n in tiles.core))
    box = torch.fft.irfftn(spectrum, s=tiles.shape, dim=(1, 2, 3))[core]
    places = torch.cat([b * prod(tiles.core) + at for b, at in enumerate(tiles.places)])
    rows = box.flatten(0, 3)[places[torch.cat(tiles.voxels).argsort()]]
    return rows[:, layout.order.argsort()]


def bytes_per_place(x: Tensor, n_out: int, dim_out: int) -> int:
    """Memory per place of a tile: spectra, what is transformed, and copies of a GPU."""
    arrays = 2 if x.device.type == "cpu" else 4
    return arrays * x.element_size() * (x.shape[1] * x.shape[2] + n_out * dim_out)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, layout: Layout, tiles: Tiles, budget: int, x: Tensor, *flat: Tensor
    ) -> Tensor:
        ctx.layout, ctx.tiles, ctx.budget = layout, tiles, budget
        ctx.save_for_backward(x, *flat)
        return _fourier(x, list(flat), *Packed.of(layout, tiles).args(), budget)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        layout, tiles, budget = ctx.layout, ctx.tiles, ctx.budget
        x, *flat = ctx.saved_tensors
        operands = Operands.unpack(flat)
        if higher_derivatives():
            found = gradients_of_twin(
                lambda: convolve_twin(x, operands, layout, tiles),
                (x, *flat),
                ctx.needs_input_grad[3:],
                grad,
            )
            return None, None, None, *found
        needs = ctx.needs_input_grad[3:]
        packed = Packed.of(layout, tiles).args()
        found = _fourier_backward(grad, x, flat, *packed, list(needs), budget)
        return None, None, None, *(g if n else None for g, n in zip(found, needs, strict=True))


def _forward(x: Tensor, operands: Operands, layout: Layout, tiles: Tiles, budget: int) -> Tensor:
    stages = Stages(operands, layout)
    n_out, dim_out = operands.n_out, operands.dim_out
    out = x.new_empty(x.shape[0], n_out, dim_out)
    for group in tiles.groups(bytes_per_place(x, n_out, dim_out), budget):
        n_tiles = len(group.voxels)
        spectra = _spectra(x, layout, group)
        totals = [
            x.new_empty(n_tiles, 2, len(operands.transfer), dim_out, run.stop - run.start)
            for run in layout.runs
        ]
        for part in stages.chunks(n_tiles, budget):
            rows = stages.rows(spectra, part)
            for s, run in enumerate(layout.runs):
                mixed = stages.mixed(n_tiles, part, run)
                for i in range(len(rows)):
                    aggregated = stages.aggregate(i, s, rows[i])
                    joined = stages.join(i, s, part)
                    with record_function("tripq: p-aggregation"):
                        for m, a in zip(matrices(mixed), matrices(aggregated), strict=True):
                            multiply(joined, a, m, beta=min(i, 1))
                _combine(mixed, totals[s][:, :, part])
        del spectra
        _write(totals, out, layout, group)
    return out


def _backward(
    grad: Tensor,
    x: Tensor,
    operands: Operands,
    layout: Layout,
    tiles: Tiles,
    needed: Sequence[bool],
    budget: int,
) -> list[Tensor]:
    """Gradients of `x` and of the operands; of those that are not needed, something."""
    stages = Stages(operands, layout)
    needs_x, *needs = needed
    grad_x = x.new_zeros(x.shape)  # contiguous: filled by views
    grads = Operands.unpack([t.new_zeros(t.shape) for t in operands.pack()])
    wanted = Operands.unpack(needs)  # type: ignore[arg-type]  # a truth value for each tensor
    weights = tiles.weights(x)[:, None]
    weighted = operands.transfer * weights
    for group in tiles.groups(bytes_per_place(x, operands.n_out, operands.dim_out), budget):
        n_tiles = len(group.voxels)
        spectra = _spectra(x, layout, group)
        totals = _read(grad, layout, group)
        for part in stages.chunks(n_tiles, budget):
            rows = stages.rows(spectra, part)
            grad_rows = stages.grad_rows(rows)
            for s, run in enumerate(layout.runs):
                mixed = _split(totals[s][:, :, part], stages.mixed(n_tiles, part, run))
                for i in range(len(rows)):
                    aggregated = stages.aggregate(i, s, rows[i])
                    if wanted.coefficients[i] or wanted.transfer:
                        joined = stages.correlate(mixed, aggregated)
                        stages.join_back(i, s, part, joined, weighted, grads, wanted)
                    joined = stages.join(i, s, part)
                    # The gradient takes the place of what it is the gradient of.
                    with record_function("tripq: p-aggregation"):
                        for m, a in zip(matrices(mixed), matrices(aggregated), strict=True):
                            multiply(joined.mT, m, a, beta=0)
                    if wanted.embeddings[i]:
                        read = (rows[i] * weights[part, :, None]).flatten(0, 2)
                        target = grads.embeddings[i][..., run]
                        flat = aggregated.reshape(-1, target[0].numel())
                        target += (read.T @ flat).view_as(target)
                    stages.aggregate_back(i, s, aggregated, grad_rows[i])
            for parts, values in zip(rows, grad_rows, strict=True):
                parts.copy_(values)
        del totals
        if needs_x:
            _add(spectra, grad_x, layout, group)
    grads.transfer.mul_(weights)
    return [grad_x, *grads.pack()]


def _unpacked(x: Tensor, flat: Sequence[Tensor], *packed: Any) -> tuple[Any, ...]:
    *lists, budget = packed
    return x, Operands.unpack(flat), *Packed.unpack(*lists), budget


def _unpacked_backward(grad: Tensor, *packed: Any) -> tuple[Any, ...]:
    *others, needed, budget = packed
    *read, budget = _unpacked(*others, budget)
    return grad, *read, needed, budget


_PACKED = (
    "Tensor[] channels, Tensor[] directions, Tensor[] voxels, Tensor[] places, Tensor[] tensors, "
    "SymInt[] sizes"
)

_fourier = operator(
    "fourier",
    f"(Tensor x, Tensor[] flat, {_PACKED}, SymInt budget) -> Tensor",
    lambda x, operands, *_: x.new_empty(x.shape[0], operands.n_out, operands.dim_out),
    twin=_forward,
    read=_unpacked,
)
_fourier_backward = operator(
    "fourier_backward",
    f"(Tensor grad, Tensor x, Tensor[] flat, {_PACKED}, bool[] needed, SymInt budget) -> Tensor[]",
    lambda _, x, operands, *__: [t.new_empty(t.shape) for t in (x, *operands.pack())],
    twin=_backward,
    read=_unpacked_backward,
)


@record_function("tripq: transforms")
def _spectra(x: Tensor, layout: Layout, tiles: Tiles) -> list[Tensor]:
    """The inputs in Fourier space, each (B, 2, F, C_i Q_i)."""
    n_tiles, n_places = tiles.source.shape
    columns = layout.columns_in(x.shape[2])
    boxes = [x.new_zeros(n_tiles, n_places, len(some)) for some in columns]
    features = x.flatten(1)
    for b, source in enumerate(tiles.source):
        (places,) = (source < len(x)).nonzero(as_tuple=True)
        rows = features.index_select(0, source[places])
        for box, some in zip(boxes, columns, strict=True):
            box[b].index_copy_(0, places, rows.index_select(1, some))
    return [transform(boxes.pop(0).unflatten(1, tiles.shape), tiles.shape) for _ in columns]


@record_function("tripq: transforms")
def _add(spectra: list[Tensor], x: Tensor, layout: Layout, tiles: Tiles) -> None:
    """The transpose of `_spectra` up to `Tiles.weights`, added to `x`, which is contiguous.

    The list is emptied, so that no spectrum is held for longer than it is needed.
    """
    columns = layout.columns_in(x.shape[2])
    boxes = [transform_back(spectra.pop(0), tiles.shape, tiles.shape) for _ in columns]
    for b, source in enumerate(tiles.source):
        (places,) = (source < len(x)).nonzero(as_tuple=True)
        rows = x.new_zeros(len(places), x[0].numel())
        for box, some in zip(boxes, columns, strict=True):
            rows.index_copy_(1, some, box[b].flatten(0, 2).index_select(0, places))
        x.flatten(1).index_add_(0, source[places], rows)


@record_function("tripq: transforms")
def _write(totals: list[Tensor], out: Tensor, layout: Layout, tiles: Tiles) -> None:
    """Outputs of each shell in Fourier space, (B, 2, F, dim_out, Q), to `out`.

    The list is emptied, so that no spectrum is held for longer than it is needed.
    """
    columns = layout.columns_out(out.shape[2])
    shape, core = tiles.shape, tiles.core
    boxes = [transform_back(totals.pop(0).flatten(3), shape, core) for _ in columns]
    for b, (voxels, places) in enumerate(zip(tiles.voxels, tiles.places, strict=True)):
        rows = out.new_empty(len(voxels), out[0].numel())
        for box, some in zip(boxes, columns, strict=True):
            rows.index_copy_(1, some, box[b].flatten(0, 2).index_select(0, places))
        out.flatten(1).index_copy_(0, voxels, rows)


@record_function("tripq: transforms")
def _read(grad: Tensor, layout: Layout, tiles: Tiles) -> list[Tensor]:
    """The transpose of `_write`, up to `Tiles.weights`."""
    columns = layout.columns_out(grad.shape[2])
    boxes = [grad.new_zeros(len(tiles.voxels), prod(tiles.core), len(some)) for some in columns]
    features = grad.flatten(1)
    for b, (voxels, places) in enumerate(zip(tiles.voxels, tiles.places, strict=True)):
        rows = features.index_select(0, voxels)
        for box, some in zip(boxes, columns, strict=True):
            box[b].index_copy_(0, places, rows.index_select(1, some))
    return [
        transform(boxes.pop(0).unflatten(1, tiles.core), tiles.shape).unflatten(
            3, (grad.shape[2], -1)
        )
        for _ in columns
    ]


def _combine(mixed: Tensor, total: Tensor) -> None:
    """Even and odd parts, (2 B, f, 2 dim_out, Q), to spectra (B, 2, f, dim_out, Q)."""
    even, odd = _halves(mixed)
    torch.add(even[:, 0], odd[:, 1], out=total[:, 0])
    torch.sub(even[:, 1], odd[:, 0], out=total[:, 1])


def _split(total: Tensor, mixed: Tensor) -> Tensor:
    """The transpose of `_combine`, written to `mixed`."""
    even, odd = _halves(mixed)
    even.copy_(total)
    torch.neg(total[:, 1], out=odd[:, 0])
    odd[:, 1].copy_(total[:, 0])
    return mixed


def _halves(mixed: Tensor) -> tuple[Tensor, Tensor]:
    """Views (B, 2, f, dim_out, Q) of even and odd parts."""
    even, odd = mixed.unflatten(0, (-1, 2)).chunk(2, dim=3)
    return even, odd
