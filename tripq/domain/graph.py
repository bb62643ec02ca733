"""The 6D domain: a point cloud of (voxel, gradient direction) nodes and its edges.

A node is a pair (p, q) of a voxel centre in millimetres and a q-vector, both in world axes.  Two
nodes are joined if their voxels are closer than a radius (p-edges) and their q-vectors are joined
(q-edges).  If all voxels of a scan share the gradient table, the edges are the product of the two
sets, and only these sets are stored: 100,000 voxels with 81 neighbours and 64 directions have
3.3e10 edges, but 8.1e6 p-edges and 4,096 q-edges.

`PQGraph` is the graph that layers take: one scan or a batch of scans, each a `ScanGraph` of voxels,
p-edges and a q-space.  Features on it have the shape (V, Q, dim) for V voxels with Q
directions each, (N, dim) for a list of N nodes, and (V, dim) for maps without q-space.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tripq.domain.batch import Extent, directions_of, pad_rows, rows_of
from tripq.domain.checks import vectors_of, volumes_of
from tripq.domain.nodes import NodeSpace, node_space
from tripq.domain.qspace import QEdges, QSpace, shared_q_space
from tripq.domain.scan_graph import ScanGraph
from tripq.domain.volumes import Volumes
from tripq.domain.voxels import grid_edges, point_edges
from tripq.domain.window import windows_of
from tripq.infra.kept import kept_with_owner, ordinary_tensors
from tripq.infra.tracing import constant, traced_as_one_call


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
    >>> import numpy as np
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

    # -- construction --------------------------------------------------------------------------

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
        """The voxels of a mask, joined if closer than `radius` in world space.

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
            Quadrature weights of the input directions, used as they are.  Default: the layer's
            quadrature, see `PQTensorFieldLayer`.

        Raises
        ------
        ValueError
            For a mask that is not 3D, a singular affine, a negative radius, or values that are not
            finite.
        """
        points, edges = grid_edges(mask, affine, radius)
        q_space = shared_q_space(q, q_edges, q_out, q_weights)
        return cls((ScanGraph(points, float(radius), edges, q_space),))

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
        volumes: ArrayLike | Tensor | None = None,
    ) -> PQGraph:
        """Any voxel centres in mm, all with the same directions; else as `from_grid`.

        Parameters
        ----------
        p : array of shape (V, 3)
            Voxel centres in mm, world axes.
        q, radius, q_edges, q_out, q_weights
            As in `from_grid`.
        volumes : array of shape (V,), optional
            Volume of each point in mm3, for layers that integrate over p-space.
            Default: 8 mm3 each.
        """
        points = vectors_of(p, "p")
        edges = point_edges(points, radius, volumes_of(volumes, len(points)))
        q_space = shared_q_space(q, q_edges, q_out, q_weights)
        return cls((ScanGraph(points, float(radius), edges, q_space),))

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
        volumes: ArrayLike | Tensor | None = None,
    ) -> PQGraph:
        """An arbitrary list of nodes, each with an individual q-vector.

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
            Quadrature weights of the input nodes, used as they are.  Default: the layer's
            quadrature in every voxel, see `PQTensorFieldLayer`.
        volumes : array of shape (V,), optional
            As in `from_points`, for each voxel.

        Raises
        ------
        ValueError
            For lists of different lengths, values that are not finite, given pairs farther apart
            than `radius`, voxels without a node, or nodes of which it is not clear whether they
            are of one voxel: a chain of them, each closer than `SAME_VOXEL_MM` to the next.
        """
        points, edges, nodes = node_space(
            p, q, radius, voxel, q_edges, p_out, q_out, voxel_out, q_weights, volumes
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
        >>> import numpy as np
        >>> patch = PQGraph.from_grid(np.ones((2, 1, 1)), np.eye(4), np.eye(3)[:2], 1.5)
        >>> PQGraph.merge([patch, patch])
        PQGraph(4 voxels, 8 p-edges, 19 edge types, 2 directions, 4 q-edges, radius 1.5 mm)
        """
        scans: list[ScanGraph] = []
        for scan in (scan for graph in graphs for scan in graph.scans):
            joined = scans[-1].joined(scan) if scans else None
            if joined is None:
                scans.append(scan)
            else:
                scans[-1] = joined
        return cls(scans, [Extent.of(graph.scans) for graph in graphs])

    # -- use -----------------------------------------------------------------------------------

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
        return any(t.requires_grad for scan in self.scans for t in scan.coordinates)

    def within(self, radius: float) -> PQGraph:
        """The same graph, joined only up to `radius` mm; kept for the next call."""
        if all(scan.radius == radius for scan in self.scans):
            return self
        self._check_reach(radius)
        narrowed: PQGraph = _narrowed(self, radius)
        return narrowed

    def _check_reach(self, radius: float) -> None:
        if radius > self.radius * (1 + 1e-6):
            raise ValueError(
                f"this graph joins voxels closer than {self.radius:g} mm, but a radius of "
                f"{radius:g} mm is needed: build the graph with radius={radius:g} or more"
            )

    def integrated(self, radius: float) -> PQGraph:
        """The same graph with the p-edges of an integral over a ball of `radius` mm; kept.

        A layer with ``quadrature="integral"`` sums over these, see `tripq.domain.quadrature`.
        """
        self._check_reach(radius)
        integrated: PQGraph = _integrated(self, radius)
        return integrated

    def by_scan(
        self, x: Tensor, counts: Sequence[int] | None = None
    ) -> Iterator[tuple[ScanGraph, Tensor]]:
        """Each scan with its rows of `x`, of which it has `counts`; by default one for a voxel."""
        counts = [scan.n_voxels for scan in self.scans] if counts is None else counts
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
        >>> import numpy as np
        >>> q = np.eye(3)
        >>> graphs = [PQGraph.from_points(np.zeros((1, 3)), q[:n], 1.0) for n in (2, 3)]
        >>> graph = PQGraph.merge(graphs)
        >>> x = graph.stack([torch.ones(1, 2, 4), torch.ones(1, 3, 4)])
        >>> [part.shape for part in graph.split(x)]
        [torch.Size([1, 2, 4]), torch.Size([1, 3, 4])]
        """
        parts = x.split(rows_of(self.merged, len(x), self))
        outputs = [part.directions_out for part in self.merged]
        inputs = [part.directions_in for part in self.merged]
        if x.ndim < 3 or len({*outputs}) == len({*inputs}) == 1:
            return list(parts)
        directions = directions_of(outputs, inputs, x.shape[1], self)
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
        >>> import numpy as np
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

    def means_around(self, sums: Tensor, numbers: Tensor, sigma: float) -> Tensor:
        """Means over the surroundings of each voxel, which a Gaussian of the distance weights.

        Parameters
        ----------
        sums : Tensor of shape (V, C)
            Sums over the rows of each voxel.
        numbers : Tensor of shape (V,)
            Numbers of these rows.
        sigma : float
            Standard deviation of the Gaussian along each axis, in mm; infinite for whole patches.

        Returns
        -------
        Tensor of shape (V, C), float64
            See `tripq.domain.window`.  Sums do not extend from one scan or patch to another.

        Examples
        --------
        >>> import numpy as np
        >>> graph = PQGraph.from_grid(np.ones((3, 1, 1)), np.diag([2.0, 2, 2, 1]), None, radius=0.0)
        >>> graph.means_around(torch.tensor([[0.0], [3.0], [6.0]]), torch.ones(3), 1.0).flatten()
        tensor([0.3593, 3.0000, 5.6407], dtype=torch.float64)
        """
        return _means_around(self, sums, numbers, sigma)

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

    def sizes(self, x: Tensor) -> tuple[int, ...]:
        """How many rows of features each of the graphs has that `merge` joined, without padding.

        Parameters
        ----------
        x : Tensor of shape (V, Q, ...)
            Features, as for `split`; those of each voxel and direction are a row.

        Returns
        -------
        tuple of int
            Their sum is the number of rows that are `filled`.

        Raises
        ------
        ValueError
            If features and graph do not fit each other.
        """
        if len(self.merged) == 1 and x.ndim < 3:
            return (len(x),)
        rows = rows_of(self.merged, len(x), self)
        if x.ndim < 3:
            return tuple(rows)
        filled = self.filled(x)
        if filled is None:
            return tuple(number * x.shape[1] for number in rows)
        return _filled_sizes(self, x.shape[1], tuple(rows))

    def voxels_of_rows(self, number: int) -> Tensor | None:
        """The voxel of each row of features (N, dim) of nodes; None for maps (V, dim).

        Parameters
        ----------
        number : int
            Of the rows: that of the output nodes, or of the input nodes if there are as many of
            those, and not of the others.

        Raises
        ------
        ValueError
            If the graph has another number of rows, or has one node in each voxel, in another
            order than the voxels: it is not clear what the rows are.
        """
        if number == self.n_voxels and not any(isinstance(s.q, NodeSpace) for s in self.scans):
            return None
        voxels: Tensor | None = _voxels_of_rows(self, number)
        return voxels

    @ordinary_tensors()
    def to(self, device: torch.device | str) -> PQGraph:
        """The same graph on another device; itself, with all it has kept, if it is there."""
        scans = [scan.to(torch.device(device)) for scan in self.scans]
        there = all(new is old for new, old in zip(scans, self.scans, strict=True))
        return self if there else PQGraph(scans, self.merged)

    def __len__(self) -> int:
        return self.n_voxels

    def __repr__(self) -> str:
        if len(self.scans) == 1:
            return "PQ" + repr(self.scans[0]).removeprefix("Scan")
        listed = ", ".join(repr(scan) for scan in self.scans)
        return f"PQGraph({self.n_voxels:,} voxels of {len(self.scans)} scans: {listed})"


@traced_as_one_call
def _filled_rows(graph: PQGraph, longest: int) -> Tensor | None:
    mask = _filled(graph, longest)
    return None if mask is None else mask.clone()


@kept_with_owner
def _filled_sizes(graph: PQGraph, longest: int, rows: tuple[int, ...]) -> tuple[int, ...]:
    mask = _filled(graph, longest)
    assert mask is not None
    return tuple(int(part.sum()) for part in mask.split(rows))


@traced_as_one_call
def _voxels_of_rows(graph: PQGraph, number: int) -> Tensor | None:
    voxels = _kept_voxels_of_rows(graph, number)
    return None if voxels is None else voxels.clone()


@kept_with_owner
def _kept_voxels_of_rows(graph: PQGraph, number: int) -> Tensor | None:
    rows_of(graph.merged, number, graph)
    starts = np.cumsum([0, *(scan.n_voxels for scan in graph.scans[:-1])]).tolist()
    spaces = [scan.q for scan in graph.scans if isinstance(scan.q, NodeSpace)]
    outputs = torch.cat([q.voxel_out + start for q, start in zip(spaces, starts, strict=True)])
    inputs = torch.cat([q.voxel + start for q, start in zip(spaces, starts, strict=True)])
    every = torch.arange(graph.n_voxels, device=graph.device)
    of_nodes = next((voxels for voxels in (outputs, inputs) if len(voxels) == number), every)
    if number == graph.n_voxels and not torch.equal(of_nodes, every):
        raise ValueError(
            f"features of {number:,} rows can be those of nodes or of voxels of this graph, whose "
            "order differs: number the voxels in the order of their nodes"
        )
    return None if number == graph.n_voxels else of_nodes


@traced_as_one_call
def _gathered(graph: PQGraph, volume: Tensor) -> Tensor:
    return _volumes(graph).gather(volume)


@traced_as_one_call
def _scattered(graph: PQGraph, values: Tensor) -> Tensor:
    return _volumes(graph).scatter(values)


@traced_as_one_call
def _means_around(graph: PQGraph, sums: Tensor, numbers: Tensor, sigma: float) -> Tensor:
    windows = [window for scan in graph.scans for window in windows_of(scan, sigma)]
    sizes = [window.n_voxels for window in windows]
    sums, numbers = sums.double(), numbers[:, None].double()
    parts = zip(windows, sums.split(sizes), numbers.split(sizes), strict=True)
    return torch.cat([sums[:0], *(window.sums(s) / window.sums(n) for window, s, n in parts)])


@kept_with_owner
def _narrowed(graph: PQGraph, radius: float) -> PQGraph:
    return PQGraph([scan.within(radius) for scan in graph.scans], graph.merged)


@kept_with_owner
def _integrated(graph: PQGraph, radius: float) -> PQGraph:
    return PQGraph([scan.integrated(radius) for scan in graph.scans], graph.merged)


@kept_with_owner
def _volumes(graph: PQGraph) -> Volumes:
    return Volumes.of([scan.grid for scan in graph.scans])


@kept_with_owner
def _filled(graph: PQGraph, longest: int) -> Tensor | None:
    spaces = [scan.q for scan in graph.scans if isinstance(scan.q, QSpace)]
    if not spaces:
        return None
    outputs, inputs = [len(q.q_out) for q in spaces], [len(q.q_in) for q in spaces]
    numbers = directions_of(outputs, inputs, longest, graph)
    if len(set(numbers)) == 1:
        return None
    voxels = torch.tensor([scan.n_voxels for scan in graph.scans], device=graph.device)
    counts = torch.tensor(numbers, device=graph.device).repeat_interleave(voxels)
    return torch.arange(longest, device=graph.device) < counts[:, None]
