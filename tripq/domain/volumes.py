"""Volumes: features of voxels as dense tensors on a grid, channels first, and back.

``graph.gather`` takes the voxels of a mask out of a tensor (B, C, X, Y, Z) or (B, C, X, Y, Z, Q);
``graph.scatter`` puts them back into zeros.  Each is the adjoint of the other, so each is also the
gradient of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tripq.domain.voxels import VoxelGrid


@dataclass(frozen=True, eq=False)
class Volumes:
    """Where the voxels of a graph lie in a tensor of volumes of one shape.

    Attributes
    ----------
    number : int
        How many volumes: the patches of all scans, B.
    shape : tuple of three int
        Of each, (X, Y, Z).
    index : Tensor of shape (4, V), int64
        Volume and x, y, z of each voxel.
    """

    number: int
    shape: tuple[int, int, int]
    index: Tensor

    @classmethod
    def of(cls, grids: Sequence[VoxelGrid | None]) -> Volumes:
        """The volumes of all scans, one list after the other.

        Raises
        ------
        ValueError
            If a scan is on no grid, or the volumes have several shapes.
        """
        known = [grid for grid in grids if grid is not None]
        if len(known) < len(grids):
            raise ValueError(
                "the voxels of this graph come from no volume: make it with PQGraph.from_grid"
            )
        whole = known[0]
        for grid in known[1:]:
            whole = whole.join(grid)
        if len(shapes := set(whole.shapes)) > 1:
            raise ValueError(
                "one tensor holds volumes of one shape, but those of this graph have the shapes "
                f"{', '.join(map(str, sorted(shapes)))}: crop or pad them before making the "
                "graph, or take them one by one"
            )
        return cls(len(whole.shapes), whole.shapes[0], whole.voxels.T.contiguous())

    def gather(self, volume: Tensor) -> Tensor:
        """(B, C, X, Y, Z) -> (V, C), or (B, C, X, Y, Z, Q) -> (V, Q, C)."""
        places = (volume.shape[0], *volume.shape[2:5])
        if volume.ndim not in (5, 6) or places != (self.number, *self.shape):
            raise ValueError(
                f"a tensor of shape {tuple(volume.shape)} does not fit the graph: it needs "
                f"(B, C, X, Y, Z) or (B, C, X, Y, Z, Q), here {self._fitting}"
            )
        patch, x, y, z = self.index
        features = volume[patch, :, x, y, z]
        return features if volume.ndim == 5 else features.transpose(1, 2)

    def scatter(self, values: Tensor) -> Tensor:
        """(V, C) -> (B, C, X, Y, Z), or (V, Q, C) -> (B, C, X, Y, Z, Q); 0 outside the mask."""
        if values.ndim not in (2, 3) or len(values) != self.index.shape[1]:
            raise ValueError(
                f"features of shape {tuple(values.shape)} do not fit the graph: it needs (V, C) or "
                f"(V, Q, C) with V = {self.index.shape[1]:,}; a map (V,) is x[:, None]"
            )
        features = values if values.ndim == 2 else values.transpose(1, 2)
        n_channels, *directions = features.shape[1:]
        patch, x, y, z = self.index
        volume = values.new_zeros(self.number, n_channels, *self.shape, *directions)
        volume[patch, :, x, y, z] = features
        return volume

    @property
    def _fitting(self) -> str:
        sizes = ", ".join(map(str, self.shape))
        return f"({self.number}, C, {sizes}) or ({self.number}, C, {sizes}, Q)"
