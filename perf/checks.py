"""Whether a result is right: no figure is kept of a method whose result was not compared.

A layer is compared with its definition, `PQTensorFieldLayer.kernel` summed over the edges in
float64, at some nodes.  It is linear in its input and in its weights, so the gradients are compared
with the output by Euler's identity: the gradient of the loss by the input, times the input, is the
gradient by the output, times the output; and so for the weights.  A network is compared with itself
in float64 on what it sees around some voxels, its layers evaluated edge by edge.
"""

from __future__ import annotations

import numpy as np
import torch
from measure import NotMeasured
from torch import Tensor, nn

from tripq import PQGraph, PQTensorFieldLayer
from tripq.domain.nodes import NodeSpace
from tripq.domain.scan_graph import ScanGraph
from tripq.networks.blocks import graph_radius, receptive_field
from tripq.scans import DWI

CHECKED_NODES = 4

#: Of sums over thousands of terms, relative to the size of the result.
TOLERANCES = {"float64": 1e-11, "float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
TF32_TOLERANCE = 1e-2


def refuse_if_wrong(error: float, tolerance: float, what: str = "result") -> None:
    """Raise `NotMeasured` unless the error is small."""
    if not error < tolerance:
        raise NotMeasured(f"refused: the {what} is off by {error:.1e}, more than {tolerance:.0e}")


def some_nodes(shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Indices of some rows of features of that shape."""
    generator = torch.Generator().manual_seed(2)
    return tuple(torch.randint(n, (CHECKED_NODES,), generator=generator) for n in shape[:-1])


@torch.no_grad()
def definition(
    layer: PQTensorFieldLayer, x: Tensor, graph: PQGraph, nodes: tuple[Tensor, ...]
) -> Tensor:
    """The output at some nodes, straight from the definition; all in float64 on the CPU."""
    (scan,) = graph.scans
    at_one = _at_node if isinstance(scan.q, NodeSpace) else _at_voxel_and_direction
    return torch.stack(
        [at_one(layer, x, scan, *map(int, node)) for node in zip(*nodes, strict=True)]
    )


def _at_voxel_and_direction(
    layer: PQTensorFieldLayer, x: Tensor, scan: ScanGraph, voxel: int, direction: int
) -> Tensor:
    edges = torch.nonzero(scan.edges.dst == voxel)[:, 0]
    kernel = layer.kernel(
        scan.edges.offsets[scan.edges.type[edges]][:, None],
        scan.q.q_out[direction],
        scan.q.q_in[None],
    )
    weights = scan.q.weights[direction]
    return torch.einsum("eqoi,q,eqi->o", kernel, weights, x[scan.edges.src[edges]].double())


def _at_node(layer: PQTensorFieldLayer, x: Tensor, scan: ScanGraph, node: int) -> Tensor:
    joined = scan.q.edges
    edges = torch.nonzero(joined.dst == node)[:, 0]
    src = joined.src[edges]
    offsets = scan.edges.offsets[scan.edges.type[joined.p_edge[edges]]]
    kernel = layer.kernel(offsets, scan.q.q_out[node], scan.q.q[src])
    return torch.einsum("eoi,e,ei->o", kernel, joined.weights[edges], x[src].double())


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest error of the rows, each relative to its own size."""
    difference = found.detach().cpu().double() - expected
    return float((difference.norm(dim=-1) / expected.norm(dim=-1)).max())


def gradient_error(layer: PQTensorFieldLayer, x: Tensor, loss: float) -> float:
    """How far the gradients are from Euler's identity, for the loss ``y.square().mean()``."""
    weights = [f.weight for f in layer.filters]
    by_input = float((x.grad.double() * x.detach().double()).sum())
    by_weights = sum(float((w.grad.double() * w.detach().double()).sum()) for w in weights)
    return max(abs(by_input - 2 * loss), abs(by_weights - 2 * loss)) / (2 * loss)


# -- networks ------------------------------------------------------------------------------------


def network_error(network: nn.Module, reference: nn.Module, scan: DWI, logits: Tensor) -> float:
    """Largest error of the logits (V,) at some voxels, relative to the spread of all.

    `reference` is the same network, with layers evaluated edge by edge; it gets the weights.
    """
    reference.double().eval().load_state_dict(network.state_dict())
    logits = logits.detach().cpu().double()
    voxels = (0, len(logits) // 2)
    values = [_logit_of_cut_out(reference, scan, voxel) for voxel in voxels]
    expected = torch.tensor(values, dtype=torch.float64)
    return float((logits[list(voxels)] - expected).abs().max() / logits.std())


@torch.no_grad()
def _logit_of_cut_out(network: nn.Module, scan: DWI, voxel: int) -> float:
    """The logit of a voxel, from no more of the scan than the network sees."""
    position = np.argwhere(scan.mask)[voxel]
    reach = receptive_field(network, scan.affine)
    box = tuple(slice(max(0, p - r), p + r + 1) for p, r in zip(position, reach, strict=True))
    number = np.full(scan.mask.shape, -1)
    number[scan.mask] = np.arange(len(scan.signal))
    rows = number[box][scan.mask[box]]
    graph = PQGraph.from_grid(scan.mask[box], scan.affine, scan.q, graph_radius(network))
    logits = network(torch.from_numpy(scan.signal[rows]).double(), graph)
    return float(logits[int(np.flatnonzero(rows == voxel)[0])])
