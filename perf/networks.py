"""Whole networks: a training step, and a brain segmented."""

from __future__ import annotations

import numpy as np
import torch
from checks import TOLERANCES, network_error, refuse_if_wrong
from domains import conv_network, conv_widths, scan_of, segmenter
from layers import choice, work
from measure import Memory, repeated, timed
from rows import Row
from stages import time_of_stages
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.flop_counter import FlopCounterMode
from workloads import Step, WholeBrain

from tripq import PQGraph, PQTensorFieldLayer
from tripq.networks.blocks import graph_radius
from tripq.tasks.lesions.segmentation import segment

#: Errors add up over the layers of a network.
LAYERS = 4


def measure_step(workload: Step, method: str, device: str, dtype: str, repeats: int) -> Row:
    """A training step; the forward pass alone is in evaluation mode."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    number, tolerance = getattr(torch, dtype), LAYERS * TOLERANCES[dtype]
    scan = scan_of(workload)
    plain = method == "conv-network"
    widths = conv_widths() if plain else ()
    memory = Memory(device)

    def made(backend: str) -> nn.Module:
        return conv_network(len(scan.q), widths) if plain else segmenter(backend)

    layer_seconds, network = timed(lambda: made(method).to(device, number), device)
    # The radius of the convolutions is theirs; the graph tells them where the voxels stand.
    radius = 0.0 if plain else graph_radius(network)

    def merged() -> PQGraph:
        one = PQGraph.from_grid(scan.mask, scan.affine, scan.q, radius)
        return PQGraph.merge([one] * workload.boxes).to(device)

    graph_seconds, graph = timed(merged, device)
    signal = torch.from_numpy(scan.signal).to(device, number).repeat(workload.boxes, 1)
    generator = torch.Generator().manual_seed(4)
    lesion = torch.randint(2, (len(signal),), generator=generator).to(device, number)
    optimizer = torch.optim.Adam(network.parameters())

    @torch.no_grad()
    def forward() -> Tensor:
        return network(signal, graph)

    def step() -> None:
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(network(signal, graph), lesion).backward()
        optimizer.step()

    first_call = timed(lambda: forward().sum(), device)[0]
    step_seconds = repeated(step, device, repeats)[0]
    network.eval()
    forward_seconds, logits = repeated(forward, device, repeats)
    peak = memory.peak()
    error = network_error(network, made("edges"), scan, logits[: len(scan.signal)])
    refuse_if_wrong(error, tolerance)
    layers = [m for m in network.modules() if isinstance(m, PQTensorFieldLayer)]
    operations, moved = _work(network, layers, graph, forward)
    network.train()
    return Row(
        workload.name,
        method,
        sizes={"voxels": graph.n_voxels, "directions": len(scan.q)},
        error=error,
        tolerance=tolerance,
        graph=graph_seconds,
        layer=layer_seconds,
        first_call=first_call,
        forward=forward_seconds,
        forward_backward=step_seconds,
        peak_memory=peak,
        operations=operations,
        bytes=moved,
        stages=time_of_stages(step, device),
        choice=choice(layers, graph) if method == "auto" else "",
    )


def _work(
    network: nn.Module, layers: list[PQTensorFieldLayer], graph: PQGraph, forward: object
) -> tuple[float, float | None]:
    """Multiply-adds and bytes of the layers, or the multiply-adds of convolutions."""
    if layers:
        return work(layers, graph)
    with FlopCounterMode(display=False) as counter:
        forward()  # type: ignore[operator]
    return counter.get_total_flops() / 2, None


def measure_brain(workload: WholeBrain, method: str, device: str, dtype: str, repeats: int) -> Row:
    """A scan segmented block by block, graphs included."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    tolerance = LAYERS * TOLERANCES[dtype]
    scan = scan_of(workload)
    memory = Memory(device)
    layer_seconds, network = timed(lambda: segmenter(method).to(device).eval(), device)

    def segmented() -> np.ndarray:
        return segment(network, scan, device=device)

    first_call = timed(segmented, device)[0]
    forward_seconds, probabilities = repeated(segmented, device, repeats)
    peak = memory.peak()
    logits = torch.logit(torch.from_numpy(probabilities).double())
    error = network_error(network, segmenter("edges"), scan, logits)
    refuse_if_wrong(error, tolerance)
    layers = [m for m in network.modules() if isinstance(m, PQTensorFieldLayer)]
    graph = PQGraph.from_grid(scan.mask, scan.affine, scan.q, graph_radius(network)).to(device)
    operations, moved = work(layers, graph)
    return Row(
        workload.name,
        method,
        sizes={"voxels": len(scan.signal), "directions": len(scan.q)},
        error=error,
        tolerance=tolerance,
        layer=layer_seconds,
        first_call=first_call,
        forward=forward_seconds,
        peak_memory=peak,
        operations=operations,
        bytes=moved,
        stages=time_of_stages(segmented, device),
        choice=choice(layers, graph) if method == "auto" else "",
    )
