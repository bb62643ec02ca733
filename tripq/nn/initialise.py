"""The scale of the initial weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tripq.domain.graph import PQGraph
from tripq.nn.layer import PQTensorFieldLayer


def all_modules(parts: Iterable[nn.Module]) -> set[nn.Module]:
    """Some parts of a network and all that they consist of."""
    return {module for part in parts for module in part.modules()}


@torch.no_grad()
def scale_initial_weights(
    network: nn.Module, *batch: Tensor | PQGraph, kept: Collection[nn.Module] = ()
) -> None:
    """Scale the weights of every layer so that its outputs have a root mean square of 1.

    The features of each order grow or shrink with the numbers of neighbours, paths and directions.
    One pass over a first batch normalises each order, layer after layer, before training.

    Parameters
    ----------
    network : Module
        Its `PQTensorFieldLayer` are scaled in place, in the order in which they are called.
    *batch
        Arguments of ``network(...)``.
    kept : collection of Module
        Parts of the network that were trained before: their weights do not change.
    """

    def scale(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any], y: Tensor) -> Tensor:
        assert isinstance(layer, PQTensorFieldLayer)
        return layer.normalize_output(y, named.get("graph", args[-1]))

    trained = all_modules(kept)
    layers = [
        module
        for module in network.modules()
        if isinstance(module, PQTensorFieldLayer) and module not in trained
    ]
    hooks = [layer.register_forward_hook(scale, with_kwargs=True) for layer in layers]
    try:
        network(*batch)
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def fill_last_bias(network: nn.Module, values: Tensor) -> None:
    """Set the last bias of a network, where there is one of as many values, in place.

    The outputs of a network then have these values before it has learned anything.

    Parameters
    ----------
    network : Module
        Its last bias is assumed to be that of the output.
    values : (C,) Tensor
        For every output, such as log-odds.
    """
    biases = [p for name, p in network.named_parameters() if name.endswith("bias")]
    if biases and biases[-1].numel() == values.numel():
        biases[-1].copy_(values.reshape(biases[-1].shape))
