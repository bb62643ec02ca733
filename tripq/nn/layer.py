"""The layer: a rotation-equivariant linear map between features on the 6D domain."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from tripq.backends import BACKENDS
from tripq.backends.base import Request
from tripq.backends.plan import Backend, Explanation, explain, make_plan
from tripq.backends.precision import check_dtype
from tripq.domain.batch import pad_rows
from tripq.domain.graph import PQGraph
from tripq.domain.nodes import NodeSpace
from tripq.domain.qspace import QSpace
from tripq.domain.quadrature import Quadrature
from tripq.domain.scan_graph import ScanGraph
from tripq.filters.filter import PQFilter, positions, ungrouped
from tripq.filters.radial import ConstantFunction, Radial, RadialFunctions
from tripq.infra.e3nn import o3
from tripq.infra.tracing import not_compiled, traced_as_one_call
from tripq.kernels.launch import DEFAULT_BUDGET
from tripq.nn.bound import Bindable
from tripq.so3.paths import (
    Caps,
    Channels,
    FilterKind,
    Group,
    Path,
    Selection,
    parse_filter,
    select_paths,
)

QDirections = Literal["vectors", "unit"]
OnGraph = Literal["graph"]
QOut = Literal["input", "graph"]


class PQTensorFieldLayer(Bindable):
    r"""Tensor field layer on p- and q-space, equivariant under joint rotations and translations.

    The layer of Müller, Golkov, Tomassini and Cremers (arXiv:2102.06942, eq. 5): the output at
    (p_out, q_out) is the sum over all input nodes with an edge to it of a filter times the input
    features,

    .. math::
        \sum W\; C(l_{out}; l_f\, l_{in})\, C(l_f; l_p\, l_q)\;
        \varphi_1(|p_{out} - p_{in}|)\, \varphi_2(|q_{out}|)\, \varphi_3(|q_{in}|)\;
        Y_{l_p}(p_{out} - p_{in})\, Y_{l_q}(q_{out} - q_{in})\, I(p_{in}, q_{in}),

    where the sum over the nodes is a quadrature, see `quadrature`.  The gradient table is part of
    the graph, and the weights are independent of geometry: one layer is applicable to scans with
    any number of directions, shells and voxel sizes.

    Parameters
    ----------
    irreps_in, irreps_out : e3nn.o3.Irreps or str
        Channels and orders of the features, such as ``"4x0e + 2x1o + 1x2e"``.
    p_radius : float
        Radius of the neighbourhood in mm; with 0 it is the voxel itself.
    q_max : float
        Largest |q| in the range of the radial functions of q-space (2.0: b up to 4 b_ref).
    filter : str
        ``"tp"``, the tensor product of the harmonics of both offsets; ``"diff"``, one harmonic of
        the difference of the two offsets, (p_out - p_in) - (q_out - q_in); ``"p"`` and ``"q"``,
        harmonics and radial functions of one of the two spaces only; or a sum of several, such as
        ``"tp + p"``, each with separate weights.
    selection : {"paper", "tp1", "all"}
        Condition on the orders of ``"tp"``: ``|l_f - l_p| <= 1`` with ``"paper"``; also
        ``|l_f - l_q| <= 1`` with ``"tp1"`` (the authors' code); none with ``"all"``, so that output
        features of order 2 or more depend on scalars of the voxel itself, not only on those of its
        neighbours.  ``"all"`` needs `lmax_p`.
    lmax_p, lmax_q, lmax_filter : int, optional
        Maximum orders of the two harmonics and of the filter.
    p_radial, q_radial : Radial
        Radial functions of |p_out - p_in|, and of |q_out| and |q_in|.  The default in p is smooth
        and 0 at the radius, as an integral needs it on any grid; see docs/sampling.md.
    q_directions : {"vectors", "unit"}
        Whether q_out - q_in is a difference of q-vectors or of their unit vectors.
    group : {"SO3", "O3"}
        ``"SO3"`` (the paper's) ignores the parity of irreps.  ``"O3"`` has only the paths with
        matching parities, and the layer also commutes with reflections.
    antipodal : bool
        Average the filter over the signs of all q-vectors: the output is then invariant to the sign
        of every direction, as the signal is.
    bias : bool
        Add a learned constant to the scalar (even, in O(3)) output channels.
    self_interaction : bool
        Add a learned linear map of the features at the output node itself (zero offset in p and
        in q).  The output must have the same nodes as the input.
    q_in : "graph" or None
        q-space of the input: the directions of the graph, or (None) the single point q = 0 of every
        voxel, a map without q-space, (V, dim_in).
    q_out : "input", "graph" or None
        q-space of the output: that of the input (``"input"``, the default), the output directions
        of the graph, or (None) a map.  There are four kinds of layers.  ``q_in="graph"`` to
        ``"graph"``: (V, Q, dim_in) -> (V, Q_out, dim_out).  ``q_in="graph"`` to None, which reduces
        q-space: (V, Q, dim_in) -> (V, dim_out).  ``q_in=None`` to None, with the filter ``"p"``:
        (V, dim_in) -> (V, dim_out).  ``q_in=None`` to ``"graph"``, which expands a map to
        directions, as the last layer of a network that predicts a signal:
        (V, dim_in) -> (V, Q_out, dim_out), with edges of weight 1 from the point q_in = 0 to every
        output direction.
    quadrature : {"sum", "integral"}
        ``"sum"``: the paper's sum over the voxels with a centre closer than `p_radius`, and the
        mean over the directions.  ``"integral"``: an integral over p and q, so that one set of
        weights serves every sampling.  Each voxel has its volume as weight, and filters are
        averaged over it and are 0 beyond `p_radius`; each direction has the share of its shell that
        it represents as weight, and each radial function of |q_in| is divided by its sum over the
        shells.  Weights given to the graph are used unchanged by both.
    backend : {"auto", "recoupled", "fourier", "dense", "triton", "edges"}
        Method of evaluation; all agree to rounding.  ``"auto"`` chooses the fastest by a cost model
        for each scan; `explain` gives the choice and the reason.  ``"recoupled"``: matrix products
        in an order that separates p- and q-space.  ``"fourier"``: the same for grids, at each
        frequency.  ``"dense"``: the filter sampled on the voxel grid, and a convolution.
        ``"triton"``: kernels for CUDA devices.  ``"edges"``: the definition, slow.  A named back
        end that cannot run is an error.
    memory_budget : int, optional
        Limit on the working arrays in bytes, without features and their gradients; larger
        computations are split.  Default: 256 MB, on a CUDA device one eighth of its memory.

    Attributes
    ----------
    paths : tuple of Path
        Paths of all filters.
    unreached : Irreps
        Output channels without a path, which are 0 except for a bias or a self-interaction; a
        warning names them.
    scalars_out : tuple of int
        Output components to which a bias is added.

    Examples
    --------
    >>> import numpy as np
    >>> from tripq import PQGraph
    >>> q = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    >>> graph = PQGraph.from_grid(np.ones((4, 4, 4)), np.diag([2.0, 2, 2, 1]), q, radius=3.0)
    >>> layer = PQTensorFieldLayer("1x0e", "4x0e + 2x1o", p_radius=3.0)
    >>> layer(torch.ones(64, 4, 1), graph).shape
    torch.Size([64, 4, 10])
    """

    def __init__(
        self,
        irreps_in: o3.Irreps | str,
        irreps_out: o3.Irreps | str,
        p_radius: float,
        *,
        q_max: float = 2.0,
        filter: str = "tp",
        selection: Selection = "paper",
        lmax_p: int | None = None,
        lmax_q: int | None = None,
        lmax_filter: int | None = None,
        p_radial: Radial = Radial("cosine", 2),
        q_radial: Radial = Radial(),
        q_directions: QDirections = "vectors",
        group: Group = "SO3",
        antipodal: bool = False,
        bias: bool = False,
        self_interaction: bool = False,
        q_in: OnGraph | None = "graph",
        q_out: QOut | None = "input",
        quadrature: Quadrature = "integral",
        backend: Backend = "auto",
        memory_budget: int | None = None,
    ) -> None:
        super().__init__()
        _check_choice("selection", selection, Selection)
        _check_choice("group", group, Group)
        _check_choice("q_directions", q_directions, QDirections)
        _check_choice("quadrature", quadrature, Quadrature)
        _check_choice("backend", backend, Backend)
        if not 0 <= p_radius < float("inf"):
            raise ValueError(f"p_radius must be a length in mm, not {p_radius}")
        if not 0 < q_max < float("inf"):
            raise ValueError(f"q_max must be positive, not {q_max}")
        if memory_budget is not None and memory_budget <= 0:
            raise ValueError(
                f"memory_budget must be a positive number of bytes, not {memory_budget}"
            )
        if q_in is not None:
            _check_choice("q_in", q_in, OnGraph)
        if q_out is not None:
            _check_choice("q_out", q_out, QOut)
        to: OnGraph | None = q_in if q_out == "input" else q_out
        if self_interaction and q_in != to:
            raise ValueError(
                "a self-interaction needs an output with the nodes of the input, but this layer "
                f"{'reduces q-space' if to is None else 'expands a map'} (q_out={to!r})"
            )
        self.irreps_in = o3.Irreps(irreps_in)
        self.irreps_out = o3.Irreps(irreps_out)
        self.p_radius = float(p_radius)
        self.q_max = float(q_max)
        self.group = group
        self.q_in = q_in
        self.q_out = to
        self.quadrature: Quadrature = quadrature
        self.backend: Backend = backend
        self.memory_budget = memory_budget
        self.channels_in = _channels(self.irreps_in, group)
        self.channels_out = _channels(self.irreps_out, group)

        caps = Caps(lmax_p, lmax_q, lmax_filter)
        kinds = parse_filter(filter)
        if q_in is None and to is None:
            if kinds not in (("tp",), ("p",)):
                raise ValueError(
                    "a map without q-space has p-offsets only, so its filter must be "
                    f'"p", not {filter!r}'
                )
            kinds = ("p",)
        self.filters = nn.ModuleList(
            self._make_filter(
                kind,
                select_paths(
                    kind,
                    self.channels_in,
                    self.channels_out,
                    selection=selection,
                    caps=caps,
                    group=group,
                    antipodal=antipodal,
                ),
                p_radial,
                q_radial,
                unit_directions=q_directions == "unit",
                antipodal=antipodal,
            )
            for kind in kinds
        )
        self.paths: tuple[Path, ...] = tuple(path for f in self._filters() for path in f.paths)
        self.unreached = self._unreached()
        if self.unreached:
            warnings.warn(
                f"no path of this layer leads to {self.unreached}, which will be 0: try larger "
                'lmax_p and lmax_q, or selection="all"',
                stacklevel=2,
            )
        self.self_interaction = (
            o3.Linear(_merged(self.irreps_in, group), _merged(self.irreps_out, group))
            if self_interaction
            else None
        )
        scalars = [i for c in self.channels_out if c.l == 0 and c.parity == 1 for i in c.index]
        if bias and not scalars:
            raise ValueError(
                f"a bias is added to scalars, and the output {self.irreps_out} has none"
            )
        self.bias = nn.Parameter(torch.zeros(len(scalars))) if bias else None
        self.scalars_out = tuple(scalars)

    def _unreached(self) -> o3.Irreps:
        reached = {
            (path.l_out, path.parity_out)
            for path in self.paths
            # Without an offset in p, its harmonics are 0 except for order 0.
            if self.p_radius > 0 or path.outer == 0
        }
        return o3.Irreps(
            [(c.mul, (c.l, c.parity)) for c in self.channels_out if (c.l, c.parity) not in reached]
        )

    def _make_filter(
        self,
        kind: FilterKind,
        paths: tuple[Path, ...],
        p_radial: Radial,
        q_radial: Radial,
        *,
        unit_directions: bool,
        antipodal: bool,
    ) -> PQFilter:
        """A filter with the radial functions that its kind, input and output need."""
        in_q = kind != "p"
        return PQFilter(
            kind,
            paths,
            self.channels_in,
            self.channels_out,
            RadialFunctions(p_radial, self.p_radius, cutoff=True)
            if kind != "q"
            else ConstantFunction(),
            # A map has only |q| = 0.
            RadialFunctions(q_radial, self.q_max, cutoff=False)
            if in_q and self.q_out is not None
            else ConstantFunction(),
            RadialFunctions(q_radial, self.q_max, cutoff=False)
            if in_q and self.q_in is not None
            else ConstantFunction(),
            unit_directions=unit_directions,
            antipodal=antipodal,
            quadrature=self.quadrature,
        )

    def forward(self, x: Tensor, graph: PQGraph) -> Tensor:
        """Evaluate the layer.

        Parameters
        ----------
        x : Tensor of shape (V, Q, dim_in)
            Features at the nodes of the graph: voxels, directions, components.  (N, dim_in) on a
            graph made by `PQGraph.from_nodes`, (V, dim_in) with ``q_in=None``.  The type is that of
            the weights; under autocast float32 or half precision.
        graph : PQGraph
            The domain, with a radius of at least `p_radius`, on the device of `x`.

        Returns
        -------
        Tensor of shape (V, Q_out, dim_out)
            (N_out, dim_out) on a graph made by `PQGraph.from_nodes`, (V, dim_out) on a map; see
            `q_out`.

        Raises
        ------
        ValueError
            If features and graph do not match each other or the layer, or if features and weights
            have different types.
        """
        if torch.compiler.is_compiling() and graph.requires_grad:
            return self._uncompiled(x, graph)
        return _evaluate(self, x, graph)

    @not_compiled  # coordinates that require gradients are not constant
    def _uncompiled(self, x: Tensor, graph: PQGraph) -> Tensor:
        return _evaluate(self, x, graph)

    def _evaluate(self, x: Tensor, graph: PQGraph) -> Tensor:
        self._check(x, graph)
        graph = self.neighbourhoods(graph)
        parts = graph.by_scan(x, [self._rows(scan) for scan in graph.scans])
        return pad_rows([self._on_scan(part, scan) for scan, part in parts])

    def _on_scan(self, x: Tensor, scan: ScanGraph) -> Tensor:
        q, features = self.q_space(scan), x
        if isinstance(q, QSpace):
            features = x[:, None] if self.q_in is None else x[:, : len(q.q_in)]
        terms = []
        for f in self._filters():
            request = self._request(scan, q, f)
            back_end = BACKENDS[make_plan(self.backend, request).backend]
            terms.append(back_end.evaluate(features, scan.edges, q, f, request.budget))
        out = terms[0] if len(terms) == 1 else torch.stack(terms).sum(0)
        if self.self_interaction is not None:
            out = out + self._self_interaction(features)
        if self.bias is not None:
            out = out.to(self.bias.dtype)  # autocast
            out = out.index_add(
                -1, self._index(self.scalars_out), self.bias.expand(*out.shape[:-1], -1)
            )
        return out[:, 0] if isinstance(q, QSpace) and self.q_out is None else out

    def explain(self, graph: PQGraph) -> Explanation:
        """Describe the choice of back ends for a graph, and their cost.

        Parameters
        ----------
        graph : PQGraph
            The argument of `forward`.

        Returns
        -------
        Explanation
            For each scan and each filter the back end, the reason for it, and estimates of
            multiply-adds, bytes and peak memory, also of the other back ends.  It can be printed.

        Examples
        --------
        >>> import numpy as np
        >>> from tripq import PQGraph
        >>> q = np.random.default_rng(0).normal(size=(64, 3)) / 2
        >>> graph = PQGraph.from_grid(np.ones((8, 8, 8)), np.diag([2.0, 2, 2, 1]), q, radius=5.0)
        >>> layer = PQTensorFieldLayer("4x0e + 2x1o", "4x0e + 2x1o", p_radius=5.0, lmax_q=2)
        >>> (plan,) = layer.explain(graph).plans
        >>> plan.backend
        'fourier'
        """
        plans = [
            explain(self.backend, self._request(scan, self.q_space(scan), f))
            for scan in self.neighbourhoods(graph).scans
            for f in self._filters()
        ]
        return Explanation(tuple(plans))

    def _request(self, scan: ScanGraph, q: QSpace | NodeSpace, f: PQFilter) -> Request:
        return Request.of(scan.edges, q, f, self._budget(scan.p.device))

    def _budget(self, device: torch.device) -> int:
        if self.memory_budget is not None:
            return self.memory_budget
        if device.type == "cuda":
            return torch.cuda.get_device_properties(device).total_memory // 8
        return DEFAULT_BUDGET

    def _self_interaction(self, x: Tensor) -> Tensor:
        assert self.self_interaction is not None
        order_in = self._index(tuple(i for c in self.channels_in for i in c.index))
        mapped: Tensor = self.self_interaction(x[..., order_in])
        return mapped[..., ungrouped(self.channels_out, x.device)]

    def _index(self, index: tuple[int, ...]) -> Tensor:
        return positions(index, next(self._filters()).weight.device)

    def neighbourhoods(self, graph: PQGraph) -> PQGraph:
        """The graph with the p-edges that the layer sums over; kept with the graph."""
        integral = self.quadrature == "integral"
        return graph.integrated(self.p_radius) if integral else graph.within(self.p_radius)

    def q_space(self, scan: ScanGraph) -> QSpace | NodeSpace:
        """The directions that the layer joins, with the weights of its quadrature."""
        if self._without_q or scan.q is None:
            return QSpace.none(scan.p.device)
        if self.q_in is None:
            return scan.q.expanded
        q = scan.q.reduced if self.q_out is None else scan.q
        return q.integral if self.quadrature == "integral" else q

    @property
    def _without_q(self) -> bool:
        """Whether the layer maps maps to maps, and needs no directions."""
        return self.q_in is None and self.q_out is None

    def _rows(self, scan: ScanGraph) -> int:
        if self.q_in is not None and isinstance(scan.q, NodeSpace):
            return len(scan.q.q)
        return scan.n_voxels

    def _check(self, x: Tensor, graph: PQGraph) -> None:
        nodes = isinstance(graph.scans[0].q, NodeSpace)
        flat = self.q_in is None or nodes
        shape = (
            "(N, dim_in)" if nodes and self.q_in else "(V, dim_in)" if flat else "(V, Q, dim_in)"
        )
        if x.ndim != (2 if flat else 3) or x.shape[-1] != self.irreps_in.dim:
            raise ValueError(
                f"the features have the shape {tuple(x.shape)}, but this layer needs {shape} with "
                f"dim_in = {self.irreps_in.dim} ({self.irreps_in})"
            )
        if x.device != graph.device:
            raise ValueError(
                f"the features are on {x.device}, but the graph is on {graph.device}: "
                f"call graph.to({str(x.device)!r})"
            )
        check_dtype(x, next(self._filters()).weight)
        if self._without_q:
            return
        for scan in graph.scans:
            if scan.q is None:
                raise ValueError(
                    "this layer needs directions, but the graph was built without q-space (q=None)"
                )
            q_max = self.q_space(scan).q_max
            if q_max > self.q_max * (1 + 1e-6):
                raise ValueError(
                    f"the graph has a q-vector of length {q_max:.3g}, larger than the q_max = "
                    f"{self.q_max:g} of this layer: construct the layer with a larger q_max"
                )
            if self.q_in is None:
                continue
            if self.self_interaction is not None and scan.q.resampled:
                raise ValueError(
                    "the output of this graph has different nodes (q_out), but a self-interaction "
                    "needs those of the input"
                )
            if isinstance(scan.q, QSpace) and x.shape[1] < len(scan.q.q_in):
                raise ValueError(
                    f"the features have {x.shape[1]} directions, but the graph has "
                    f"{len(scan.q.q_in)}: {graph!r}"
                )
        longest = (
            max(len(s.q.q_in) for s in graph.scans if isinstance(s.q, QSpace)) if not flat else 0
        )
        if not flat and x.shape[1] != longest:
            raise ValueError(
                f"the features have {x.shape[1]} directions, but the graph has {longest}: {graph!r}"
            )

    @torch.no_grad()
    def normalize_output(self, output: Tensor, graph: PQGraph) -> Tensor:
        """Divide the weights of each output order by the root mean square of its features.

        Parameters
        ----------
        output : Tensor of shape (..., dim_out)
            Output of the layer for some input.
        graph : PQGraph
            Graph of that input; the padding of scans with fewer directions is excluded.

        Returns
        -------
        Tensor
            Output for the same input with the new weights; orders with zero output are unchanged.
        """
        scaled = output.clone()
        filled = graph.filled(output)
        counted = output if filled is None else output[filled]
        for channels in self.channels_out:
            index = self._index(channels.index)
            size = counted[..., index].square().mean().sqrt()
            if not 0 < float(size) < float("inf"):
                continue
            for f in self._filters():
                for path, weight in f.path_weights():
                    if (path.l_out, path.parity_out) == (channels.l, channels.parity):
                        weight.div_(size)
            scaled[..., index] = output[..., index] / size
        return scaled

    def kernel(self, p_offset: Tensor, q_out: Tensor, q_in: Tensor) -> Tensor:
        """The dense filter at one triple of offsets, by its definition.

        The layer is the sum of this filter times the input over all edges, each with its quadrature
        weight, plus the self-interaction and the bias, if any.

        Parameters
        ----------
        p_offset : Tensor of shape (..., 3)
            p_out - p_in in mm, world axes.
        q_out, q_in : Tensors of shape (..., 3)
            q-vectors; all three arguments are broadcast.  A layer that reduces q-space has
            q_out = 0.

        Returns
        -------
        Tensor of shape (..., dim_out, dim_in)
        """
        return torch.stack([f.kernel(p_offset, q_out, q_in) for f in self._filters()]).sum(0)

    def _filters(self) -> Iterator[PQFilter]:
        for f in self.filters:
            assert isinstance(f, PQFilter)
            yield f

    def __repr__(self) -> str:
        filters = " + ".join(f.kind for f in self._filters())
        weights = sum(p.numel() for p in self.parameters())
        ends = ["p" if end is None else "pq" for end in (self.q_in, self.q_out)]
        domain = " -> ".join(dict.fromkeys(ends))
        return (
            f"{type(self).__name__}({self.irreps_in} -> {self.irreps_out} | {domain}, "
            f"{filters}, {self.group}, {self.p_radius:g} mm | {len(self.paths)} paths | "
            f"{weights:,} weights)"
        )


@traced_as_one_call
def _evaluate(layer: PQTensorFieldLayer, x: Tensor, graph: PQGraph) -> Tensor:
    return layer._evaluate(x, graph)


def _channels(irreps: o3.Irreps, group: Group) -> tuple[Channels, ...]:
    """Channels of each order (and parity, in O(3)) with their indices in the features."""
    index: dict[tuple[int, int], list[int]] = {}
    start = 0
    for mul, ir in irreps:
        stop = start + mul * ir.dim
        key = (ir.l, 1 if group == "SO3" else ir.p)
        index.setdefault(key, []).extend(range(start, stop))
        start = stop
    return tuple(Channels(l, p, tuple(index[l, p])) for l, p in sorted(index) if index[l, p])


def _merged(irreps: o3.Irreps, group: Group) -> o3.Irreps:
    """The irreps with the channels in the order of `_channels`."""
    return o3.Irreps([(c.mul, (c.l, c.parity)) for c in _channels(irreps, group)])


def _check_choice(name: str, value: str, choices: object) -> None:
    allowed = get_args(choices)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")
