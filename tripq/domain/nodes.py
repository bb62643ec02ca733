"""Lists of nodes: voxels with individual directions, and the edges between nodes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from tripq.domain.checks import coordinates, vectors_of, volumes_of, weights_of
from tripq.domain.qspace import QEdges, QShells, index_pairs, longest, same_shell
from tripq.domain.voxels import PEdges, point_edges
from tripq.infra.kept import kept_property

#: Without given voxels, nodes closer than this (mm) belong to one voxel.  Coordinates that went
#: through float32 differ by 1e-4 mm, and the voxels of a microscope are 1e-2 mm apart.
SAME_VOXEL_MM = 1e-3


@dataclass(frozen=True, eq=False)
class NodeEdges:
    """Edges between nodes: output node, input node, p-edge, quadrature weight."""

    dst: Tensor
    src: Tensor
    p_edge: Tensor
    weights: Tensor


@dataclass(frozen=True, eq=False)
class NodeSpace:
    """A separate q-space at every voxel: a list of nodes and the edges between them.

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
    expansion : NodeEdges
        From one input at q = 0 for each voxel to output nodes.
    n_voxels : int
        Number of voxels.
    given : bool
        Whether the user gave the weights, which are then used as they are.
    shares : Tensor of shape (N,), float64, or None
        Of an integral, as in `QSpace`: the share of its shell in its voxel that each input node
        stands for.
    """

    voxel: Tensor
    q: Tensor
    voxel_out: Tensor
    q_out: Tensor
    resampled: bool
    edges: NodeEdges
    reduction: NodeEdges
    expansion: NodeEdges
    n_voxels: int
    given: bool = False
    shares: Tensor | None = None

    @kept_property
    def integral(self) -> NodeSpace:
        """The same nodes with weights of an integral over q in every voxel; see `QSpace`."""
        if self.given:
            return self
        shell, shares = _shells_of_voxels(self.q, self.voxel, self.n_voxels)
        return replace(
            self,
            edges=_shared(self.edges, shell, shares),
            reduction=_shared(self.reduction, shell, shares),
            shares=shares,
        )

    @kept_property
    def reduced(self) -> NodeSpace:
        """The same input nodes, joined to one output at q = 0 in every voxel."""
        voxel, q = self._origins()
        return replace(self, voxel_out=voxel, q_out=q, resampled=True, edges=self.reduction)

    @kept_property
    def expanded(self) -> NodeSpace:
        """One input at q = 0 in every voxel, joined to the same output nodes."""
        voxel, q = self._origins()
        return replace(self, voxel=voxel, q=q, resampled=True, edges=self.expansion)

    def _origins(self) -> tuple[Tensor, Tensor]:
        """A node at q = 0 in every voxel."""
        voxel = torch.arange(self.n_voxels, device=self.q.device)
        return voxel, self.q.new_zeros(self.n_voxels, 3)

    @kept_property
    def q_max(self) -> float:
        """The largest |q|."""
        return longest(torch.cat([self.q, self.q_out]))


def node_space(
    p: ArrayLike | Tensor,
    q: ArrayLike | Tensor,
    radius: float,
    voxel: ArrayLike | Tensor | None,
    q_edges: QEdges | ArrayLike | Tensor,
    p_out: ArrayLike | Tensor | None,
    q_out: ArrayLike | Tensor | None,
    voxel_out: ArrayLike | Tensor | None,
    q_weights: ArrayLike | Tensor | None,
    volumes: ArrayLike | Tensor | None,
) -> tuple[Tensor, PEdges, NodeSpace]:
    """Centres (V, 3) of the voxels of nodes, their p-edges, and the nodes.

    Arguments and errors are those of ``PQGraph.from_nodes``.
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
        raise ValueError("voxel_out, the voxels of p_out, must be given if voxel is given")
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
    edges = point_edges(points, radius, volumes_of(volumes, len(points)))
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
        weights is not None,
    )
    return points, edges, nodes


def _shells_of_voxels(q: Tensor, voxel: Tensor, n_voxels: int) -> tuple[Tensor, Tensor]:
    """Shell of each node, numbered through all voxels, and the share of it that it represents."""
    shell = torch.zeros_like(voxel)
    shares = torch.ones_like(q[:, 0]).detach()
    order = torch.argsort(voxel, stable=True)
    known: dict[bytes, QShells] = {}
    first = 0
    for some in order.split(torch.bincount(voxel, minlength=n_voxels).tolist()):
        if not len(some):
            continue
        table = q[some].detach()
        key = coordinates(table).tobytes()
        shells = known[key] = known.get(key) or QShells.of(table)
        shell[some] = first + shells.member.to(torch.int64).argmax(dim=0)
        shares[some] = shells.shares
        first += len(shells.orders)
    return shell, shares


def _shared(edges: NodeEdges, shell: Tensor, shares: Tensor) -> NodeEdges:
    """The edges with weights that have the sum 1 for each output node, p-edge and shell."""
    ends = torch.stack([edges.dst, edges.p_edge, shell[edges.src]])
    _, group = torch.unique(ends, dim=1, return_inverse=True)
    weights = shares[edges.src]
    sums = weights.new_zeros(len(group)).index_add(0, group, weights)
    sums = sums.clamp(min=torch.finfo(sums.dtype).tiny)
    return replace(edges, weights=weights / sums[group])


def voxels_of(p: NDArray[np.float64]) -> Tensor:
    """Number of the voxel of each node at `p`, in order of appearance; by `SAME_VOXEL_MM`."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import KDTree

    distinct, place = np.unique(p, axis=0, return_inverse=True)
    near = KDTree(distinct).query_pairs(SAME_VOXEL_MM, output_type="ndarray")
    a, b = near[:, 0], near[:, 1]
    number = len(distinct)
    joined = coo_array((np.ones(len(a)), (a, b)), shape=(number, number))
    n_groups, group = connected_components(joined, directed=False)
    size = np.bincount(group, minlength=n_groups)
    pairs = np.bincount(group[a], minlength=n_groups)
    if (chains := np.flatnonzero(pairs < size * (size - 1) // 2)).size:
        x, y, z = distinct[group == chains[0]][0]
        raise ValueError(
            f"nodes near ({x:g}, {y:g}, {z:g}) mm form a chain, each closer than "
            f"{SAME_VOXEL_MM:g} mm to the next: give the voxel of each node by voxel="
        )
    _, first, inverse = np.unique(group[place.ravel()], return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return torch.from_numpy(rank[inverse.ravel()])


def voxel_numbers(values: ArrayLike | Tensor, name: str, number: int) -> Tensor:
    """`number` integers; otherwise a `ValueError` that names them."""
    numbers = values.cpu() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    if numbers.shape != (number,) or numbers.dtype.is_floating_point or numbers.dtype == torch.bool:
        raise ValueError(
            f"{name} must be {number} integers, one for each node, not {numbers.dtype} of shape "
            f"{tuple(numbers.shape)}"
        )
    return numbers.to(torch.int64)


def check_voxel_numbers(numbers: Tensor) -> None:
    """Raise a `ValueError` unless the numbers are 0, 1, ..., each at least once."""
    present = numbers.unique()
    if not present.equal(torch.arange(len(present))):
        raise ValueError(
            f"voxels must be numbered from 0 without gaps, but {len(present)} numbers from "
            f"{int(present[0])} to {int(present[-1])} are given"
        )


def centres(p: Tensor, voxel: Tensor) -> Tensor:
    """Mean position of the nodes of each voxel; exact where all are at one place."""
    count = torch.bincount(voxel)
    some = torch.empty(len(count), dtype=torch.int64).index_put((voxel,), torch.arange(len(p)))
    origin = p.detach()[some]
    shifts = torch.zeros_like(origin).index_add(0, voxel, p - origin[voxel])
    return origin + shifts / count[:, None]


def node_edges(
    edges: PEdges,
    voxel_out: Tensor,
    q_out: Tensor,
    voxel_in: Tensor,
    q_in: Tensor,
    q_edges: QEdges | ArrayLike | Tensor,
    weights: Tensor | None,
) -> NodeEdges:
    """Edges from input to output nodes whose voxels are joined by `edges`.

    Without given `weights` each output averages over the input nodes of a voxel.

    Raises
    ------
    ValueError
        If `q_edges` names no nodes, or nodes of voxels that are not joined.
    """
    if isinstance(q_edges, str):
        dst, src, p_edge = _all_node_pairs(edges, voxel_out, voxel_in)
        if q_edges == "shell":
            keep = same_shell(q_out[dst], q_in[src])
            dst, src, p_edge = dst[keep], src[keep], p_edge[keep]
        elif q_edges != "full":
            raise ValueError(
                f'q_edges must be "full", "shell" or pairs of indices, not {q_edges!r}'
            )
    else:
        dst, src = index_pairs(q_edges, len(q_out), len(q_in))
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


def nodes_on(edges: NodeEdges, keep: Tensor) -> NodeEdges:
    """The edges between nodes whose p-edge is kept, the p-edges renumbered."""
    kept = keep[edges.p_edge]
    renumbered = torch.cumsum(keep, 0) - 1
    return NodeEdges(
        edges.dst[kept], edges.src[kept], renumbered[edges.p_edge[kept]], edges.weights[kept]
    )
