"""One layer by one back end."""

from __future__ import annotations

import torch
from checks import (
    TF32_TOLERANCE,
    TOLERANCES,
    definition,
    gradient_error,
    refuse_if_wrong,
    relative_error,
    some_nodes,
)
from domains import LayerWorkload, features, graph_of, layer_of, sizes_of
from measure import Memory, repeated, timed
from rows import Row
from stages import time_of_stages
from torch import Tensor, nn

from tripq import PQGraph, PQTensorFieldLayer


def measure_layer(
    workload: LayerWorkload, method: str, device: str, dtype: str, repeats: int
) -> Row:
    """Set up, call, compare; run in a process of its own."""
    tf32 = method == "dense-tf32"
    backend = "dense" if tf32 else method
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    tolerance = TF32_TOLERANCE if tf32 else TOLERANCES[dtype]
    number = getattr(torch, dtype)
    memory = Memory(device)
    graph_seconds, graph = timed(lambda: graph_of(workload).to(device), device)
    layer_seconds, layer = timed(lambda: layer_of(workload, backend).to(device, number), device)
    x = features(graph, layer.irreps_in.dim).to(device, number).requires_grad_(workload.backward)
    nodes = some_nodes(x.shape)

    def forward() -> Tensor:
        with torch.no_grad():
            return layer(x, graph)[nodes]

    def both() -> tuple[Tensor, float]:
        y = layer(x, graph)
        loss = y.square().mean()
        loss.backward()
        return y.detach()[nodes], loss.item()

    def changed() -> None:
        touch(layer)
        x.grad = None

    first_call = timed(forward, device)[0]
    forward_seconds, y = repeated(forward, device, repeats)
    outputs, both_seconds, wrong = [y], None, None
    if workload.backward:
        both_seconds, (y, loss) = repeated(both, device, repeats, changed)
        outputs.append(y)
    peak = memory.peak()

    reference = layer_of(workload, "edges").double()
    reference.load_state_dict(layer.state_dict())
    expected = definition(reference, x.detach().cpu(), graph.to("cpu"), nodes)
    error = max(relative_error(output, expected) for output in outputs)
    refuse_if_wrong(error, tolerance)
    if workload.backward:
        wrong = gradient_error(layer, x, loss)
        refuse_if_wrong(wrong, tolerance, "gradient")
    operations, moved = work([layer], graph)
    changed()
    return Row(
        workload.name,
        method,
        getattr(workload, "axis", ""),
        sizes=sizes_of(graph, layer),
        error=error,
        gradient_error=wrong,
        tolerance=tolerance,
        graph=graph_seconds,
        layer=layer_seconds,
        first_call=first_call,
        forward=forward_seconds,
        forward_backward=both_seconds,
        peak_memory=peak,
        operations=operations,
        bytes=moved,
        stages=time_of_stages(both if workload.backward else forward, device),
        choice=choice([layer], graph) if method == "auto" else "",
    )


@torch.no_grad()
def touch(module: nn.Module) -> None:
    """Change the weights by nothing, so that whatever was kept of them is made anew."""
    for parameter in module.parameters():
        parameter.add_(0)
        parameter.grad = None


def work(layers: list[PQTensorFieldLayer], graph: PQGraph) -> tuple[float, float]:
    """Multiply-adds and bytes of a forward pass, as the layers explain them."""
    plans = [plan for layer in layers for plan in layer.explain(graph).plans]
    return sum(plan.operations for plan in plans), sum(plan.bytes for plan in plans)


def choice(layers: list[PQTensorFieldLayer], graph: PQGraph) -> str:
    """What the layers run: one back end, or as many as there are filters that differ in it."""
    chosen = [plan.backend for layer in layers for plan in layer.explain(graph).plans]
    return " + ".join(dict.fromkeys(chosen))
