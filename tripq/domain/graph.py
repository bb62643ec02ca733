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
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tripq.domain.checks import checked_radius, coordinates, vectors_of, weights_of
from tripq.domain.neighbours import closer_than, grid_neighbours, grid_offsets
from tripq.domain.nodes import (
    NodeSpace,
    centres,
    check_voxel_numbers,
    node_edges,
    nodes_on,
    voxel_numbers,
    voxels_of,
)
from tripq.domain.qspace import QEdges, QSpace, shared_q_space
from tripq.domain.volumes import Volumes
from tripq.domain.voxels import PEdges, VoxelGrid, point_edges
from tripq.infra.kept import kept_with_owner, ordinary_tensors
from tripq.infra.tracing import constant, traced_as_one_call

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


@dataclass(frozen=True)
class Extent:
    """How long features on one graph are, whatever it has been merged with since.

    Attributes
    ----------
    voxels : int
        Rows of maps without q-space.
    rows_in, rows_out : int
        Rows of features: the voxels again, or the input and the output nodes.
    directions_in, directions_out : int
        Of a gradient table that all voxels share; of several tables, the longest.  Else 0.
    """

    voxels: int
    rows_in: int
    rows_out: int
    directions_in: int = 0
    directions_out: int = 0

    @classmethod
    def of(cls, scans: Sequence[ScanGraph]) -> Extent:
        """Of the graph of some scans."""
        voxels = sum(scan.n_voxels for scan in scans)
        nodes = [scan.q for scan in scans if isinstance(scan.q, NodeSpace)]
        if nodes:
            return cls(voxels, sum(len(q.q) for q in nodes), sum(len(q.q_out) for q in nodes))
        spaces = [scan.q for scan in scans if isinstance(scan.q, QSpace)]
        return cls(
            voxels,
            voxels,
            voxels,
            max((len(q.q_in) for q in spaces), default=0),
            max((len(q.q_out) for q in spaces), default=0),
        )


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
    merged : sequence of Extent, optional
        What `split` gives back.  Default: each scan.

    Examples
    --------
    >>> mask = np.ones((4, 4, 4), bool)
    >>> q = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    >>> PQGraph.from_grid(mask, np.diag([2.0, 2, 2, 1]), q, radius=2.5)
    PQGraph(64 voxels, 352 p-edges, 7 edge types, 3 directions, 9 q-edges, radius 2.5 mm)
    """

    def __init__(self, scans: Sequence[ScanGraph], merged: Sequence[Extent] | None = None) -> None:
        if not scans:
            raise ValueError("a graph needs at least one scan")
        kinds = {type(scan.q) for scan in scans}
        if len(kinds) > 1:
            raise ValueError(
                "graphs with a shared gradient table, graphs of nodes and graphs without q-space "
                "cannot be merged with each other"
            )
        self.scans = tuple(scans)
        self.merged = tuple(merged or (Extent.of([scan]) for scan in scans))

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
        offsets = grid_offsets(linear, checked_radius(radius))
        voxels = np.argwhere(selected)
        x, y, z = selected.shape
        edges = PEdges.on_grid(
            torch.from_numpy(offsets @ linear.T),
            torch.from_numpy(offsets),
            torch.from_numpy(grid_neighbours(selected, offsets)),
            VoxelGrid(((x, y, z),), torch.from_numpy(np.pad(voxels, ((0, 0), (1, 0))))),
        )
        scan = ScanGraph(
            torch.from_numpy(voxels @ linear.T + matrix[:3, 3]),
            float(radius),
            edges,
            shared_q_space(q, q_edges, q_out, q_weights),
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
        points = vectors_of(p, "p")
        scan = ScanGraph(
            points,
            float(radius),
            point_edges(points, radius),
            shared_q_space(q, q_edges, q_out, q_weights),
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
        voxel: ArrayLike | Tensor | None = None,
        q_edges: QEdges | ArrayLike | Tensor = "full",
        p_out: ArrayLike | Tensor | None = None,
        q_out: ArrayLike | Tensor | None = None,
        voxel_out: ArrayLike | Tensor | None = None,
        q_weights: ArrayLike | Tensor | None = None,
    ) -> PQGraph:
        """An arbitrary list of nodes, each with a q-vector of its own.

        For tables that differ from voxel to voxel, as the nonlinearity of the gradients makes them.
        The centre of a voxel is the mean of the `p` of its nodes, input and output, so gradients
        reach all of them.

        Parameters
        ----------
        p, q : arrays of shape (N, 3)
            Position (mm) and q-vector of each node.
        radius : float
            In mm.
        voxel : integer array of shape (N,), optional
            Voxel of each node: the row of a map without q-space, (V, dim).  From 0 on, none left
            out.  Default: nodes closer than `SAME_VOXEL_MM` are of one voxel, and voxels are
            numbered in the order in which they first occur.
        q_edges : "full", "shell", or integer array of shape (2, M)
            As in `from_grid`; given pairs are (output node, input node) and lie within `radius`.
        p_out, q_out : arrays of shape (N_out, 3), optional
            Output nodes, where they are others than the input nodes.
        voxel_out : integer array of shape (N_out,), optional
            Voxel of each output node; given if and only if both `voxel` and `p_out` are.
        q_weights : array of shape (N,), optional
            Quadrature weights of the input nodes, used as they are.  Default: for each output node
            the mean over the nodes of every voxel that it is joined with.

        Raises
        ------
        ValueError
            For lists of different lengths, values that are not finite, given pairs farther apart
            than `radius`, voxels without a node, or nodes of which it is not clear whether they
            are of one voxel: a chain of them, each closer than `SAME_VOXEL_MM` to the next.
        """
        p_in, q_in = vectors_of(p, "p"), vectors_of(q, "q")
        if len(p_in) != len(q_in):
            raise ValueError(f"{len(p_in)} voxel centres but {len(q_in)} q-vectors")
        if (p_out is None) != (q_out is None):
            raise ValueError("give both p_out and q_out, or neither")
        resampled = p_out is not None and q_out is not None
        p_to = vectors_of(p_out, "p_out") if p_out is not None else p_in
        q_to = vectors_of(q_out, "q_out") if q_out is not None else q_in
        if len(p_to) != len(q_to):
            raise ValueError(f"{len(p_to)} output centres but {len(q_to)} output q-vectors")

        if (voxel_out is None) != (voxel is None or not resampled):
            raise ValueError("voxel_out says of which voxels p_out are: give it if voxel is given")
        everywhere = torch.cat([p_in, p_to]) if resampled else p_in
        if voxel is None:
            numbers = voxels_of(coordinates(everywhere))
        else:
            numbers = voxel_numbers(voxel, "voxel", len(p_in))
            if voxel_out is not None:
                to = voxel_numbers(voxel_out, "voxel_out", len(p_to))
                numbers = torch.cat([numbers, to])
            check_voxel_numbers(numbers)
        points = centres(everywhere, numbers)
        voxel_in = numbers[: len(p_in)]
        voxel_to = numbers[len(p_in) :] if resampled else voxel_in
        edges = point_edges(points, radius)
        weights = None if q_weights is None else weights_of(q_weights, len(q_in))
        every_voxel = torch.arange(len(points))
        origins = torch.zeros(len(points), 3, dtype=torch.float64)
        nodes = NodeSpace(
            voxel_in,
            q_in,
            voxel_to,
            q_to,
            resampled,
            node_edges(edges, voxel_to, q_to, voxel_in, q_in, q_edges, weights),
            node_edges(edges, every_voxel, origins, voxel_in, q_in, "full", weights),
            node_edges(edges, voxel_to, q_to, every_voxel, origins, "full", None),
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
        return cls(scans, [Extent.of(graph.scans) for graph in graphs])

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
        return any(t.requires_grad for scan in self.scans for t in _tensors(scan))

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

    def by_scan(self, x: Tensor, counts: Sequence[int]) -> Iterator[tuple[ScanGraph, Tensor]]:
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

    def split(self, x: Tensor) -> list[Tensor]:
        """Features on each of the graphs that `merge` joined, in that order: undoes `stack`.

        Parameters
        ----------
        x : Tensor of shape (V, Q, ...)
            Features at the output directions; at the input directions if there are as many of
            those, and not of the others.  Or maps (V, ...), or features of nodes (N, ...).

        Returns
        -------
        list of Tensors of shape (V_i, Q_i, ...)
            Without the zeros at the end of rows.  Tensors of two dimensions are taken as maps,
            whose rows have none: stack a signal as ``signal[..., None]`` to split it again.

        Raises
        ------
        ValueError
            If features and graph do not fit each other.

        Examples
        --------
        >>> q = np.eye(3)
        >>> graphs = [PQGraph.from_points(np.zeros((1, 3)), q[:n], 1.0) for n in (2, 3)]
        >>> graph = PQGraph.merge(graphs)
        >>> x = graph.stack([torch.ones(1, 2, 4), torch.ones(1, 3, 4)])
        >>> [part.shape for part in graph.split(x)]
        [torch.Size([1, 2, 4]), torch.Size([1, 3, 4])]
        """
        parts = x.split(_rows_of_merged(self, len(x)))
        outputs = [part.directions_out for part in self.merged]
        inputs = [part.directions_in for part in self.merged]
        if x.ndim < 3 or len({*outputs}) == len({*inputs}) == 1:
            return list(parts)
        directions = _directions_of(self, x.shape[1], outputs, inputs)
        return [part[:, :number] for part, number in zip(parts, directions, strict=True)]

    def gather(self, volume: Tensor) -> Tensor:
        """Features of the voxels from a dense tensor, channels first.

        Parameters
        ----------
        volume : Tensor of shape (B, C, X, Y, Z) or (B, C, X, Y, Z, Q)
            One volume for each grid that was merged, in that order; all of one shape.

        Returns
        -------
        Tensor of shape (V, C) or (V, Q, C)
            The voxels of the masks.

        Raises
        ------
        ValueError
            If the graph was not made by `from_grid`, its volumes have several shapes, or the
            tensor has another one.

        Examples
        --------
        >>> mask = np.zeros((2, 2, 2), bool)
        >>> mask[0] = True
        >>> graph = PQGraph.from_grid(mask, np.eye(4), None, radius=1.5)
        >>> features = graph.gather(torch.ones(1, 5, 2, 2, 2))
        >>> features.shape, graph.scatter(features).sum()
        (torch.Size([4, 5]), tensor(20.))
        """
        return _gathered(self, volume)

    def scatter(self, values: Tensor) -> Tensor:
        """Features of the voxels as a dense tensor, channels first; 0 outside the masks.

        Parameters
        ----------
        values : Tensor of shape (V, C) or (V, Q, C)
            Such as a layer gives.

        Returns
        -------
        Tensor of shape (B, C, X, Y, Z) or (B, C, X, Y, Z, Q)
            See `gather`, of which it is the adjoint.

        Raises
        ------
        ValueError
            As `gather` does.
        """
        return _scattered(self, values)

    def filled(self, x: Tensor) -> Tensor | None:
        """Which rows of features (V, Q, ...) belong to directions, and not to padding.

        Parameters
        ----------
        x : Tensor of shape (V, Q, ...)
            Features at the output directions; at the input directions if there are as many of
            those, and not of the others.  Features of other shapes have no padding.

        Returns
        -------
        Tensor of shape (V, Q), bool
            None if all do.

        Raises
        ------
        ValueError
            If the scans have another number of directions.
        """
        return None if x.ndim < 3 or len(self.scans) == 1 else _filled_rows(self, x.shape[1])

    @ordinary_tensors()
    def to(self, device: torch.device | str) -> PQGraph:
        """The same graph on another device; itself, with all it has kept, if it is there."""
        scans = [_moved(scan, torch.device(device)) for scan in self.scans]
        there = all(new is old for new, old in zip(scans, self.scans, strict=True))
        return self if there else PQGraph(scans, self.merged)

    def __len__(self) -> int:
        return self.n_voxels

    def __repr__(self) -> str:
        if len(self.scans) == 1:
            return "PQ" + repr(self.scans[0]).removeprefix("Scan")
        listed = ", ".join(repr(scan) for scan in self.scans)
        return f"PQGraph({self.n_voxels:,} voxels of {len(self.scans)} scans: {listed})"


def _tensors(scan: ScanGraph) -> list[Tensor]:
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


@traced_as_one_call
def _gathered(graph: PQGraph, volume: Tensor) -> Tensor:
    return _volumes(graph).gather(volume)


@traced_as_one_call
def _scattered(graph: PQGraph, values: Tensor) -> Tensor:
    return _volumes(graph).scatter(values)


@kept_with_owner
def _narrowed(graph: PQGraph, radius: float) -> PQGraph:
    return PQGraph([scan.within(radius) for scan in graph.scans], graph.merged)


@kept_with_owner
def _volumes(graph: PQGraph) -> Volumes:
    return Volumes.of([scan.grid for scan in graph.scans])


def _rows_of_merged(graph: PQGraph, n_rows: int) -> list[int]:
    """How many of the rows of features each of the merged graphs has."""
    kinds = [[part.rows_out, part.rows_in, part.voxels] for part in graph.merged]
    fitting = {rows for rows in zip(*kinds, strict=True) if sum(rows) == n_rows}
    if len(fitting) == 1:
        return list(fitting.pop())
    if fitting:
        raise ValueError(
            f"features of {n_rows:,} rows can be those of nodes or of voxels of this graph, which "
            f"it divides differently: split them by hand, {' or '.join(map(str, sorted(fitting)))}"
        )
    sums = sorted({sum(rows) for rows in zip(*kinds, strict=True)})
    raise ValueError(
        f"the features have {n_rows:,} rows, but the graph has "
        f"{' or '.join(f'{number:,}' for number in sums)}: {graph!r}"
    )


def _directions_of(
    graph: PQGraph, longest: int, outputs: Sequence[int], inputs: Sequence[int]
) -> Sequence[int]:
    """Which of the two numbers of directions rows have that are padded to the longest."""
    for counts in (outputs, inputs):
        if longest == max(counts):
            return counts
    raise ValueError(
        f"the features have {longest} directions, but the graph has {max(inputs)}: {graph!r}"
    )


@kept_with_owner
def _filled(graph: PQGraph, longest: int) -> Tensor | None:
    spaces = [scan.q for scan in graph.scans if isinstance(scan.q, QSpace)]
    if not spaces:
        return None
    outputs, inputs = [len(q.q_out) for q in spaces], [len(q.q_in) for q in spaces]
    numbers = _directions_of(graph, longest, outputs, inputs)
    if len(set(numbers)) == 1:
        return None
    voxels = torch.tensor([scan.n_voxels for scan in graph.scans], device=graph.device)
    counts = torch.tensor(numbers, device=graph.device).repeat_interleave(voxels)
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
