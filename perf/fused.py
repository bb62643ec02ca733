"""What the layer on irregular points is compared with: OpenEquivariance's fused convolution.

It multiplies the features at the end of every edge by harmonics and weights that are given for the
edge, and sums.  The harmonics, coupled in p and q, are made once; the weights follow from the
radial functions by a matrix product in every call.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from checks import TOLERANCES
from domains import Cloud, features, graph_of, layer_of, sizes_of
from layers import Passes
from measure import Memory, timed
from peers import made
from rows import Row
from torch import Tensor, nn

from tripq import PQGraph, PQTensorFieldLayer

#: Edges whose harmonics are made at a time.
SET_UP_EDGES = 500_000


class FusedConvolution(nn.Module):
    """A layer on nodes, with its weights, by OpenEquivariance.

    Parameters
    ----------
    layer : PQTensorFieldLayer
        Whose ``"tp"`` filter this is.
    graph : PQGraph
        Of nodes, on the device.
    """

    def __init__(self, layer: PQTensorFieldLayer, graph: PQGraph) -> None:
        super().__init__()
        import openequivariance as oeq

        (self.filter,) = layer.filters
        (scan,) = graph.scans
        number = self.filter.weight.dtype
        edges = scan.q.edges
        by_receiver = np.lexsort((edges.src.cpu().numpy(), edges.dst.cpu().numpy()))
        order = torch.from_numpy(by_receiver).to(edges.dst)
        self.to, self.source = edges.dst[order], edges.src[order]
        by_sender = np.lexsort((self.to.cpu().numpy(), self.source.cpu().numpy()))
        self.by_sender = torch.from_numpy(by_sender).to(edges.dst)
        p = scan.edges.offsets[scan.edges.type[edges.p_edge[order]]].to(number)
        q_out, q_in = scan.q.q_out[self.to].to(number), scan.q.q[self.source].to(number)
        with torch.no_grad():
            edge_by_edge = made(layer).to(p)
            some = torch.arange(len(p), device=p.device).split(SET_UP_EDGES)
            parts = [(p[part], q_out[part], q_in[part]) for part in some]
            self.angular = torch.cat([edge_by_edge.angular(*part) for part in parts])
            self.radial = edge_by_edge.radial(p, q_out, q_in)
            self.radial = self.radial * edges.weights[order, None].to(number)

        filter = self.filter
        channels_in, channels_out = filter.channels_in, filter.channels_out
        couplings = edge_by_edge.couplings
        instructions = [
            (
                filter.channels_of(path)[0],
                couplings.index((path.l_p, path.l_q, path.l_filter)),
                filter.channels_of(path)[1],
                "uvw",
                True,
            )
            for path in filter.paths
        ]
        features_type = torch.empty(0, dtype=number).numpy().dtype.type
        problem = oeq.TPProblem(
            oeq.Irreps([(c.mul, (c.l, 1)) for c in channels_in]),
            oeq.Irreps([(1, (l, 1)) for _, _, l in couplings]),
            oeq.Irreps([(c.mul, (c.l, 1)) for c in channels_out]),
            instructions,
            shared_weights=False,
            internal_weights=False,
            irrep_normalization="none",
            path_normalization="none",
            irrep_dtype=features_type,
            weight_dtype=features_type,
        )
        # "Even greater speedup (and deterministic results)" where edges are sorted.
        self.convolution = oeq.TensorProductConv(problem, deterministic=True)
        number_of_weights = torch.arange(problem.weight_numel, dtype=torch.float32)[None]
        moved = self.convolution.reorder_weights_from_e3nn(number_of_weights)
        self.order = moved[0].round().long().to(self.to.device)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, dim_in) to (N, dim_out)."""
        columns = []
        for path, weight in self.filter.path_weights():
            # Wigner's coefficients, and with the factors in the other order.
            scale = math.sqrt((2 * path.l_filter + 1) * (2 * path.l_out + 1))
            scale *= (-1) ** (path.l_in + path.l_filter + path.l_out)
            columns.append(scale * weight.permute(2, 3, 4, 1, 0).flatten(3).flatten(0, 2))
        weights = self.radial @ torch.cat(columns, dim=1)[:, self.order]
        out: Tensor = self.convolution(
            x, self.angular, weights, self.to, self.source, self.by_sender
        )
        return out


def measure_openequivariance(
    workload: Cloud, method: str, device: str, dtype: str, repeats: int
) -> Row:
    """As a layer is measured, with the embeddings of the edges as a part of the set-up."""
    torch.backends.cuda.matmul.allow_tf32 = False
    number = getattr(torch, dtype)
    memory = Memory(device)
    graph_seconds, graph = timed(lambda: graph_of(workload).to(device), device)
    layer = layer_of(workload, "edges").to(device, number)
    layer_seconds, fused = timed(lambda: FusedConvolution(layer, graph), device)
    x = features(graph, layer.irreps_in.dim).to(device, number).requires_grad_()
    passes = Passes(lambda: fused(x), layer, x, device, repeats)
    peak = memory.peak()
    error, wrong = passes.errors(workload, graph, TOLERANCES[dtype])
    return Row(
        workload.name,
        method,
        sizes=sizes_of(graph, layer),
        error=error,
        gradient_error=wrong,
        tolerance=TOLERANCES[dtype],
        graph=graph_seconds,
        layer=layer_seconds,
        first_call=passes.first_call,
        forward=passes.forward_seconds,
        forward_backward=passes.both_seconds,
        peak_memory=peak,
    )
