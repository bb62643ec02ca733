"""The description of a back end, and the request that it evaluates.

Each file of a back end ends with one `BackEnd`: a name, the reason why it cannot evaluate a request
(`obstacle`), its `cost`, the measured `rates`, and the function that evaluates.
`tripq.backends.plan` ranks those that can evaluate a `Request`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tripq.backends.precision import Evaluate
from tripq.backends.sizes import Stages, stages_of
from tripq.domain.nodes import NodeSpace
from tripq.domain.qspace import QSpace
from tripq.domain.voxels import PEdges
from tripq.filters.filter import PQFilter
from tripq.kernels.launch import accumulation_dtype


@dataclass(frozen=True, eq=False)
class Request:
    """One filter on one scan, and the sizes on which the operations of a forward pass depend.

    Attributes
    ----------
    edges : PEdges
        The edges between the voxels of the scan.
    filter : PQFilter
        The filter.
    q : QSpace or NodeSpace
        The directions.
    dtype : torch.dtype
        Type of the weights.
    device : torch.device
        Where they are.
    budget : int
        Bytes that working arrays may take.
    differentiated_p, differentiated_q : bool
        Whether the p-offsets, and the q-vectors or quadrature weights, require gradients or carry
        tangents.
    bfloat16 : bool
        Whether autocast lets convolutions compute in bfloat16.
    """

    edges: PEdges
    filter: PQFilter
    q: QSpace | NodeSpace
    dtype: torch.dtype
    device: torch.device
    budget: int
    differentiated_p: bool = False
    differentiated_q: bool = False
    bfloat16: bool = False

    @classmethod
    def of(cls, edges: PEdges, q: QSpace | NodeSpace, filter: PQFilter, budget: int) -> Request:
        """The request for a filter and a scan."""
        if isinstance(q, NodeSpace):
            of_q = q.q, q.q_out, q.edges.weights
        else:
            of_q = q.q_in, q.q_out, q.weights
        return cls(
            edges,
            filter,
            q,
            filter.weight.dtype,
            filter.weight.device,
            budget,
            any(_differentiated(t) for t in (edges.offsets, edges.weights) if t is not None),
            any(_differentiated(t) for t in of_q),
            _in_bfloat16(filter.weight),
        )

    @property
    def on_gpu(self) -> bool:
        """Whether it will be evaluated on a CUDA device."""
        return self.device.type == "cuda"

    @property
    def itemsize(self) -> int:
        """Bytes of a number in working arrays."""
        return accumulation_dtype(self.dtype).itemsize

    @property
    def nodes(self) -> bool:
        """Whether voxels have individual directions."""
        return isinstance(self.q, NodeSpace)

    @property
    def n_voxels(self) -> int:
        """Number of voxels, or of output nodes."""
        return len(self.q.q_out) if isinstance(self.q, NodeSpace) else self.edges.n_voxels

    @property
    def n_in(self) -> int:
        """Directions of the input; 1 for nodes."""
        return 1 if isinstance(self.q, NodeSpace) else len(self.q.q_in)

    @property
    def n_out(self) -> int:
        """Directions of the output; 1 for nodes."""
        return 1 if isinstance(self.q, NodeSpace) else len(self.q.q_out)

    @property
    def n_types(self) -> int:
        """Number of different p-offsets."""
        return len(self.edges.offsets)

    @cached_property
    def n_edges(self) -> int:
        """Number of p-edges, or of edges between nodes."""
        if isinstance(self.q, NodeSpace):
            return len(self.q.edges.dst)
        return self.edges.n_edges

    @cached_property
    def _box(self) -> tuple[int, tuple[int, int, int], tuple[int, int, int]]:
        """Volumes and shape of the smallest boxes around the voxels, and how far offsets reach."""
        assert self.edges.grid is not None
        number, x, y, z = self.edges.grid.cropped[0] if self.n_voxels else (0, 0, 0, 0)
        return number, (x, y, z), self.edges.margin

    @property
    def n_box(self) -> int:
        """Voxels of the smallest box around the mask, of all volumes."""
        number, box, _ = self._box
        return number * math.prod(box)

    @property
    def n_places(self) -> int:
        """The same with margins for the neighbours."""
        number, box, margin = self._box
        return number * math.prod(n + m for n, m in zip(box, margin, strict=True))

    @property
    def n_cells(self) -> int:
        """Voxels of the smallest box around the p-offsets."""
        return math.prod(2 * m + 1 for m in self._box[2]) if self.n_voxels else 0

    @property
    def stages(self) -> Stages:
        """Sizes of the recoupled evaluation, for one voxel and output direction."""
        return stages_of(self.filter)

    @property
    def features(self) -> int:
        """Numbers of the input and the output."""
        return self.n_voxels * (self.n_in * self.filter.dim_in + self.n_out * self.filter.dim_out)


def _in_bfloat16(weight: Tensor) -> bool:
    """Whether convolutions with some weights compute in bfloat16 under autocast."""
    kind = weight.device.type
    return (
        torch.is_autocast_enabled(kind)
        and torch.get_autocast_dtype(kind) == torch.bfloat16
        and weight.dtype != torch.float64
    )


def _differentiated(t: Tensor) -> bool:
    """Whether a tensor requires a gradient, or carries a tangent of forward-mode AD."""
    return t.requires_grad or forward_ad.unpack_dual(t).tangent is not None


def empty_sum(x: Tensor, q: QSpace | NodeSpace, filter: PQFilter) -> Tensor:
    """The sum of a filter without paths or voxels: zeros, of the shape in `tripq.backends`."""
    n_out = (len(q.q_out),) if isinstance(q, NodeSpace) else (len(x), len(q.q_out))
    return x.new_zeros(*n_out, filter.dim_out)


def by_kind_of_directions(
    on_shared: Callable[[Tensor, PEdges, QSpace, PQFilter, int], Tensor],
    on_nodes: Callable[[Tensor, PEdges, NodeSpace, PQFilter, int], Tensor],
) -> Evaluate:
    """A back end from the sums for directions that voxels share, and for individual ones.

    Neither is asked for the sum of a filter without paths, `empty_sum`.
    """

    def evaluate(
        x: Tensor, edges: PEdges, q: QSpace | NodeSpace, filter: PQFilter, budget: int
    ) -> Tensor:
        """The sum over all edges; shapes as in `tripq.backends`."""
        if not filter.paths:
            return empty_sum(x, q, filter)
        if isinstance(q, NodeSpace):
            return on_nodes(x, edges, q, filter, budget)
        return on_shared(x, edges, q, filter, budget)

    return evaluate


def grid_obstacle(request: Request) -> str | None:
    """Why a back end for grids with directions that all voxels share cannot evaluate a request."""
    if request.nodes:
        return "voxels have individual directions"
    if request.edges.grid is None:
        return "the voxels are not on a grid"
    return None


def no_obstacle(request: Request) -> None:
    """None: the back end can evaluate every request."""


@dataclass(frozen=True)
class Work:
    """Multiply-adds, numbers moved and numbers held of an evaluation, besides the features.

    Attributes
    ----------
    operations : float
        Multiply-adds.
    moved : float
        Numbers read and written, if nothing stays in a cache between stages.
    held : float
        Numbers in working arrays, which a budget splits.
    whole : float
        Held too, and no budget splits it.
    """

    operations: float
    moved: float
    held: float
    whole: float = 0.0


@dataclass(frozen=True)
class BackEnd:
    """A way to evaluate the sum of a filter over the edges of a graph.

    Attributes
    ----------
    name : str
        What `backend` of a layer calls it.
    obstacle : callable
        Why it cannot evaluate a request, or None if it can.
    cost : callable
        What a request takes.
    rates : mapping of str to float
        Multiply-adds in a nanosecond by kind of device: what it reached on the workloads of
        ``perf/profile.py``.  Machines differ, but only the ratios between back ends matter.  Those
        of a GPU are rough, of trials on an H100 in float32.  ``"cpu, bfloat16"`` is the rate under
        autocast, if it is another one, on processors with instructions for it.
    evaluate : callable
        ``evaluate(x, edges, q, filter, budget)``, see `tripq.backends`; for requests without an
        obstacle only.
    needs_gpu : bool
        Whether its kernels need a CUDA device.  Without one it runs in plain torch where it is
        asked for by name, and is not chosen.
    """

    name: str
    obstacle: Callable[[Request], str | None]
    cost: Callable[[Request], Work]
    rates: Mapping[str, float]
    evaluate: Evaluate
    needs_gpu: bool = False
