"""The 6D domain: a point cloud of (voxel, gradient direction) nodes and its edges.

A node is a pair (p, q) of a voxel centre in millimetres and a q-vector, both in world axes.  Two
nodes are joined when their voxels are closer than a radius (p-edges) and their q-vectors are joined
(q-edges).  Where every voxel of a scan has the same gradient table, the edges are the product of
the two sets, and only the two sets are ever stored: 100,000 voxels with 81 neighbours and 64
directions make 3.3e10 edges, of 8.1e6 p-edges and 4,096 q-edges.

`PQGraph` is what a user makes and a layer takes: one scan or a batch of them.  Its parts:

* `ScanGraph`, one scan (or a patch of one): voxels, `PEdges`, and a q-space, which is
* a `QSpace` shared by all voxels, or a `NodeSpace` with a list of nodes, or None.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from tripq.adjacency import Adjacency
from tripq.kept import kept, kept_property, kept_with_owner, ordinary_tensors
from tripq.neighbours import closer_than, grid_neighbours, grid_offsets, point_neighbours
from tripq.tracing import constant, traced_as_one_call

QEdges = Literal["full", "shell"]

#: q-vectors whose lengths differ by less than this share of the larger one are on one shell: 7 %
#: in |q| is 14 % in b, more than the spread within a shell and less than the step between shells.
SHELL_TOLERANCE = 0.07

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a scan stand in its volume, or in those of its patches.

    Attributes
    ----------
    shapes : tuple of (int, int, int)
        Of each volume.
    voxels : Tensor of shape (V, 4), int64
        Volume and indices in it, in the order of ``np.argwhere(mask)``.
    """

    shapes: tuple[tuple[int, int, int], ...]
    voxels: Tensor

    def join(self, other: Grid) -> Grid:
        """The volumes of both, one list after the other."""
        shift = torch.tensor([len(self.shapes), 0, 0, 0], device=self.voxels.device)
        return Grid(self.shapes + other.shapes, torch.cat([self.voxels, other.voxels + shift]))

    @kept_property
    def cropped(self) -> tuple[tuple[int, int, int, int], Tensor]:
        """Shape (volumes, x, y, z) of the smallest boxes around the voxels, flat places in them."""
        low = self.voxels.amin(dim=0)
        n, x, y, z = (self.voxels.amax(dim=0) - low + 1).tolist()
        strides = torch.tensor([x * y * z, y * z, z, 1], device=self.voxels.device)
        return (n, x, y, z), ((self.voxels - low) * strides).sum(dim=1)


@dataclass(frozen=True, eq=False)
class PEdges:
    """Edges between the voxels of a scan, each with the type of its offset.

    Attributes
    ----------
    n_voxels : int
        How many voxels they join.
    offsets : Tensor of shape (T, 3), float64
        Offsets p_out - p_in in mm, one for each edge type.
    pairs : Tensor of shape (3, E), int64, or None
        Output voxel, input voxel and edge type of each edge, ordered by output voxel; None on a
        grid, whose edges follow from the table.
    table : Tensor of shape (V, T), int64, or None
        On a grid a voxel has at most one neighbour of each type: its number, or V where there is
        none.  None for irregular points, where every edge is a type of its own.
    grid : Grid or None
        Where the voxels stand, on a grid.
    steps : Tensor of shape (T, 3), int64, or None
        The offsets in voxel indices, on a grid.
    """

    n_voxels: int
    offsets: Tensor
    pairs: Tensor | None = None
    table: Tensor | None = None
    grid: Grid | None = None
    steps: Tensor | None = None

    @classmethod
    def on_grid(cls, offsets: Tensor, steps: Tensor, table: Tensor, grid: Grid) -> PEdges:
        """Edges of a grid, from its table of neighbours."""
        return cls(len(table), offsets, None, table, grid, steps)

    @classmethod
    def listed(
        cls, n_voxels: int, offsets: Tensor, dst: Tensor, src: Tensor, type_: Tensor
    ) -> PEdges:
        """Edges one by one, ordered by output voxel."""
        return cls(n_voxels, offsets, torch.stack([dst, src, type_]))

    @kept_property
    def edge_list(self) -> Tensor:
        """All edges as `pairs`, on a grid too."""
        if self.pairs is not None:
            return self.pairs
        assert self.table is not None
        dst, type_ = torch.nonzero(self.table < len(self.table), as_tuple=True)
        return torch.stack([dst, self.table[dst, type_], type_])

    @property
    def dst(self) -> Tensor:
        """Output voxel of each edge, shape (E,)."""
        return self.edge_list[0]

    @property
    def src(self) -> Tensor:
        """Input voxel of each edge, shape (E,)."""
        return self.edge_list[1]

    @property
    def type(self) -> Tensor:
        """Edge type of each edge, shape (E,)."""
        return self.edge_list[2]

    @kept_property
    def n_edges(self) -> int:
        """Number of edges; on a grid they need not be listed for it."""
        if self.table is None:
            return self.edge_list.shape[1]
        return int((self.table < len(self.table)).sum())

    @kept_property
    def margin(self) -> tuple[int, int, int]:
        """How many voxels the longest offset reaches along each axis of a grid."""
        assert self.steps is not None
        x, y, z = self.steps.abs().amax(dim=0).tolist()
        return x, y, z

    @kept_property
    def adjacency(self) -> Adjacency:
        """The edges listed by each end and by type."""
        return Adjacency.build(
            self.dst, self.src, self.type, self.n_voxels, self.n_voxels, len(self.offsets)
        )

    @kept_property
    def transposed_table(self) -> Tensor | None:
        """The output voxel for each (input voxel, type), V where there is none."""
        if self.table is None:
            return None
        transposed = torch.full_like(self.table, len(self.table))
        transposed[self.src, self.type] = self.dst
        return transposed

    def within(self, radius: float) -> PEdges:
        """The edges shorter than `radius` mm."""
        keep = closer_than(self.offsets.detach().norm(dim=-1), radius)
        if bool(keep.all()):
            return self
        if self.table is not None and self.steps is not None and self.grid is not None:
            return PEdges.on_grid(
                self.offsets[keep], self.steps[keep], self.table[:, keep], self.grid
            )
        kept = keep[self.type]
        renumbered = torch.cumsum(keep, 0) - 1
        return PEdges.listed(
            self.n_voxels,
            self.offsets[keep],
            self.dst[kept],
            self.src[kept],
            renumbered[self.type[kept]],
        )


@dataclass(frozen=True, eq=False)
class QSpace:
    """The q-space shared by all voxels of a scan: directions in, directions out, q-edges.

    Attributes
    ----------
    q_in : Tensor of shape (Q_in, 3), float64
        q-vectors of the input features, in world axes, |q| = sqrt(b / b_ref).
    q_out : Tensor of shape (Q_out, 3), float64
        q-vectors of the output features.
    resampled : bool
        Whether the output has a sampling of its own.
    weights : Tensor of shape (Q_out, Q_in), float64
        Quadrature weight of each q-edge, 0 where there is no edge.
    reduction : Tensor of shape (1, Q_in), float64
        Quadrature weights where q-space is reduced to a single output.
    """

    q_in: Tensor
    q_out: Tensor
    resampled: bool
    weights: Tensor
    reduction: Tensor

    @classmethod
    @kept
    def none(cls, device: torch.device) -> QSpace:
        """The q-space of a map without one: a single direction, of length 0."""
        origin = torch.zeros(1, 3, dtype=torch.float64, device=device)
        one = torch.ones(1, 1, dtype=torch.float64, device=device)
        return cls(origin, origin, False, one, one)

    @kept_property
    def reduced(self) -> QSpace:
        """The same input, joined to a single output at q = 0."""
        origin = torch.zeros_like(self.q_in[:1])
        return QSpace(self.q_in, origin, True, self.reduction, self.reduction)

    @kept_property
    def q_max(self) -> float:
        """The largest |q|."""
        return _longest(torch.cat([self.q_in, self.q_out]))


@dataclass(frozen=True, eq=False)
class NodeEdges:
    """Edges between nodes: output node, input node, the p-edge they lie on, quadrature weight."""

    dst: Tensor
    src: Tensor
    p_edge: Tensor
    weights: Tensor


@dataclass(frozen=True, eq=False)
class NodeSpace:
    """A q-space of its own at every voxel: a list of nodes and the edges between them.

    Attributes
    ----------
    voxel, q : Tensors of shape (N,) and (N, 3)
        Voxel and q-vector of the input nodes.
    voxel_out, q_out : Tensors of shape (N_out,) and (N_out, 3)
        The same for the output nodes.
    resampled : bool
        Whether the output nodes are other nodes than the input ones.
    edges : NodeEdges
        From input to output nodes.
    reduction : NodeEdges
        From input nodes to one output at q = 0 for each voxel.
    n_voxels : int
        Number of voxels.
    """

    voxel: Tensor
    q: Tensor
    voxel_out: Tensor
    q_out: Tensor
    resampled: bool
    edges: NodeEdges
    reduction: NodeEdges
    n_voxels: int

    @kept_property
    def reduced(self) -> NodeSpace:
        """The same input nodes, joined to one output at q = 0 in every voxel."""
        every_voxel = torch.arange(self.n_voxels, device=self.q.device)
        origins = self.q.new_zeros(self.n_voxels, 3)
        return replace(
            self,
            voxel_out=every_voxel,
            q_out=origins,
            resampled=True,
            edges=self.reduction,
        )

    @kept_property
    def q_max(self) -> float:
        """The largest |q|."""
        return _longest(torch.cat([self.q, self.q_out]))


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
    def grid(self) -> Grid | None:
        """The volume that the voxels come from, if they come from one."""
        return self.edges.grid

    @property
    def n_voxels(self) -> int:
        """Number of voxels."""
        return len(self.p)

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
                edges=_nodes_on(q.edges, keep),
                reduction=_nodes_on(q.reduction, keep),
            )
        return replace(self, radius=radius, edges=edges, q=q)

    def __repr__(self) -> str:
        parts = [f"{self.n_voxels:,} voxels", f"{self.edges.n_edges:,} p-edges"]
        if self.edges.table is not None:
            parts.append(f"{len(self.edges.offsets)} edge types")
        if isinstance(self.q, QSpace):
            n_out, n_in = self.q.weights.shape
            parts.append(f"{n_in} directions" + (f" to {n_out}" if self.q.resampled else ""))
            parts.append(f"{int((self.q.weights != 0).sum()):,} q-edges")
        elif isinstance(self.q, NodeSpace):
            parts.append(f"{len(self.q.q):,} nodes")
            parts.append(f"{len(self.q.edges.dst):,} edges")
        return f"ScanGraph({', '.join(parts)}, radius {self.radius:g} mm)"


@constant
class PQGraph:
    """The 6D domain of a layer: (voxel, direction) nodes of one scan or of a batch of scans.

    Make one with `from_grid`, `from_points` or `from_nodes`; join several with `merge`.  Features
    on it have the shape (V, Q, dim): the voxels of all scans in a row, and where scans have
    different numbers of directions, rows padded to the longest (see `stack`).  On a graph made by
    `from_nodes` they have the shape (N, dim); maps without q-space have the shape (V, dim).

    Parameters
    ----------
    scans : sequence of ScanGraph
        The scans; all with a shared q-space, or all with nodes, or all without q-space.

    Examples
    --------
    >>> mask = np.ones((4, 4, 4), bool)
    >>> q = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    >>> PQGraph.from_grid(mask, np.diag([2.0, 2, 2, 1]), q, radius=2.5)
    PQGraph(64 voxels, 352 p-edges, 7 edge types, 3 directions, 9 q-edges, radius 2.5 mm)
    """

    def __init__(self, scans: Sequence[ScanGraph]) -> None:
        if not scans:
            raise ValueError("a graph needs at least one scan")
        kinds = {type(scan.q) for scan in scans}
        if len(kinds) > 1:
            raise ValueError(
                "graphs with a shared gradient table, graphs of nodes and graphs without q-space "
                "cannot be merged with each other"
            )
        self.scans = tuple(scans)

    # One graph is one constant of a compiled program.
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    # -- making one ----------------------------------------------------------------------------

    @classmethod
    @ordinary_tensors()
    def from_grid(
        cls,
        mask: ArrayLike,
        affine: ArrayLike,
        q: ArrayLike | Tensor | None,
        radius: float,
        *,
        q_edges: QEdges | ArrayLike | Tensor = "full",
        q_out: ArrayLike | Tensor | None = None,
        q_weights: ArrayLike | Tensor | None = None,
    ) -> PQGraph:
        """The voxels of a mask, joined when closer than `radius` in world space.

        Parameters
        ----------
        mask : array of shape (X, Y, Z)
            Nonzero voxels take part, in the order of ``np.argwhere(mask)``.
        affine : array of shape (4, 4)
            Voxel indices to mm in world axes; any voxel size and obliqueness.
        q : array of shape (Q, 3), or None
            q-vectors in world axes, |q| = sqrt(b / b_ref); None for maps without q-space.
        radius : float
            In mm; 0 joins each voxel with itself only.
        q_edges : "full", "shell", or integer array of shape (2, M)
            Every direction with every direction (the paper's sum), only directions of one shell,
            or given pairs (output direction, input direction).
        q_out : array of shape (Q_out, 3), optional
            Directions of the output, where they are others than those of the input.
        q_weights : array of shape (Q,), optional
            Quadrature weights of the input directions, used as they are.  Default: the mean over
            the directions that an output is joined with.

        Raises
        ------
        ValueError
            For a mask that is not 3D, a singular affine, a negative radius, or values that are not
            finite.
        """
        values = np.asarray(mask)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError("the mask holds values that are not finite")
        selected = values != 0
        if selected.ndim != 3:
            raise ValueError(f"the mask must be 3D, not of shape {selected.shape}")
        matrix = np.asarray(affine, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise ValueError("the affine must be a finite matrix of shape (4, 4)")
        linear = matrix[:3, :3]
        if abs(np.linalg.det(linear)) < 1e-12:
            raise ValueError("the affine is singular: it has a voxel axis of no length")
        offsets = grid_offsets(linear, _checked_radius(radius))
        voxels = np.argwhere(selected)
        x, y, z = selected.shape
        edges = PEdges.on_grid(
            torch.from_numpy(offsets @ linear.T),
            torch.from_numpy(offsets),
            torch.from_numpy(grid_neighbours(selected, offsets)),
            Grid(((x, y, z),), torch.from_numpy(np.pad(voxels, ((0, 0), (1, 0))))),
        )
        scan = ScanGraph(
            torch.from_numpy(voxels @ linear.T + matrix[:3, 3]),
            float(radius),
            edges,
            _q_space(q, q_edges, q_out, q_weights),
        )
        return cls((scan,))

    @classmethod
    @ordinary_tensors()
    def from_points(
        cls,
        p: ArrayLike | Tensor,
        q: ArrayLike | Tensor | None,
        radius: float,
        *,
        q_edges: QEdges | ArrayLike | Tensor = "full",
        q_out: ArrayLike | Tensor | None = None,
        q_weights: ArrayLike | Tensor | None = None,
    ) -> PQGraph:
        """Any voxel centres `p` (V, 3) in mm, all with the same directions; else as `from_grid`."""
        points = _vectors(p, "p")
        scan = ScanGraph(
            points,
            float(radius),
            _point_edges(points, radius),
            _q_space(q, q_edges, q_out, q_weights),
        )
        return cls((scan,))

    @classmethod
    @ordinary_tensors()
    def from_nodes(
        cls,
        p: ArrayLike | Tensor,
        q: ArrayLike | Tensor,
        radius: float,
        *,
        q_edges: QEdges | ArrayLike | Tensor = "full",
        p_out: ArrayLike | Tensor | None = None,
        q_out: ArrayLike | Tensor | None = None,
        q_weights: ArrayLike | Tensor | None = None,
    ) -> PQGraph:
        """An arbitrary list of nodes, each with a q-vector of its own.

        For tables that differ from voxel to voxel, as the nonlinearity of the gradients makes them.

        Parameters
        ----------
        p, q : arrays of shape (N, 3)
            Voxel centre (mm) and q-vector of each node; nodes with equal `p` are of one voxel.
        radius : float
            In mm.
        q_edges : "full", "shell", or integer array of shape (2, M)
            As in `from_grid`; given pairs are (output node, input node) and lie within `radius`.
        p_out, q_out : arrays of shape (N_out, 3), optional
            Output nodes, where they are others than the input nodes.
        q_weights : array of shape (N,), optional
            Quadrature weights of the input nodes, used as they are.  Default: for each output node
            the mean over the nodes of every voxel that it is joined with.

        Raises
        ------
        ValueError
            For lists of different lengths, values that are not finite, or given pairs farther
            apart than `radius`.
        """
        p_in, q_in = _vectors(p, "p"), _vectors(q, "q")
        if len(p_in) != len(q_in):
            raise ValueError(f"{len(p_in)} voxel centres but {len(q_in)} q-vectors")
        if (p_out is None) != (q_out is None):
            raise ValueError("give both p_out and q_out, or neither")
        resampled = p_out is not None and q_out is not None
        p_to = _vectors(p_out, "p_out") if p_out is not None else p_in
        q_to = _vectors(q_out, "q_out") if q_out is not None else q_in
        if len(p_to) != len(q_to):
            raise ValueError(f"{len(p_to)} output centres but {len(q_to)} output q-vectors")

        points, voxel = _unique_rows(torch.cat([p_in, p_to]))
        voxel_in, voxel_to = voxel[: len(p_in)], voxel[len(p_in) :]
        edges = _point_edges(points, radius)
        weights = None if q_weights is None else _weights(q_weights, len(q_in))
        every_voxel = torch.arange(len(points))
        origins = torch.zeros(len(points), 3, dtype=torch.float64)
        nodes = NodeSpace(
            voxel_in,
            q_in,
            voxel_to,
            q_to,
            resampled,
            _node_edges(edges, voxel_to, q_to, voxel_in, q_in, q_edges, weights),
            _node_edges(edges, every_voxel, origins, voxel_in, q_in, "full", weights),
            len(points),
        )
        return cls((ScanGraph(points, float(radius), edges, nodes),))

    @classmethod
    @ordinary_tensors()
    def merge(cls, graphs: Sequence[PQGraph]) -> PQGraph:
        """One graph of several patches or scans, each with its own gradient table.

        Nothing is joined across scans.  Neighbours in the list that share offsets and directions
        (patches of one scan) become one part, so that a layer evaluates them at once.

        Examples
        --------
        >>> patch = PQGraph.from_grid(np.ones((2, 1, 1)), np.eye(4), np.eye(3), 1.5)
        >>> PQGraph.merge([patch, patch])
        PQGraph(4 voxels, 8 p-edges, 19 edge types, 3 directions, 9 q-edges, radius 1.5 mm)
        """
        scans: list[ScanGraph] = []
        for scan in (scan for graph in graphs for scan in graph.scans):
            joined = _join(scans[-1], scan) if scans else None
            if joined is None:
                scans.append(scan)
            else:
                scans[-1] = joined
        return cls(scans)

    # -- using one -----------------------------------------------------------------------------

    @property
    def n_voxels(self) -> int:
        """Number of voxels of all scans."""
        return sum(scan.n_voxels for scan in self.scans)

    @property
    def radius(self) -> float:
        """The radius (mm) up to which all scans are joined."""
        return min(scan.radius for scan in self.scans)

    @property
    def p(self) -> Tensor:
        """Voxel centres of all scans, shape (V, 3), mm."""
        return torch.cat([scan.p for scan in self.scans])

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.scans[0].p.device

    @property
    def requires_grad(self) -> bool:
        """Whether any of its coordinates or quadrature weights does."""
        return any(t.requires_grad for scan in self.scans for t in _coordinates(scan))

    def within(self, radius: float) -> PQGraph:
        """The same graph, joined only up to `radius` mm; kept for the next call."""
        if all(scan.radius == radius for scan in self.scans):
            return self
        if radius > self.radius * (1 + 1e-6):
            raise ValueError(
                f"this graph joins voxels closer than {self.radius:g} mm, and a neighbourhood of "
                f"{radius:g} mm is asked of it: build the graph with radius={radius:g} or more"
            )
        narrowed: PQGraph = _narrowed(self, radius)
        return narrowed

    def split(self, x: Tensor, counts: Sequence[int]) -> Iterator[tuple[ScanGraph, Tensor]]:
        """Each scan with its rows of `x`, of which it has `counts`."""
        if len(x) != sum(counts):
            raise ValueError(
                f"the features have {len(x):,} rows, but the graph has {sum(counts):,}: {self!r}"
            )
        return zip(self.scans, x.split(list(counts)), strict=True)

    def stack(self, features: Sequence[Tensor]) -> Tensor:
        """Features of the scans of a batch in one tensor.

        Parameters
        ----------
        features : sequence of Tensors of shape (V_i, Q_i, ...)
            One for each graph that was merged, in that order.

        Returns
        -------
        Tensor of shape (V, max Q_i, ...)
            Where a scan has fewer directions, its rows end in zeros, which no layer reads.
        """
        return pad_rows(features)

    def filled(self, x: Tensor) -> Tensor | None:
        """Which rows of features (V, Q, ...) belong to directions; None if all do."""
        return None if x.ndim < 3 or len(self.scans) == 1 else _filled_rows(self, x.shape[1])

    @ordinary_tensors()
    def to(self, device: torch.device | str) -> PQGraph:
        """The same graph on another device; itself, with all it has kept, if it is there."""
        scans = [_moved(scan, torch.device(device)) for scan in self.scans]
        there = all(new is old for new, old in zip(scans, self.scans, strict=True))
        return self if there else PQGraph(scans)

    def __len__(self) -> int:
        return self.n_voxels

    def __repr__(self) -> str:
        if len(self.scans) == 1:
            return "PQ" + repr(self.scans[0]).removeprefix("Scan")
        listed = ", ".join(repr(scan) for scan in self.scans)
        return f"PQGraph({self.n_voxels:,} voxels of {len(self.scans)} scans: {listed})"


def _coordinates(scan: ScanGraph) -> list[Tensor]:
    q = scan.q
    coordinates = [scan.p, scan.edges.offsets]
    if isinstance(q, QSpace):
        coordinates += [q.q_in, q.q_out, q.weights, q.reduction]
    elif isinstance(q, NodeSpace):
        coordinates += [q.q, q.q_out, q.edges.weights, q.reduction.weights]
    return coordinates


@traced_as_one_call
def _filled_rows(graph: PQGraph, longest: int) -> Tensor | None:
    mask = _filled(graph, longest)
    return None if mask is None else mask.clone()


@kept_with_owner
def _narrowed(graph: PQGraph, radius: float) -> PQGraph:
    return PQGraph([scan.within(radius) for scan in graph.scans])


@kept_with_owner
def _filled(graph: PQGraph, longest: int) -> Tensor | None:
    directions = [len(scan.q.q_out) for scan in graph.scans if isinstance(scan.q, QSpace)]
    if all(number >= longest for number in directions):
        return None
    voxels = torch.tensor([scan.n_voxels for scan in graph.scans], device=graph.device)
    counts = torch.tensor(directions, device=graph.device).repeat_interleave(voxels)
    return torch.arange(longest, device=graph.device) < counts[:, None]


def pad_rows(features: Sequence[Tensor]) -> Tensor:
    """Concatenate (V_i, Q_i, ...) along the voxels, the directions padded to the longest row."""
    if features[0].ndim < 2:
        return torch.cat(list(features))
    longest = max(x.shape[1] for x in features)
    padded = []
    for x in features:
        missing = longest - x.shape[1]
        if missing:
            x = torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], dim=1)
        padded.append(x)
    return torch.cat(padded)


# -- checks of what enters -----------------------------------------------------------------------


def _tensor(values: ArrayLike | Tensor) -> Tensor:
    if isinstance(values, Tensor):
        # A tensor of inference mode would keep the whole graph out of training.
        return (values.clone() if values.is_inference() else values).to("cpu", torch.float64)
    return torch.from_numpy(np.array(values, dtype=np.float64))


def _vectors(values: ArrayLike | Tensor, name: str) -> Tensor:
    vectors = _tensor(values)
    if vectors.ndim != 2 or vectors.shape[1] != 3:
        raise ValueError(f"{name} must have the shape (n, 3), not {tuple(vectors.shape)}")
    if not bool(torch.isfinite(vectors).all()):
        raise ValueError(f"{name} holds values that are not finite")
    return vectors


def _weights(values: ArrayLike | Tensor, number: int) -> Tensor:
    weights = _tensor(values)
    if weights.shape != (number,) or not bool(torch.isfinite(weights).all()):
        raise ValueError(
            f"q_weights must be {number} finite numbers, not of shape {tuple(weights.shape)}"
        )
    return weights


def _checked_radius(radius: float) -> float:
    if not 0 <= radius < float("inf"):
        raise ValueError(f"the radius must be a length in mm, not {radius}")
    return float(radius)


def _longest(q: Tensor) -> float:
    return float(q.detach().norm(dim=-1).max()) if len(q) else 0.0


# -- q-space -------------------------------------------------------------------------------------


def _q_space(
    q: ArrayLike | Tensor | None,
    q_edges: QEdges | ArrayLike | Tensor,
    q_out: ArrayLike | Tensor | None,
    q_weights: ArrayLike | Tensor | None,
) -> QSpace | None:
    if q is None:
        if q_out is not None or q_weights is not None:
            raise ValueError("q_out and q_weights need q: this graph has no q-space")
        return None
    q_in = _vectors(q, "q")
    if not len(q_in):
        raise ValueError("q holds no directions: for maps without q-space give q=None")
    q_to = q_in if q_out is None else _vectors(q_out, "q_out")
    joined = _joined_directions(q_to, q_in, q_edges)
    if q_weights is None:
        weights = joined / joined.sum(dim=1, keepdim=True).clamp(min=1)
        reduction = torch.full((1, len(q_in)), 1 / max(len(q_in), 1), dtype=torch.float64)
    else:
        given = _weights(q_weights, len(q_in))
        weights, reduction = joined * given, given[None, :]
    return QSpace(q_in, q_to, q_out is not None, weights, reduction)


def _joined_directions(q_out: Tensor, q_in: Tensor, q_edges: QEdges | ArrayLike | Tensor) -> Tensor:
    """1.0 where two directions are joined, else 0.0; shape (Q_out, Q_in)."""
    shape = (len(q_out), len(q_in))
    if isinstance(q_edges, str):
        if q_edges == "full":
            return torch.ones(shape, dtype=torch.float64)
        if q_edges == "shell":
            return _same_shell(q_out[:, None], q_in[None, :]).to(torch.float64)
        raise ValueError(f'q_edges must be "full", "shell" or pairs of indices, not {q_edges!r}')
    pairs = _pairs(q_edges, *shape)
    joined = torch.zeros(shape, dtype=torch.float64)
    joined[pairs[0], pairs[1]] = 1.0
    return joined


def _same_shell(q_a: Tensor, q_b: Tensor) -> Tensor:
    a, b = q_a.detach().norm(dim=-1), q_b.detach().norm(dim=-1)
    return (a - b).abs() <= SHELL_TOLERANCE * torch.maximum(a, b)


def _pairs(q_edges: ArrayLike | Tensor, n_out: int, n_in: int) -> Tensor:
    pairs = torch.as_tensor(np.asarray(q_edges))
    if pairs.ndim != 2 or pairs.shape[0] != 2 or pairs.dtype.is_floating_point:
        raise ValueError("given q_edges must be integers of shape (2, M): outputs, then inputs")
    pairs = pairs.to(torch.int64)
    for row, number, name in ((pairs[0], n_out, "output"), (pairs[1], n_in, "input")):
        if len(row) and (int(row.min()) < 0 or int(row.max()) >= number):
            raise ValueError(f"q_edges names an {name} outside 0..{number - 1}")
    return pairs


# -- edges ---------------------------------------------------------------------------------------


def _point_edges(points: Tensor, radius: float) -> PEdges:
    dst, src = (
        torch.from_numpy(index)
        for index in point_neighbours(_numbers(points), _checked_radius(radius))
    )
    offsets = points[dst] - points[src]
    return PEdges.listed(len(points), offsets, dst, src, torch.arange(len(dst)))


def _numbers(points: Tensor) -> NDArray[np.float64]:
    """Coordinates as an array; inside `torch.func`, too, whose tensors share no memory."""
    return np.array(points.detach().tolist()).reshape(points.shape)


def _unique_rows(points: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct rows in order of appearance, and the number of each row among them."""
    _, first, inverse = np.unique(_numbers(points), axis=0, return_index=True, return_inverse=True)
    appearance = np.argsort(first, kind="stable")
    rank = np.empty_like(appearance)
    rank[appearance] = np.arange(len(appearance))
    return points[torch.from_numpy(first[appearance])], torch.from_numpy(rank[inverse.ravel()])


def _node_edges(
    edges: PEdges,
    voxel_out: Tensor,
    q_out: Tensor,
    voxel_in: Tensor,
    q_in: Tensor,
    q_edges: QEdges | ArrayLike | Tensor,
    weights: Tensor | None,
) -> NodeEdges:
    if isinstance(q_edges, str):
        dst, src, p_edge = _all_node_pairs(edges, voxel_out, voxel_in)
        if q_edges == "shell":
            keep = _same_shell(q_out[dst], q_in[src])
            dst, src, p_edge = dst[keep], src[keep], p_edge[keep]
        elif q_edges != "full":
            raise ValueError(
                f'q_edges must be "full", "shell" or pairs of indices, not {q_edges!r}'
            )
    else:
        dst, src = _pairs(q_edges, len(q_out), len(q_in))
        p_edge = _edge_between(edges, voxel_out[dst], voxel_in[src])
    if weights is not None:
        return NodeEdges(dst, src, p_edge, weights[src])
    key = dst * max(len(edges.dst), 1) + p_edge
    _, inverse, count = torch.unique(key, return_inverse=True, return_counts=True)
    return NodeEdges(dst, src, p_edge, 1.0 / count[inverse].to(torch.float64))


def _all_node_pairs(
    edges: PEdges, voxel_out: Tensor, voxel_in: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Every (output node, input node, p-edge) whose voxels are joined by the p-edge."""
    n_voxels = int(max([-1, *(int(v.max()) for v in (voxel_out, voxel_in) if len(v))])) + 1
    out_order, in_order = (
        torch.argsort(voxel_out, stable=True),
        torch.argsort(voxel_in, stable=True),
    )
    out_count = torch.bincount(voxel_out, minlength=n_voxels)
    in_count = torch.bincount(voxel_in, minlength=n_voxels)
    out_start = torch.cumsum(out_count, 0) - out_count
    in_start = torch.cumsum(in_count, 0) - in_count
    pairs = out_count[edges.dst] * in_count[edges.src]
    p_edge = torch.repeat_interleave(torch.arange(len(edges.dst)), pairs)
    rank = torch.arange(len(p_edge)) - (torch.cumsum(pairs, 0) - pairs)[p_edge]
    width = in_count[edges.src][p_edge]
    dst = out_order[out_start[edges.dst][p_edge] + rank // width.clamp(min=1)]
    src = in_order[in_start[edges.src][p_edge] + rank % width.clamp(min=1)]
    return dst, src, p_edge


def _edge_between(edges: PEdges, voxel_out: Tensor, voxel_in: Tensor) -> Tensor:
    """Number of the p-edge between each pair of voxels."""
    number = {
        pair: i for i, pair in enumerate(zip(edges.dst.tolist(), edges.src.tolist(), strict=True))
    }
    wanted = list(zip(voxel_out.tolist(), voxel_in.tolist(), strict=True))
    far = [pair for pair in wanted if pair not in number]
    if far:
        raise ValueError(f"q_edges joins {len(far)} pairs of nodes that are beyond the radius")
    return torch.tensor([number[pair] for pair in wanted], dtype=torch.int64)


def _nodes_on(edges: NodeEdges, keep: Tensor) -> NodeEdges:
    """The edges between nodes whose p-edge is kept, the p-edges renumbered."""
    kept = keep[edges.p_edge]
    renumbered = torch.cumsum(keep, 0) - 1
    return NodeEdges(
        edges.dst[kept], edges.src[kept], renumbered[edges.p_edge[kept]], edges.weights[kept]
    )


# -- joining and moving --------------------------------------------------------------------------


def _join(a: ScanGraph, b: ScanGraph) -> ScanGraph | None:
    """Both as one scan, if they are on grids with the same offsets and the same directions."""
    if (
        a.edges.table is None
        or b.edges.table is None
        or a.edges.steps is None
        or a.grid is None
        or b.grid is None
        or a.radius != b.radius
        or not torch.equal(a.edges.offsets, b.edges.offsets)
        or not _same_q_space(a.q, b.q)
    ):
        return None
    number = a.n_voxels + b.n_voxels
    table = torch.cat(
        [
            torch.where(a.edges.table == a.n_voxels, number, a.edges.table),
            torch.where(b.edges.table == b.n_voxels, number, b.edges.table + a.n_voxels),
        ]
    )
    edges = PEdges.on_grid(a.edges.offsets, a.edges.steps, table, a.grid.join(b.grid))
    return ScanGraph(torch.cat([a.p, b.p]), a.radius, edges, a.q)


def _same_q_space(a: QSpace | NodeSpace | None, b: QSpace | NodeSpace | None) -> bool:
    if isinstance(a, QSpace) and isinstance(b, QSpace):
        return a is b or (
            torch.equal(a.q_in, b.q_in)
            and torch.equal(a.q_out, b.q_out)
            and torch.equal(a.weights, b.weights)
            and torch.equal(a.reduction, b.reduction)
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
