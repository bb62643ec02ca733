"""The stages of the evaluation for some frequencies: embeddings, coefficients, products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
from torch import Tensor
from torch.profiler import record_function

from tripq.backends.spectral.tiles import Tiles
from tripq.infra.chunks import chunks

# Bytes, for each thread of a CPU, that a stage takes for a few frequencies: they stay in the cache
# of its core.  With four times as many the stages were slower, with half as many they were no
# faster.
_CACHED = 1 << 22


@dataclass(frozen=True, eq=False)
class Layout:
    """Index layout of inputs and output shells.

    Attributes
    ----------
    channels, directions : tuple of I Tensors of shape (C_i,) and (Q_i,), int64
        Input channels and input directions of each of I inputs; no feature is in two inputs.
    runs : tuple of S slices
        The output directions of each shell.
    order : Tensor of shape (Q_out,), int64
        Index of each output direction in these runs.
    n_even : int
        How many functions of the p-offset are even.
    """

    channels: tuple[Tensor, ...]
    directions: tuple[Tensor, ...]
    runs: tuple[slice, ...]
    order: Tensor
    n_even: int

    def work(self, coefficients: Sequence[Tensor]) -> int:
        """Multiply-adds at each place besides the transforms."""
        total = 0
        for matrices, directions in zip(coefficients, self.directions, strict=True):
            _, n_functions, dim_out, width = matrices.shape
            for run in self.runs:
                n_out = run.stop - run.start
                # At half as many frequencies as places, but for real and imaginary parts.
                total += width * n_out * (len(directions) + 2 * dim_out)
                total += width * n_functions * dim_out // 2
        return total

    def columns_in(self, dim_in: int) -> list[Tensor]:
        """Where each input stands in the features of a voxel: (C_i Q_i,)."""
        return [
            (directions * dim_in + channels[:, None]).flatten()
            for channels, directions in zip(self.channels, self.directions, strict=True)
        ]

    def columns_out(self, dim_out: int) -> list[Tensor]:
        """Where the results of each shell stand there: (dim_out Q,)."""
        components = torch.arange(dim_out, device=self.order.device)[:, None]
        return [(self.order[run] * dim_out + components).flatten() for run in self.runs]


@dataclass(frozen=True)
class Packed:
    """Layout and tiles as the operators take them."""

    channels: tuple[Tensor, ...]
    directions: tuple[Tensor, ...]
    voxels: tuple[Tensor, ...]
    places: tuple[Tensor, ...]
    tensors: tuple[Tensor, Tensor]  # order, source
    sizes: tuple[int, ...]  # n_even, the shapes of a tile and its core, where the runs end

    @classmethod
    def of(cls, layout: Layout, tiles: Tiles) -> Packed:
        """Pack both."""
        ends = [run.stop for run in layout.runs]
        return cls(
            layout.channels,
            layout.directions,
            tiles.voxels,
            tiles.places,
            (layout.order, tiles.source),
            (layout.n_even, *tiles.shape, *tiles.core, *ends),
        )

    def args(self) -> tuple[list[Tensor] | list[int], ...]:
        """As arguments of the operators, in the order of the attributes."""
        tensors = self.channels, self.directions, self.voxels, self.places, self.tensors
        return (*(list(part) for part in tensors), list(self.sizes))

    @staticmethod
    def unpack(
        channels: Sequence[Tensor],
        directions: Sequence[Tensor],
        voxels: Sequence[Tensor],
        places: Sequence[Tensor],
        tensors: Sequence[Tensor],
        sizes: Sequence[int],
    ) -> tuple[Layout, Tiles]:
        """Layout and tiles from these arguments."""
        (order, source), (n_even, *shapes) = tensors, sizes
        (x, y, z), (core_x, core_y, core_z), ends = shapes[:3], shapes[3:6], shapes[6:]
        runs = tuple(slice(*run) for run in pairwise([0, *ends]))
        layout = Layout(tuple(channels), tuple(directions), runs, order, n_even)
        tiles = Tiles((x, y, z), (core_x, core_y, core_z), source, tuple(voxels), tuple(places))
        return layout, tiles


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


def matrices(t: Tensor) -> list[Tensor]:
    """Matrices for products at each frequency: (2 B, f, C, Q) to 2 B of shape (f, C, Q).

    Those of one direction are columns of one matrix, (f, C, 2 B): a product with a single column
    takes as long as one with several.
    """
    return [t[..., 0].permute(1, 2, 0)] if t.shape[3] == 1 else list(t)


def multiply(a: Tensor, b: Tensor, out: Tensor, beta: int) -> None:
    """``out = a b + beta out`` for batches of matrices; `out` or its transpose is contiguous.

    On a CPU torch evaluates a batch at once only if its result is contiguous.
    """
    if out.is_contiguous():
        out.baddbmm_(a, b, beta=beta)
    else:
        out.mT.baddbmm_(b.mT, a.mT, beta=beta)


class Stages:
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

    def _room(self, name: str, two_b: int, n: int, width: int, n_q: int) -> Tensor:
        """Room for (2 B, f, C, Q) with contiguous `matrices`, or transposes of these."""
        if n_q > 1:
            return self._work(name, two_b, n, width, n_q)
        return self._work(name, n, two_b, width, n_q).transpose(0, 1)

    def chunks(self, n_tiles: int, budget: int) -> list[slice]:
        """Frequencies, as many at a time as the cache holds, or the budget."""
        longest = max(run.stop - run.start for run in self._layout.runs)
        width = max(c.shape[3] for c in self._coefficients)
        per_frequency = width * (2 * n_tiles * longest + 2 * self._dim_out)
        on_cpu = self._transfer.device.type == "cpu"
        held = min(_CACHED * torch.get_num_threads(), budget // 8) if on_cpu else budget // 8
        size = self._transfer.element_size() * per_frequency
        return chunks(len(self._transfer), size, held)

    def rows(self, spectra: list[Tensor], part: slice) -> list[Tensor]:
        """Real and imaginary parts of the inputs, each (2 B, f, C_i, Q_i)."""
        return [
            spectrum.flatten(0, 1)[:, part].unflatten(2, (len(channels), -1))
            for spectrum, channels in zip(spectra, self._layout.channels, strict=True)
        ]

    def grad_rows(self, rows: list[Tensor]) -> list[Tensor]:
        """Room for the gradients of `rows`, which are zero at first."""
        return [self._work(f"grad rows {i}", *r.shape).zero_() for i, r in enumerate(rows)]

    def mixed(self, n_tiles: int, part: slice, run: slice) -> Tensor:
        """Room for even and odd parts of the result, (2 B, f, 2 dim_out, Q)."""
        n, n_q = part.stop - part.start, run.stop - run.start
        return self._room("mixed", 2 * n_tiles, n, 2 * self._dim_out, n_q)

    @record_function("tripq: q-aggregation")
    def aggregate(self, i: int, s: int, rows: Tensor) -> Tensor:
        """Stage 1: (2 B, f, C_i B_i, Q)."""
        embedding = self._embeddings[i][s]
        run = self._layout.runs[s]
        flat = rows.flatten(1, 2)
        product = self._work("aggregated", *flat.shape[:2], embedding.shape[1])
        torch.bmm(flat, embedding.expand(len(flat), *embedding.shape), out=product)
        aggregated = product.view(*rows.shape[:2], -1, run.stop - run.start)
        if aggregated.shape[3] > 1:
            return aggregated
        return self._room("single", *aggregated.shape).copy_(aggregated)

    @record_function("tripq: q-aggregation")
    def aggregate_back(self, i: int, s: int, grad: Tensor, grad_rows: Tensor) -> None:
        """Add the gradient of the rows of `aggregate`."""
        embedding = self._embeddings[i][s]
        grad_rows.flatten(0, 2).addmm_(grad.reshape(-1, embedding.shape[1]), embedding.T)

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
        self,
        i: int,
        s: int,
        part: slice,
        grad: Tensor,
        weighted: Tensor,
        grads: Operands,
        needed: Operands,
    ) -> None:
        """Add the gradients of both factors of `join`, where they are needed.

        The one of the coefficients is for the `weighted` transfer functions, the one of the
        transfer functions is without these weights.
        """
        coefficients, grad_coefficients = self._coefficients[i][s], grads.coefficients[i][s]
        for half, some in self._by_parity(grad):
            if needed.coefficients[i]:
                grad_coefficients[some].flatten(1).addmm_(weighted[part, some].T, half)
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
        for k, (m, a) in enumerate(zip(matrices(mixed), matrices(aggregated), strict=True)):
            multiply(m, a.mT, total, beta=min(k, 1))
        return total
