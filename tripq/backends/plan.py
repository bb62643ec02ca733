"""Which back end evaluates a filter, why, and what it will take.

For every back end that can run, the multiply-adds, the bytes and the working memory of a forward
pass follow from the sizes of the graph and the filter.  ``"auto"`` takes the one with the shortest
time at the rates that `RATES` gives; ``python perf/profile.py`` measures whether it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from typing import Literal

import numpy as np
from torch import Tensor
from torch.autograd import forward_ad

from tripq.filter import PQFilter
from tripq.graph import NodeSpace, PEdges, QSpace, ScanGraph
from tripq.kernels.launch import accumulation_dtype
from tripq.recoupling import clebsch_gordan

Backend = Literal["auto", "edges", "dense", "fourier", "recoupled", "triton"]

#: Multiply-adds in a nanosecond, by kind of device: what each back end reached on the workloads of
#: ``perf/profile.py``.  Machines differ, but only the ratios matter.  Those of a GPU are rough, of
#: trials on an H100 in float32; that of the edges is a guess.
RATES = {
    "cpu": {"edges": 1.0, "dense": 70.0, "fourier": 35.0, "recoupled": 10.0, "triton": 1.0},
    "cuda": {
        "edges": 100.0,
        "dense": 12_000.0,
        "fourier": 6_000.0,
        "recoupled": 6_500.0,
        "triton": 5_500.0,
    },
}

#: Bytes in a nanosecond, likewise.
BANDWIDTH = {"cpu": 10.0, "cuda": 3_000.0}


@dataclass(frozen=True)
class Estimate:
    """What one back end would take for a forward pass.

    Attributes
    ----------
    backend : str
        Its name.
    operations : float
        Multiply-adds.
    bytes : float
        Read and written, if nothing stays in a cache between stages.
    peak_memory : float
        Bytes for features in, features out and working arrays, within the budget if it can.
    seconds : float
        At the rates of `RATES` and `BANDWIDTH`: to compare back ends with each other only.
    """

    backend: str
    operations: float
    bytes: float
    peak_memory: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    """The back end that evaluates one filter on one scan.

    Attributes
    ----------
    filter, scan : str
        What it evaluates.
    reason : str
        Why this back end.
    chosen : Estimate
        What it will take.
    alternatives : tuple of Estimate
        The other back ends that could run, fastest first.
    impossible : dict of str to str
        Why each of the others cannot.
    """

    filter: str
    scan: str
    reason: str
    chosen: Estimate
    alternatives: tuple[Estimate, ...]
    impossible: dict[str, str]

    @property
    def backend(self) -> str:
        """Name of the chosen back end."""
        return self.chosen.backend

    @property
    def operations(self) -> float:
        """Multiply-adds of a forward pass."""
        return self.chosen.operations

    @property
    def bytes(self) -> float:
        """Bytes that a forward pass moves."""
        return self.chosen.bytes

    @property
    def peak_memory(self) -> float:
        """Bytes that a forward pass holds."""
        return self.chosen.peak_memory

    @property
    def seconds(self) -> float:
        """Time at the rates of the cost model."""
        return self.chosen.seconds

    def __str__(self) -> str:
        lines = [f"{self.filter} on {self.scan}: {self.backend}, {self.reason}"]
        for e in (self.chosen, *self.alternatives):
            lines.append(
                f"  {e.backend:<9} {_number(e.operations)} multiply-adds, {_size(e.bytes)} moved, "
                f"{_size(e.peak_memory)} held"
            )
        lines += [f"  {name:<9} cannot: {why}" for name, why in self.impossible.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class Explanation:
    """What a layer will do on a graph: a plan for each scan and filter."""

    plans: tuple[Plan, ...]

    def __str__(self) -> str:
        return "\n".join(str(plan) for plan in self.plans)


def make_plan(
    backend: Backend,
    scan: ScanGraph,
    q: QSpace | NodeSpace,
    filter: PQFilter,
    budget: int,
) -> Plan:
    """Choose a back end for a filter with its weights' type and device.

    Raises
    ------
    ValueError
        If `backend` names one that cannot run here; the message says why.
    """
    dtype, on_gpu = filter.weight.dtype, filter.weight.is_cuda
    impossible = {
        name: why
        for name in ("dense", "fourier", "triton")
        if (why := _obstacle(name, scan.edges, q, filter)) is not None
    }
    if backend in impossible:
        raise ValueError(
            f'the {backend!r} back end cannot run here: {impossible[backend]}. backend="auto" '
            "takes one that can"
        )
    if not on_gpu and backend != "triton":
        impossible["triton"] = "its kernels need a CUDA device"
    device = "cuda" if on_gpu else "cpu"
    sizes = _Sizes.of(scan, q, filter, accumulation_dtype(dtype).itemsize, budget)
    estimates = [
        _estimate(name, sizes, device)
        for name in ("edges", "dense", "fourier", "recoupled", "triton")
        if name not in impossible
    ]
    estimates.sort(key=lambda e: e.seconds)
    if backend == "auto":
        chosen, reason = estimates[0], "the fastest by the cost model"
        if len(estimates) > 1 and chosen.seconds > 0:
            reason += f" ({estimates[1].seconds / chosen.seconds:.1f} times {estimates[1].backend})"
    else:
        chosen, reason = next(e for e in estimates if e.backend == backend), "as asked for"
        if backend == "triton" and not on_gpu:
            reason += " (without a CUDA device its operators run in plain torch)"
    return Plan(
        filter=f'"{filter.kind}"',
        scan=sizes.describe(),
        reason=reason,
        chosen=chosen,
        alternatives=tuple(e for e in estimates if e is not chosen),
        impossible=impossible,
    )


def _obstacle(backend: str, edges: PEdges, q: QSpace | NodeSpace, filter: PQFilter) -> str | None:
    """Why a back end cannot evaluate this, if it cannot."""
    if backend in ("dense", "fourier"):
        if isinstance(q, NodeSpace):
            return "every voxel has directions of its own"
        if edges.grid is None:
            return "the voxels are not on a grid"
        if backend == "fourier" and filter.kind == "diff":
            return 'a "diff" filter does not come apart into p- and q-space'
        if backend == "fourier" and _differentiated(edges.offsets):
            return "it takes p-offsets to come in pairs, p and -p, and some require gradients"
    if backend == "triton":
        if filter.weight.is_cuda and find_spec("triton") is None:
            return "Triton is not installed"
        if filter.kind == "diff" and isinstance(q, QSpace):
            return 'it has no kernel for a "diff" filter between voxels that share directions'
        if isinstance(q, NodeSpace):
            constants = edges.offsets, q.q, q.q_out, q.edges.weights
        else:
            constants = edges.offsets, q.q_in, q.q_out, q.weights
        if any(_differentiated(t) for t in constants):
            return (
                "it takes coordinates and quadrature weights as constants, and some require "
                "gradients"
            )
    return None


def _differentiated(t: Tensor) -> bool:
    """Whether it requires a gradient, or carries a tangent of forward-mode AD."""
    return t.requires_grad or forward_ad.unpack_dual(t).tangent is not None


# -- counting ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sizes:
    """What the operations of a forward pass depend on."""

    filter: PQFilter
    nodes: bool
    n_voxels: int  # or output nodes
    n_in: int  # directions in, or input nodes of an output node on average
    n_out: int  # directions out; 1 for nodes
    n_types: int
    n_edges: int  # p-edges, or edges between nodes
    n_box: int  # voxels of the smallest box around the mask
    n_places: int  # and of that with margins for the neighbours
    n_cells: int  # and of that around the offsets
    itemsize: int
    budget: int

    @classmethod
    def of(
        cls,
        scan: ScanGraph,
        q: QSpace | NodeSpace,
        filter: PQFilter,
        itemsize: int,
        budget: int,
    ) -> _Sizes:
        n_types = len(scan.edges.offsets)
        if isinstance(q, NodeSpace):
            n_edges, n_nodes = len(q.edges.dst), len(q.q_out)
            return cls(filter, True, n_nodes, 1, 1, n_types, n_edges, 0, 0, 0, itemsize, budget)
        n_box = n_places = n_cells = 0
        if scan.grid is not None and scan.edges.steps is not None and scan.n_voxels:
            number, *box = scan.grid.cropped[0]
            margin = scan.edges.margin
            n_box = number * math.prod(box)
            n_places = number * math.prod(n + m for n, m in zip(box, margin, strict=True))
            n_cells = math.prod(2 * m + 1 for m in margin)
        return cls(
            filter,
            False,
            scan.n_voxels,
            len(q.q_in),
            len(q.q_out),
            n_types,
            scan.edges.n_edges,
            n_box,
            n_places,
            n_cells,
            itemsize,
            budget,
        )

    @cached_property
    def stages(self) -> _Stages:
        """Of the recoupled evaluation."""
        return _Stages.of(self.filter)

    @property
    def features(self) -> float:
        """Numbers of the input and the output."""
        return self.n_voxels * (self.n_in * self.filter.dim_in + self.n_out * self.filter.dim_out)

    @property
    def neighbours(self) -> float:
        """Of a voxel, on average."""
        return self.n_edges / max(1, self.n_voxels)

    def describe(self) -> str:
        if self.nodes:
            return f"{self.n_voxels:,} nodes with {self.n_edges:,} edges"
        return (
            f"{self.n_voxels:,} voxels with {self.neighbours:.0f} neighbours, "
            f"{self.n_in} directions to {self.n_out}"
        )


@dataclass(frozen=True)
class _Stages:
    """Sizes of the recoupled evaluation of a filter, for one voxel and output direction."""

    embedding: int  # harmonics times radial functions of the q-offset
    coupled: int  # numbers after the q-coupling
    mixed: int  # numbers after the mixing
    coupling: int  # multiply-adds of the q-coupling
    mixing: int
    p_dense: int  # of the p-stage, for one neighbour, by matrices
    p_sparse: int  # by Clebsch-Gordan coefficients that are not zero
    p_joined: int  # of mixing and p-stage by one matrix for each neighbour

    @classmethod
    def of(cls, filter: PQFilter) -> _Stages:
        k_p, _, k_q = filter.radial
        inner: set[int] = set()
        coupled = mixed = coupling = mixing = p_dense = p_sparse = 0
        for m in filter.recoupling.mixings:
            n = 2 * m.l_1 + 1
            coupled += n * m.n_columns
            mixed += n * m.n_rows
            mixing += n * m.n_columns * m.n_rows
            for block in m.columns:
                inner.add(block.l)
                channels = filter.channels_in[block.channels]
                coupling += k_q * channels.mul * _nonzeros(block.l, channels.l, m.l_1)
            for block in m.rows:
                channels = filter.channels_out[block.channels]
                p_dense += channels.mul * k_p * n * (2 * channels.l + 1)
                p_sparse += channels.mul * (k_p * n + _nonzeros(block.l, m.l_1, channels.l))
        return cls(
            k_q * sum(2 * l + 1 for l in inner),
            coupled,
            mixed,
            coupling,
            mixing,
            p_dense,
            p_sparse,
            coupled * filter.dim_out,
        )


@dataclass(frozen=True)
class _Work:
    """Multiply-adds, numbers moved and numbers held of an evaluation, besides the features."""

    operations: float
    moved: float
    held: float
    whole: float = 0.0  # held too, and no budget splits it


def _estimate(backend: str, sizes: _Sizes, device: str) -> Estimate:
    count = {
        "edges": _edges,
        "dense": _dense,
        "fourier": _fourier,
        "recoupled": _recoupled,
        "triton": _triton,
    }[backend]
    work, item = count(sizes), sizes.itemsize
    moved = (work.moved + sizes.features) * item
    held = (work.whole + sizes.features) * item + min(work.held * item, sizes.budget)
    seconds = work.operations / RATES[device][backend] + moved / BANDWIDTH[device]
    return Estimate(backend, work.operations, moved, held, seconds / 1e9)


def _edges(s: _Sizes) -> _Work:
    f = s.filter
    coupled = sum((2 * p.l_out + 1) * (2 * p.l_in + 1) * (2 * p.l_filter + 1) for p in f.paths)
    weighted = f.weight.numel() + len(f.paths) * f.dim_out * f.dim_in
    n_edges = s.n_edges * s.n_in * s.n_out
    kernel = f.dim_out * f.dim_in
    return _Work(
        n_edges * (coupled + weighted + kernel), 4 * n_edges * kernel, 2 * n_edges * kernel
    )


def _dense(s: _Sizes) -> _Work:
    f = s.filter
    stages = s.stages
    k_p, k_out, _ = f.radial
    matrix = s.n_out * f.dim_out * s.n_in * f.dim_in
    outer = k_p * sum(2 * l + 1 for l in {0 if f.kind == "diff" else p.l_p for p in f.paths})
    mixing = s.n_out * k_out * stages.embedding * outer * f.dim_out * f.dim_in
    if f.kind == "diff":
        building = mixing + matrix * s.n_types * stages.embedding
    else:
        building = mixing + matrix * (stages.embedding * outer + outer * s.n_types)
    volume = s.n_box * s.n_in * f.dim_in
    held = matrix * (outer + 2 * s.n_cells) + s.n_box * s.n_out * f.dim_out
    return _Work(building + s.n_box * s.n_cells * matrix, 2 * (held + volume), held, volume)


def _recoupled(s: _Sizes) -> _Work:
    f = s.filter
    stages = s.stages
    operations: float
    moved: float
    if s.nodes:
        operations = s.n_edges * (stages.embedding * f.dim_in + stages.coupling + stages.p_dense)
        return _Work(
            operations, s.n_edges * (stages.coupled + stages.mixed), s.n_edges * stages.mixed
        )
    # A "diff" filter has embeddings of every edge, and of no voxel.
    places = s.n_edges if f.kind == "diff" else s.n_voxels
    aggregated = s.n_in * stages.embedding * f.dim_in + stages.coupling
    if s.n_out == 1:
        operations = places * aggregated + s.n_edges * stages.p_joined
        moved = places * stages.coupled + s.n_edges * stages.coupled
        return _Work(operations, 2 * moved, places * stages.coupled)
    operations = s.n_out * (places * (aggregated + stages.mixing) + s.n_edges * stages.p_dense)
    numbers = stages.embedding * f.dim_in + 2 * stages.coupled + 2 * stages.mixed
    moved = s.n_out * (places * numbers + s.n_edges * stages.mixed)
    return _Work(operations, moved, s.n_out * places * (stages.coupled + 2 * stages.mixed))


def _fourier(s: _Sizes) -> _Work:
    f = s.filter
    stages = s.stages
    joined = stages.embedding * f.dim_in
    outer = f.radial[0] * sum(2 * l + 1 for l in {p.l_p for p in f.paths})
    # At half as many frequencies as places, but real and imaginary parts; J serves a whole shell.
    products = joined * (s.n_in + 2 * f.dim_out) * s.n_out
    joining = f.radial[1] * outer * joined * f.dim_out / 2
    features = s.n_in * f.dim_in + s.n_out * f.dim_out
    operations = s.n_places * (products + joining)
    moved = s.n_places * (4 * features + 2 * s.n_out * joined + f.radial[1] * joined * f.dim_out)
    return _Work(operations, moved, 2 * s.n_places * features)


def _triton(s: _Sizes) -> _Work:
    f = s.filter
    stages = s.stages
    operations: float
    coupled, mixed = stages.coupled, stages.mixed
    if s.nodes:
        operations = s.n_edges * (stages.coupling + stages.coupled + stages.p_sparse)
        return _Work(operations, s.n_edges * f.dim_in, s.n_voxels * mixed)
    k_q = f.radial[2]
    q_stage = s.n_in * (stages.coupling / k_q + coupled)
    operations = s.n_out * (s.n_voxels * (q_stage + stages.mixing) + s.n_edges * stages.p_sparse)
    moved = s.n_out * (s.n_voxels * 2 * (coupled + mixed) + s.n_edges * mixed / 4)
    return _Work(operations, moved, s.n_out * s.n_voxels * (coupled + mixed))


@cache
def _nonzeros(l_a: int, l_b: int, l_c: int) -> int:
    return int(np.count_nonzero(np.abs(clebsch_gordan(l_a, l_b, l_c)) > 1e-12))


# -- words ---------------------------------------------------------------------------------------


def _number(value: float) -> str:
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.0f}"


def _size(value: float) -> str:
    return _number(value) + "B" if value >= 1e3 else f"{value:.0f} B"
