"""What the layer on irregular points is compared with: OpenEquivariance's fused convolution.

It multiplies the features at the end of every edge by harmonics and weights that are given for the
edge, and sums.  The harmonics, coupled in p and q, are made once; the weights follow from the
radial functions by a matrix product in every call.
"""

from __future__ import annotations

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

        (filter,) = layer.filters
        (scan,) = graph.scans
        number = filter.weight.dtype
        edges = scan.q.edges
        by_receiver = np.lexsort((edges.src.cpu().numpy(), edges.dst.cpu().numpy()))
        order = torch.from_numpy(by_receiver).to(edges.dst)
        self.receiver, self.sender = edges.dst[order], edges.src[order]
        by_sender = np.lexsort((self.receiver.cpu().numpy(), self.sender.cpu().numpy()))
        self.by_sender = torch.from_numpy(by_sender).to(edges.dst)
        p = scan.edges.offsets[scan.edges.type[edges.p_edge[order]]].to(number)
        q_out, q_in = scan.q.q_out[self.receiver].to(number), scan.q.q[self.sender].to(number)
        with torch.no_grad():
            self.edge_by_edge = edge_by_edge = made(layer).to(p)
            some = torch.arange(len(p), device=p.device).split(SET_UP_EDGES)
            parts = [(p[part], q_out[part], q_in[part]) for part in some]
            self.angular = torch.cat([edge_by_edge.angular(*part) for part in parts])
            self.radial = edge_by_edge.radial(p, q_out, q_in)
            self.radial = self.radial * edges.weights[order, None].to(number)

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
        # Its faster way, without atomic sums, for sorted edges.
        self.convolution = oeq.TensorProductConv(problem, deterministic=True)
        number_of_weights = torch.arange(problem.weight_numel, dtype=torch.float32)[None]
        moved = self.convolution.reorder_weights_from_e3nn(number_of_weights)
        self.order = moved[0].round().long().to(self.receiver.device)
        # Coupling coefficients with their first two orders exchanged.
        signs = [
            torch.full((weight[..., 0, 0, 0].numel(),), (-1.0) ** (p.l_in + p.l_filter + p.l_out))
            for p, weight in filter.path_weights()
        ]
        self.signs = torch.cat(signs).to(self.radial)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, dim_in) to (N, dim_out)."""
        weights = self.radial @ (self.signs * self.edge_by_edge.weights())[:, self.order]
        out: Tensor = self.convolution(
            x, self.angular, weights, self.receiver, self.sender, self.by_sender
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
