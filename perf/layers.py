"""One layer by one back end."""

from __future__ import annotations

from collections.abc import Callable

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


class Passes:
    """Both passes of one evaluation of a layer, timed, with what they gave at some nodes.

    Parameters
    ----------
    evaluate : callable
        Gives the output.
    layer : PQTensorFieldLayer
        Whose weights are used, and changed before every backward pass.
    x : Tensor
        The features; without gradient there is no backward pass.
    device : str
        Where it is computed.
    repeats : int
        Timed calls.
    """

    def __init__(
        self,
        evaluate: Callable[[], Tensor],
        layer: PQTensorFieldLayer,
        x: Tensor,
        device: str,
        repeats: int,
    ) -> None:
        self._evaluate, self._layer, self._x = evaluate, layer, x
        self._nodes = some_nodes(x.shape)
        self.both_seconds: float | None = None
        self.first_call = timed(self.forward, device)[0]
        self.forward_seconds, y = repeated(self.forward, device, repeats)
        self._outputs = [y]
        if x.requires_grad:
            self.both_seconds, (y, self._loss) = repeated(self.both, device, repeats, self.changed)
            self._outputs.append(y)

    @torch.no_grad()
    def forward(self) -> Tensor:
        """The output at some nodes."""
        return self._evaluate()[self._nodes]

    def both(self) -> tuple[Tensor, float]:
        """The same and the loss, whose gradients are left behind."""
        y = self._evaluate()
        loss = y.square().mean()
        loss.backward()
        return y.detach()[self._nodes], loss.item()

    def changed(self) -> None:
        """Let whatever was kept of the weights be made anew."""
        touch(self._layer)
        self._x.grad = None

    def errors(
        self, workload: LayerWorkload, graph: PQGraph, tolerance: float
    ) -> tuple[float, float | None]:
        """Of the outputs and of the gradients, neither above the tolerance."""
        reference = layer_of(workload, "edges").double()
        reference.load_state_dict(self._layer.state_dict())
        expected = definition(reference, self._x.detach().cpu(), graph.to("cpu"), self._nodes)
        error = max(relative_error(output, expected) for output in self._outputs)
        refuse_if_wrong(error, tolerance)
        if not self._x.requires_grad:
            return error, None
        wrong = gradient_error(self._layer, self._x, self._loss)
        refuse_if_wrong(wrong, tolerance, "gradient")
        return error, wrong


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
    passes = Passes(lambda: layer(x, graph), layer, x, device, repeats)
    peak = memory.peak()
    error, wrong = passes.errors(workload, graph, tolerance)
    operations, moved = work([layer], graph)
    passes.changed()
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
        first_call=passes.first_call,
        forward=passes.forward_seconds,
        forward_backward=passes.both_seconds,
        peak_memory=peak,
        operations=operations,
        bytes=moved,
        stages=time_of_stages(passes.both if workload.backward else passes.forward, device),
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
