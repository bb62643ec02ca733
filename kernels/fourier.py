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
pass is the input alone: the stages are computed again, a few frequencies at a time.  The twin says
what is computed, and has all derivatives that the backward pass has not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from tripq.kernels.launch import gradients_of_twin, higher_derivatives, needs_twin

# Bytes of a stage for a few frequencies, on a CPU: they stay in the cache of a core.
_CACHED = 1 << 22

#: Numbers of voxels along the three axes.
Shape = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Tiles:
    """Boxes of one shape that cover the voxels of a grid, as rings: their ends are joined.

    Each voxel is in the core of one tile, where it is an output, and in the halo of others.

    Attributes
    ----------
    shape : (int, int, int)
        Of a tile.
    source : Tensor of shape (B, places), int64
        The voxel at each place of each tile, or V where there is none.
    voxels, places : tuple of B Tensors, int64
        The voxels in the core of each tile, and their places in it.
    """

    shape: Shape
    source: Tensor
    voxels: tuple[Tensor, ...]
    places: tuple[Tensor, ...]

    @classmethod
    def cut(cls, voxels: Tensor, margin: Shape, largest: int) -> Tiles:
        """Tiles with as few places as possible in all, and at most `largest` in each.

        Parameters
        ----------
        voxels : Tensor of shape (V, 4), int64
            Volume, and indices in it.
        margin : (int, int, int)
            How far neighbours reach along each axis.
        largest : int
            Number of places; a tile of a single voxel and its neighbours may have more.
        """
        voxels = voxels - voxels.amin(dim=0)
        volumes, *extent = (voxels.amax(dim=0) + 1).tolist()
        core, best, fewest = list(extent), list(extent), 0
        while True:
            shape = _tile_shape(core, extent, margin)
            number = len(_tile_of(voxels, core, extent).unique())
            total = number * prod(shape)
            if fewest == 0 or total < fewest:
                best, fewest = list(core), total
            elif total > 2 * fewest:
                break
            if prod(shape) > largest:
                fewest = 0  # any smaller one is better
            if max(core) == 1:
                break
            longest = core.index(max(core))
            core[longest] = -(-core[longest] // 2)
        return cls._of(voxels, best, extent, margin, volumes)

    @classmethod
    def _of(
        cls, voxels: Tensor, core: list[int], extent: list[int], margin: Shape, volumes: int
    ) -> Tiles:
        shape = _tile_shape(core, extent, margin)
        device = voxels.device
        number = [-(-e // c) for e, c in zip(extent, core, strict=True)]
        padded = [(k - 1) * c + n for k, c, n in zip(number, core, shape, strict=True)]
        at = torch.full((volumes, *padded), len(voxels), device=device)
        shift = torch.tensor([0, *margin], device=device)
        at[tuple((voxels + shift).T)] = torch.arange(len(voxels), device=device)
        tile = _tile_of(voxels, core, extent)
        used, tile = tile.unique(return_inverse=True)
        volume, x, y, z = _unravel(used, [volumes, *number])
        # The halo before the core stands at the end of the ring.
        axes = [
            o[:, None] * c + (torch.arange(n, device=device) + m) % n
            for o, c, n, m in zip((x, y, z), core, shape, margin, strict=True)
        ]
        source = at[
            volume[:, None, None, None],
            axes[0][:, :, None, None],
            axes[1][:, None, :, None],
            axes[2][:, None, None, :],
        ]
        inside = voxels[:, 1:] % torch.tensor(core, device=device)
        strides = torch.tensor([shape[1] * shape[2], shape[2], 1], device=device)
        places = (inside * strides).sum(dim=1)
        order = tile.argsort(stable=True)
        counts = tile.bincount().tolist()
        return cls(shape, source.flatten(1), order.split(counts), places[order].split(counts))

    def groups(self, bytes_per_place: int, budget: int) -> Iterator[Tiles]:
        """A few tiles at a time, as many as the budget allows."""
        step = max(1, budget // (bytes_per_place * prod(self.shape)))
        for start in range(0, len(self.voxels), step):
            some = slice(start, start + step)
            yield Tiles(self.shape, self.source[some], self.voxels[some], self.places[some])

    @property
    def spectrum(self) -> Shape:
        """Frequencies along the axes; of a real signal half of them are enough."""
        return (self.shape[0], self.shape[1], self.shape[2] // 2 + 1)

    def transfer(self, steps: Tensor, functions: Tensor, n_even: int) -> Tensor:
        """The Fourier transform of functions of the offset.

        Parameters
        ----------
        steps : Tensor of shape (T, 3), int64
            Offsets, out - in.
        functions : Tensor of shape (T, B)
            The first `n_even` keep and the others change their sign with that of the offset.

        Returns
        -------
        Tensor of shape (F, B)
            The real part for even ones, minus the imaginary part for odd ones.
        """
        turns = torch.zeros(1, len(steps), dtype=torch.float64, device=steps.device)
        for n, number, step in zip(self.shape, self.spectrum, steps.T, strict=True):
            # The product of integers is reduced first: the angle is exact for any size.
            axis = (torch.arange(number, device=steps.device)[:, None] * step % n).double() / n
            turns = (turns[:, None] + axis).flatten(0, 1)
        angle = 2 * torch.pi * turns
        cosine, sine = angle.cos().to(functions.dtype), angle.sin().to(functions.dtype)
        return torch.cat([cosine @ functions[:, :n_even], sine @ functions[:, n_even:]], dim=1)

    def weights(self, like: Tensor) -> Tensor:
        """How often each frequency (F,) counts in the inverse transform, over the places."""
        nx, ny, nz = self.shape
        twice = like.new_full((nz // 2 + 1,), 2.0)
        twice[0] = 1.0
        if nz % 2 == 0:
            twice[-1] = 1.0
        return twice.repeat(nx * ny) / (nx * ny * nz)


def _tile_shape(core: Sequence[int], extent: Sequence[int], margin: Shape) -> Shape:
    """With room for the halo, of which one side suffices where nothing lies beyond."""
    return tuple(  # type: ignore[return-value]
        _smooth(c + (m if c >= e else 2 * m)) for c, e, m in zip(core, extent, margin, strict=True)
    )


def _smooth(n: int) -> int:
    """The next number that a fast Fourier transform likes."""
    while True:
        rest = n
        for p in (2, 3, 5, 7):
            while rest % p == 0:
                rest //= p
        if rest == 1:
            return n
        n += 1


def _tile_of(voxels: Tensor, core: Sequence[int], extent: Sequence[int]) -> Tensor:
    """A number for the tile of each voxel."""
    tile = voxels[:, 0]
    for axis, (c, e) in enumerate(zip(core, extent, strict=True)):
        tile = tile * -(-e // c) + voxels[:, axis + 1] // c
    return tile


def _unravel(index: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    parts = []
    for size in reversed(sizes):
        parts.append(index % size)
        index = index // size
    return parts[::-1]


@dataclass(frozen=True, eq=False)
class Layout:
    """What meets what.

    Attributes
    ----------
    channels, directions : tuple of I Tensors of shape (C_i,) and (Q_i,), int64
        Input channels and input directions of each of I inputs.
    runs : tuple of S slices
        The output directions of each shell.
    order : Tensor of shape (Q_out,), int64
        Which output direction stands where in these runs.
    n_even : int
        How many functions of the p-offset are even.
    """

    channels: tuple[Tensor, ...]
    directions: tuple[Tensor, ...]
    runs: tuple[slice, ...]
    order: Tensor
    n_even: int


@dataclass(frozen=True)
class _Packed:
    """Layout and tiles as the operators take them."""

    channels: tuple[Tensor, ...]
    directions: tuple[Tensor, ...]
    voxels: tuple[Tensor, ...]
    places: tuple[Tensor, ...]
    tensors: tuple[Tensor, Tensor]  # order, source
    sizes: tuple[int, ...]  # n_even, the shape of a tile, where the runs end

    @classmethod
    def of(cls, layout: Layout, tiles: Tiles) -> _Packed:
        ends = [run.stop for run in layout.runs]
        return cls(
            layout.channels,
            layout.directions,
            tiles.voxels,
            tiles.places,
            (layout.order, tiles.source),
            (layout.n_even, *tiles.shape, *ends),
        )

    def args(self) -> tuple[list[Tensor] | list[int], ...]:
        lists = self.channels, self.directions, self.voxels, self.places, self.tensors, self.sizes
        return tuple(list(part) for part in lists)  # type: ignore[return-value]

    @staticmethod
    def unpack(
        channels: Sequence[Tensor],
        directions: Sequence[Tensor],
        voxels: Sequence[Tensor],
        places: Sequence[Tensor],
        tensors: Sequence[Tensor],
        sizes: Sequence[int],
    ) -> tuple[Layout, Tiles]:
        (order, source), (n_even, x, y, z, *ends) = tensors, sizes
        runs = tuple(slice(*run) for run in pairwise([0, *ends]))
        layout = Layout(tuple(channels), tuple(directions), runs, order, n_even)
        return layout, Tiles((x, y, z), source, tuple(voxels), tuple(places))


@dataclass(frozen=True, eq=False)
class Operands:
    """The tensors of a layer.

    Attributes
    ----------
    transfer : Tensor of shape (F, B)
        The p-embedding in Fourier space, even functions first.
    coefficients : sequence of I Tensors of shape (S, B, dim_out, C_i B_i)
        What joins the p-embedding, and channels and q-embedding of an input, on each shell.
    embeddings : sequence of I Tensors of shape (Q_i, B_i, Q_out)
        The q-embeddings, with output directions in the order of the runs.
    """

    transfer: Tensor
    coefficients: Sequence[Tensor]
    embeddings: Sequence[Tensor]

    @classmethod
    def unpack(cls, flat: Sequence[Tensor]) -> Operands:
        """From one list in the order of the attributes."""
        n = (len(flat) - 1) // 2
        return cls(flat[0], flat[1 : 1 + n], flat[1 + n :])

    def pack(self) -> list[Tensor]:
        """All in one list."""
        return [self.transfer, *self.coefficients, *self.embeddings]

    @property
    def n_out(self) -> int:
        """Number of output directions."""
        return self.embeddings[0].shape[2]

    @property
    def dim_out(self) -> int:
        """Number of output components."""
        return self.coefficients[0].shape[2]


def convolve(x: Tensor, operands: Operands, layout: Layout, tiles: Tiles, budget: int) -> Tensor:
    """Evaluate the layer.

    Parameters
    ----------
    x : Tensor of shape (V, Q_in, dim_in)
        Features.
    operands : Operands
        Tensors.
    layout : Layout
        What meets what.
    tiles : Tiles
        Where the voxels stand.
    budget : int
        Bytes that temporary arrays may take, if single tiles and frequencies fit.

    Returns
    -------
    Tensor of shape (V, Q_out, dim_out)
    """
    if needs_twin():
        return convolve_twin(x, operands, layout, tiles)
    result: Tensor = _Convolution.apply(layout, tiles, budget, x, *operands.pack())  # type: ignore[no-untyped-call]
    return result


def convolve_twin(x: Tensor, operands: Operands, layout: Layout, tiles: Tiles) -> Tensor:
    """What `convolve` computes, for all tiles and frequencies at once."""
    padded = torch.cat([x, x.new_zeros(1, *x.shape[1:])])
    aggregated = []
    for channels, directions, embedding in zip(
        layout.channels, layout.directions, operands.embeddings, strict=True
    ):
        box = padded[:, directions[:, None], channels][tiles.source]  # (B, places, Q_i, C_i)
        spectrum = _transform(box.movedim(1, -1), tiles)
        product = torch.einsum("bqcf,qko->bfcko", spectrum, embedding.to(spectrum.dtype))
        aggregated.append(product.flatten(2, 3))
    totals = []
    for s, run in enumerate(layout.runs):
        terms = []
        for coefficients, a in zip(operands.coefficients, aggregated, strict=True):
            even, odd = (
                torch.einsum("fp,pdc->fdc", operands.transfer[:, half], coefficients[s][half])
                for half in (slice(0, layout.n_even), slice(layout.n_even, None))
            )
            terms.append(torch.einsum("fdc,bfco->bodf", torch.complex(even, -odd), a[..., run]))
        totals.append(torch.stack(terms).sum(dim=0))
    result = _transform_back(torch.cat(totals, dim=1), tiles).movedim(-1, 1).flatten(0, 1)
    n_places = prod(tiles.shape)
    places = torch.cat([b * n_places + at for b, at in enumerate(tiles.places)])
    rows = result[places[torch.cat(tiles.voxels).argsort()]]
    return rows[:, layout.order.argsort()]


def bytes_per_place(x: Tensor, n_out: int, dim_out: int) -> int:
    """Memory that a place of a tile takes: spectra, and what the transforms work with."""
    return 3 * x.element_size() * (x.shape[1] * x.shape[2] + n_out * dim_out)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, layout: Layout, tiles: Tiles, budget: int, x: Tensor, *flat: Tensor
    ) -> Tensor:
        ctx.layout, ctx.tiles, ctx.budget = layout, tiles, budget
        ctx.save_for_backward(x, *flat)
        return _forward(x, flat, *_Packed.of(layout, tiles).args(), budget)

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
        packed = _Packed.of(layout, tiles).args()
        found = _backward(grad, x, flat, *packed, needs, budget)
        return None, None, None, *(g if n else None for g, n in zip(found, needs, strict=True))


# Operators, so that a compiler sees one call each, however many tiles and frequencies there are.


@torch.library.custom_op("tripq::fourier", mutates_args=())
def _forward(
    x: Tensor,
    flat: Sequence[Tensor],
    channels: Sequence[Tensor],
    directions: Sequence[Tensor],
    voxels: Sequence[Tensor],
    places: Sequence[Tensor],
    tensors: Sequence[Tensor],
    sizes: Sequence[int],
    budget: int,
) -> Tensor:
    layout, tiles = _Packed.unpack(channels, directions, voxels, places, tensors, sizes)
    operands = Operands.unpack(flat)
    stages = _Stages(operands, layout)
    n_out, dim_out = operands.n_out, operands.dim_out
    out = x.new_empty(x.shape[0], n_out, dim_out)
    for group in tiles.groups(bytes_per_place(x, n_out, dim_out), budget):
        n_tiles = len(group.voxels)
        spectra = _spectra(x, layout, group)
        total = spectra[0].new_empty(n_tiles, n_out, dim_out, len(operands.transfer))
        for part in stages.chunks(n_tiles, budget):
            rows = stages.rows(spectra, part)
            for s, run in enumerate(layout.runs):
                mixed = stages.mixed(n_tiles, part, run).zero_()
                for i in range(len(rows)):
                    aggregated = stages.aggregate(i, s, rows[i])
                    joined = stages.join(i, s, part)
                    with record_function("tripq: p-aggregation"):
                        for m, a in zip(mixed, aggregated, strict=True):
                            m.baddbmm_(joined, a)
                _combine(mixed, total[:, run, :, part])
        del spectra
        _write(total, out, layout, group)
    return out


@_forward.register_fake
def _(x: Tensor, flat: Sequence[Tensor], *args: Any) -> Tensor:
    operands = Operands.unpack(flat)
    return x.new_empty(x.shape[0], operands.n_out, operands.dim_out)


@torch.library.custom_op("tripq::fourier_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    flat: Sequence[Tensor],
    channels: Sequence[Tensor],
    directions: Sequence[Tensor],
    voxels: Sequence[Tensor],
    places: Sequence[Tensor],
    tensors: Sequence[Tensor],
    sizes: Sequence[int],
    needed: Sequence[bool],
    budget: int,
) -> list[Tensor]:
    """Gradients of `x` and of the operands; of those that are not needed, something."""
    layout, tiles = _Packed.unpack(channels, directions, voxels, places, tensors, sizes)
    operands = Operands.unpack(flat)
    stages = _Stages(operands, layout)
    needs_x, *needs = needed
    grad_x = torch.zeros_like(x)
    grads = Operands.unpack([t.new_zeros(t.shape) for t in flat])  # contiguous: filled by views
    wanted = Operands.unpack(needs)
    weights = tiles.weights(x)[:, None]
    for group in tiles.groups(bytes_per_place(x, operands.n_out, operands.dim_out), budget):
        n_tiles = len(group.voxels)
        spectra = _spectra(x, layout, group)
        total = _read(grad, layout, group)
        for part in stages.chunks(n_tiles, budget):
            rows = stages.rows(spectra, part)
            grad_rows = stages.grad_rows(rows)
            for s, run in enumerate(layout.runs):
                mixed = _split(total[:, run, :, part], stages.mixed(n_tiles, part, run))
                for i in range(len(rows)):
                    aggregated = stages.aggregate(i, s, rows[i])
                    if wanted.coefficients[i] or wanted.transfer:
                        joined = stages.correlate(mixed, aggregated)
                        joined.mul_(weights[part, :, None])
                        stages.join_back(i, s, part, joined, grads, wanted)
                    joined = stages.join(i, s, part)
                    # The gradient takes the place of what it is the gradient of.
                    with record_function("tripq: p-aggregation"):
                        for m, a in zip(mixed, aggregated, strict=True):
                            torch.bmm(joined.transpose(1, 2), m, out=a)
                    if wanted.embeddings[i]:
                        weighted = rows[i] * weights[part, :, None]
                        target = grads.embeddings[i][..., run]
                        product = weighted.flatten(0, 2).T @ aggregated.view(-1, target[0].numel())
                        target += product.view_as(target)
                    stages.aggregate_back(i, s, aggregated, grad_rows[i])
            for spectrum, values in zip(spectra, grad_rows, strict=True):
                parts = _parts(spectrum, part)
                parts.copy_(values.view(parts.shape))
        if needs_x:
            _add(spectra, grad_x, layout, group)
    return [grad_x, *grads.pack()]


@_backward.register_fake
def _(grad: Tensor, x: Tensor, flat: Sequence[Tensor], *args: Any) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in (x, *flat)]


# -- from voxels to spectra and back -------------------------------------------------------------


@record_function("tripq: transforms")
def _spectra(x: Tensor, layout: Layout, tiles: Tiles) -> list[Tensor]:
    """The inputs in Fourier space, each (B, C_i, Q_i, F)."""
    n_tiles, n_places = tiles.source.shape
    spectra = []
    for channels, directions in zip(layout.channels, layout.directions, strict=True):
        box = x.new_zeros(n_tiles, len(channels), len(directions), n_places)
        for b, source in enumerate(tiles.source):
            (places,) = (source < len(x)).nonzero(as_tuple=True)
            rows = x[source[places][:, None, None], directions[:, None], channels]
            box[b].index_copy_(2, places, rows.permute(2, 1, 0))
        spectra.append(_transform(box, tiles))
    return spectra


@record_function("tripq: transforms")
def _add(spectra: list[Tensor], x: Tensor, layout: Layout, tiles: Tiles) -> None:
    """The transpose of `_spectra` up to `Tiles.weights`, added to `x`."""
    for spectrum, channels, directions in zip(
        spectra, layout.channels, layout.directions, strict=True
    ):
        box = _transform_back(spectrum, tiles)
        for b, source in enumerate(tiles.source):
            (places,) = (source < len(x)).nonzero(as_tuple=True)
            rows = box[b].index_select(2, places).permute(2, 1, 0)
            x[source[places][:, None, None], directions[:, None], channels] += rows


@record_function("tripq: transforms")
def _write(total: Tensor, out: Tensor, layout: Layout, tiles: Tiles) -> None:
    """Outputs in Fourier space, (B, Q_out, dim_out, F), to `out`; by shells, to save memory."""
    for run in layout.runs:
        box = _transform_back(total[:, run], tiles)
        for b, (voxels, places) in enumerate(zip(tiles.voxels, tiles.places, strict=True)):
            rows = box[b].index_select(2, places).permute(2, 0, 1)
            out[voxels[:, None], layout.order[run]] = rows


@record_function("tripq: transforms")
def _read(grad: Tensor, layout: Layout, tiles: Tiles) -> Tensor:
    """The transpose of `_write`, up to `Tiles.weights`."""
    n_tiles, n_places = tiles.source.shape
    total = grad.new_empty(
        n_tiles, *grad.shape[1:], prod(tiles.spectrum), dtype=grad.dtype.to_complex()
    )
    for run in layout.runs:
        box = grad.new_zeros(n_tiles, run.stop - run.start, grad.shape[2], n_places)
        for b, (voxels, places) in enumerate(zip(tiles.voxels, tiles.places, strict=True)):
            rows = grad[voxels[:, None], layout.order[run]]
            box[b].index_copy_(2, places, rows.permute(1, 2, 0))
        total[:, run] = _transform(box, tiles)
    return total


def _transform(box: Tensor, tiles: Tiles) -> Tensor:
    return torch.fft.rfftn(box.unflatten(-1, tiles.shape), dim=(-3, -2, -1)).flatten(-3)


def _transform_back(spectrum: Tensor, tiles: Tiles) -> Tensor:
    grid = spectrum.unflatten(-1, tiles.spectrum)
    return torch.fft.irfftn(grid, s=tiles.shape, dim=(-3, -2, -1)).flatten(-3)


# -- the stages, for some frequencies ------------------------------------------------------------


def _parts(spectrum: Tensor, part: slice) -> Tensor:
    """Real and imaginary parts of some frequencies: (B, C, Q, F) to (2, B, f, C, Q)."""
    return torch.view_as_real(spectrum[..., part]).permute(4, 0, 3, 1, 2)


def _combine(mixed: Tensor, total: Tensor) -> None:
    """Even and odd parts, (2 B, f, 2 dim_out, Q), to spectra (B, Q, dim_out, f)."""
    real, imaginary = torch.view_as_real(total).unbind(-1)
    even, odd = _halves(mixed)
    torch.add(even[0], odd[1], out=real)
    torch.sub(even[1], odd[0], out=imaginary)


def _split(total: Tensor, mixed: Tensor) -> Tensor:
    """The transpose of `_combine`, written to `mixed`."""
    real, imaginary = torch.view_as_real(total).unbind(-1)
    even, odd = _halves(mixed)
    even[0].copy_(real)
    even[1].copy_(imaginary)
    torch.neg(imaginary, out=odd[0])
    odd[1].copy_(real)
    return mixed


def _halves(mixed: Tensor) -> tuple[Tensor, Tensor]:
    """Views (2, B, Q, dim_out, f) of even and odd parts."""
    even, odd = mixed.unflatten(0, (2, -1)).permute(0, 1, 4, 3, 2).chunk(2, dim=3)
    return even, odd


class _Stages:
    """The stages and their transposes, in work buffers that all chunks share."""

    def __init__(self, operands: Operands, layout: Layout) -> None:
        self._transfer = operands.transfer
        self._coefficients = operands.coefficients
        self._embeddings = [
            [e[..., run].flatten(1) for run in layout.runs] for e in operands.embeddings
        ]
        self._layout = layout
        self._n_even = layout.n_even
        self._dim_out = operands.dim_out
        self._buffers: dict[str, Tensor] = {}

    def _work(self, name: str, *shape: int) -> Tensor:
        size = prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[name] = self._transfer.new_empty(size)
        return buffer[:size].view(shape)

    def chunks(self, n_tiles: int, budget: int) -> list[slice]:
        """Frequencies, as many at a time as the cache holds, or the budget."""
        longest = max(run.stop - run.start for run in self._layout.runs)
        width = max(c.shape[3] for c in self._coefficients)
        per_frequency = width * (2 * n_tiles * longest + 2 * self._dim_out)
        on_cpu = self._transfer.device.type == "cpu"
        held = min(_CACHED, budget) if on_cpu else budget // 8
        n = len(self._transfer)
        step = max(1, held // (self._transfer.element_size() * per_frequency))
        return [slice(start, min(start + step, n)) for start in range(0, n, step)]

    def rows(self, spectra: list[Tensor], part: slice) -> list[Tensor]:
        """Real and imaginary parts of the inputs, each (2 B, f, C_i, Q_i)."""
        rows = []
        for i, spectrum in enumerate(spectra):
            parts = _parts(spectrum, part)
            rows.append(self._work(f"rows {i}", *parts.shape).copy_(parts).flatten(0, 1))
        return rows

    def grad_rows(self, rows: list[Tensor]) -> list[Tensor]:
        """Room for the gradients of `rows`, which are zero at first."""
        return [self._work(f"grad rows {i}", *r.shape).zero_() for i, r in enumerate(rows)]

    def mixed(self, n_tiles: int, part: slice, run: slice) -> Tensor:
        """Room for even and odd parts of the result, (2 B, f, 2 dim_out, Q)."""
        n, n_q = part.stop - part.start, run.stop - run.start
        return self._work("mixed", 2 * n_tiles, n, 2 * self._dim_out, n_q)

    @record_function("tripq: q-aggregation")
    def aggregate(self, i: int, s: int, rows: Tensor) -> Tensor:
        """Stage 1: (2 B, f, C_i B_i, Q)."""
        embedding = self._embeddings[i][s]
        run = self._layout.runs[s]
        flat = rows.flatten(0, 2)
        product = self._work("aggregated", len(flat), embedding.shape[1])
        torch.mm(flat, embedding, out=product)
        return product.view(*rows.shape[:2], -1, run.stop - run.start)

    @record_function("tripq: q-aggregation")
    def aggregate_back(self, i: int, s: int, grad: Tensor, grad_rows: Tensor) -> None:
        """Add the gradient of the rows of `aggregate`."""
        embedding = self._embeddings[i][s]
        grad_rows.flatten(0, 2).addmm_(grad.view(-1, embedding.shape[1]), embedding.T)

    @record_function("tripq: filter")
    def join(self, i: int, s: int, part: slice) -> Tensor:
        """Stage 2: (f, 2 dim_out, C_i B_i)."""
        coefficients = self._coefficients[i][s]
        _, dim, width = coefficients.shape
        joined = self._work("joined", part.stop - part.start, 2 * dim, width)
        for half, some in self._by_parity(joined):
            torch.mm(self._transfer[part, some], coefficients[some].flatten(1), out=half)
        return joined

    @record_function("tripq: filter")
    def join_back(
        self, i: int, s: int, part: slice, grad: Tensor, grads: Operands, needed: Operands
    ) -> None:
        """Add the gradients of both factors of `join`, where they are needed."""
        coefficients, grad_coefficients = self._coefficients[i][s], grads.coefficients[i][s]
        for half, some in self._by_parity(grad):
            if needed.coefficients[i]:
                grad_coefficients[some].flatten(1).addmm_(self._transfer[part, some].T, half)
            if needed.transfer:
                grads.transfer[part, some].addmm_(half, coefficients[some].flatten(1).T)

    def _by_parity(self, joined: Tensor) -> list[tuple[Tensor, slice]]:
        """Both halves (f, dim_out C_i B_i) with the functions that make them."""
        even, odd = joined.chunk(2, dim=1)
        return [
            (even.flatten(1), slice(0, self._n_even)),
            (odd.flatten(1), slice(self._n_even, None)),
        ]

    @record_function("tripq: filter")
    def correlate(self, mixed: Tensor, aggregated: Tensor) -> Tensor:
        """The gradient of what `join` makes."""
        _, n, n_mixed, _ = mixed.shape
        total = self._work("joined", n, n_mixed, aggregated.shape[2])
        total.zero_()
        for m, a in zip(mixed, aggregated, strict=True):
            total.baddbmm_(m, a.transpose(1, 2))
        return total
