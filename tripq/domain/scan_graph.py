"""One scan, or a patch of one, as a graph: voxels, p-edges, and a q-space or none.

`ScanGraph` holds the positions of V voxels, the edges between those closer than a radius, and a
q-space of the voxels: a `QSpace` of Q directions that all share (features (V, Q, dim)), a
`NodeSpace` with a list of N nodes (features (N, dim)), or none (maps (V, dim)).  Operations on it
give another one: `within` a smaller radius, `to` another device, `joined` with a patch beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from tripq.domain.neighbours import closer_than
from tripq.domain.nodes import NodeSpace, nodes_on
from tripq.domain.qspace import QSpace
from tripq.domain.voxels import PEdges, VoxelGrid

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class ScanGraph:
    """The graph of one scan or patch.

    Attributes
    ----------
    p : Tensor of shape (V, 3), float64
        Voxel centres in mm, world axes.
    radius : float
        Voxels closer than this (mm) are joined.
    edges : PEdges
        The p-edges.
    q : QSpace, NodeSpace or None
        The q-space; None for maps without one.
    """

    p: Tensor
    radius: float
    edges: PEdges
    q: QSpace | NodeSpace | None = None

    @property
    def grid(self) -> VoxelGrid | None:
        """The volume that the voxels come from, if they come from one."""
        return self.edges.grid

    @property
    def n_voxels(self) -> int:
        """Number of voxels."""
        return len(self.p)

    @property
    def coordinates(self) -> list[Tensor]:
        """Tensors that can require gradients: positions, offsets, q-vectors, quadrature weights."""
        q = self.q
        coordinates = [self.p, self.edges.offsets]
        if self.edges.volumes is not None:
            coordinates.append(self.edges.volumes)
        if isinstance(q, QSpace):
            coordinates += [q.q_in, q.q_out, q.weights, q.reduction]
        elif isinstance(q, NodeSpace):
            coordinates += [q.q, q.q_out, q.edges.weights, q.reduction.weights]
        return coordinates

    def within(self, radius: float) -> ScanGraph:
        """The same scan, joined only up to `radius` mm."""
        if radius == self.radius:
            return self
        edges = self.edges.within(radius)
        if edges is self.edges:
            return replace(self, radius=radius)
        q = self.q
        if isinstance(q, NodeSpace):
            keep = closer_than(self.edges.offsets.detach().norm(dim=-1), radius)[self.edges.type]
            q = replace(
                q,
                edges=nodes_on(q.edges, keep),
                reduction=nodes_on(q.reduction, keep),
                expansion=nodes_on(q.expansion, keep),
            )
        return replace(self, radius=radius, edges=edges, q=q)

    def integrated(self, radius: float) -> ScanGraph:
        """The same scan with the p-edges of an integral over a ball; see `PEdges.integrated`."""
        scan = self if self.grid is not None else self.within(radius)
        return replace(scan, radius=radius, edges=scan.edges.integrated(radius))

    def to(self, device: torch.device) -> ScanGraph:
        """The same scan on another device; itself, with all it has kept, if it is there."""
        return _moved(self, device)

    def joined(self, other: ScanGraph) -> ScanGraph | None:
        """Both as one scan, if they are on grids with the same offsets and the same directions."""
        a, b = self, other
        if (
            a.grid is None
            or b.grid is None
            or a.radius != b.radius
            or a.edges.axes is None
            or b.edges.axes is None
            or not torch.equal(a.edges.axes, b.edges.axes)
            or not torch.equal(a.edges.offsets, b.edges.offsets)
            or not _same_q_space(a.q, b.q)
        ):
            return None
        edges = replace(a.edges, n_voxels=a.n_voxels + b.n_voxels, grid=a.grid.join(b.grid))
        return ScanGraph(torch.cat([a.p, b.p]), a.radius, edges, a.q)

    def __repr__(self) -> str:
        parts = [f"{self.n_voxels:,} voxels", f"{self.edges.n_edges:,} p-edges"]
        if self.grid is not None:
            parts.append(f"{len(self.edges.offsets)} edge types")
        if isinstance(self.q, QSpace):
            n_out, n_in = self.q.weights.shape
            parts.append(f"{n_in} directions" + (f" to {n_out}" if self.q.resampled else ""))
            parts.append(f"{int((self.q.weights != 0).sum()):,} q-edges")
            if exact := [f"{order}" for order in self.q.shells.orders if order]:
                parts.append(f"exact to order {' and '.join(exact)}")
        elif isinstance(self.q, NodeSpace):
            parts.append(f"{len(self.q.q):,} nodes")
            parts.append(f"{len(self.q.edges.dst):,} edges")
        return f"ScanGraph({', '.join(parts)}, radius {self.radius:g} mm)"


def _same_q_space(a: QSpace | NodeSpace | None, b: QSpace | NodeSpace | None) -> bool:
    if isinstance(a, QSpace) and isinstance(b, QSpace):
        return a is b or (
            torch.equal(a.q_in, b.q_in)
            and torch.equal(a.q_out, b.q_out)
            and torch.equal(a.weights, b.weights)
            and torch.equal(a.reduction, b.reduction)
            and a.given == b.given
        )
    return a is None and b is None


def _moved(value: T, device: torch.device) -> T:
    """A (nested) dataclass with all its tensors on `device`; itself if they are there."""
    if isinstance(value, Tensor):
        return value.to(device)  # type: ignore[return-value]
    if is_dataclass(value) and not isinstance(value, type):
        old: dict[str, Any] = {field.name: getattr(value, field.name) for field in fields(value)}
        new = {name: _moved(part, device) for name, part in old.items()}
        return replace(value, **new) if any(new[name] is not old[name] for name in old) else value
    return value
