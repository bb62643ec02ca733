"""Tiles: boxes of one shape that cover the voxels of a grid, and their frequencies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from tripq.backends.spectral.transforms import (
    Shape,
    frequency_weights,
    ring_length,
    transform,
    work_of_transform,
)
from tripq.domain.voxels import flat_places
from tripq.infra.chunks import chunks


@dataclass(frozen=True, eq=False)
class Tiles:
    """Boxes of one shape that cover the voxels of a grid, as rings: their ends are joined.

    Each voxel is in the core of one tile, where it is an output, and in the halo of others.

    Attributes
    ----------
    shape, core : (int, int, int)
        Of a tile and of its core, which holds its first places.
    source : Tensor of shape (B, places), int64
        The voxel at each place of each tile, or V where there is none.
    voxels, places : tuple of B Tensors, int64
        The voxels in the core of each tile, and their places in the core.
    """

    shape: Shape
    core: Shape
    source: Tensor
    voxels: tuple[Tensor, ...]
    places: tuple[Tensor, ...]

    @classmethod
    def cut(cls, voxels: Tensor, margin: Shape, largest: int, others: int = 0) -> Tiles:
        """Tiles that take as little work as possible in all, with at most `largest` places.

        Parameters
        ----------
        voxels : Tensor of shape (V, 4), int64
            Volume, and indices in it.
        margin : (int, int, int)
            How far neighbours reach along each axis.
        largest : int
            Number of places; a tile of a single voxel and its neighbours may have more.
        others : int
            Multiply-adds for each feature of a place, besides its transforms.
        """
        voxels = voxels - voxels.amin(dim=0)
        volumes, *extent = (voxels.amax(dim=0) + 1).tolist()
        core, best, fewest = list(extent), list(extent), 0
        while True:
            shape = _tile_shape(core, extent, margin, voxels.device)
            number = len(_tile_of(voxels, core, extent).unique())
            total = number * prod(shape) * (others + work_of_transform(shape, voxels.device))
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
        device = voxels.device
        shape = _tile_shape(core, extent, margin, device)
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
        places = flat_places(inside, tuple(core))
        order = tile.argsort(stable=True)
        counts = tile.bincount().tolist()
        return cls(
            shape,
            (core[0], core[1], core[2]),
            source.flatten(1),
            order.split(counts),
            places[order].split(counts),
        )

    def groups(self, bytes_per_place: int, budget: int) -> Iterator[Tiles]:
        """A few tiles at a time, as many as the budget allows."""
        for some in chunks(len(self.voxels), bytes_per_place * prod(self.shape), budget):
            yield replace(
                self, source=self.source[some], voxels=self.voxels[some], places=self.places[some]
            )

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
        places = flat_places(steps % steps.new_tensor(self.shape), self.shape)
        box = functions.new_zeros(prod(self.shape), functions.shape[1], dtype=torch.float64)
        # Steps that are a whole ring apart share a place.
        box = box.index_add(0, places, functions.double()).view(1, *self.shape, -1)
        ((real, imaginary),) = transform(box, self.shape)
        parts = torch.cat([real[:, :n_even], -imaginary[:, n_even:]], dim=1)
        return parts.to(functions.dtype)

    def weights(self, like: Tensor) -> Tensor:
        """How often each frequency (F,) counts in the inverse transform, over the places."""
        along_z = frequency_weights(self.shape, like)
        return along_z.repeat(self.shape[0] * self.shape[1]) / prod(self.shape)


def _tile_shape(
    core: Sequence[int], extent: Sequence[int], margin: Shape, device: torch.device
) -> Shape:
    """With room for the halo, of which one side suffices where nothing lies beyond."""
    return tuple(  # type: ignore[return-value]
        ring_length(c + (m if c >= e else 2 * m), device)
        for c, e, m in zip(core, extent, margin, strict=True)
    )


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
