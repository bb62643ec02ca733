r"""Outputs that start at a known estimate.

A network with random weights must first learn what is known in advance, such as a large isotropic
part and the scale of the output.  `Residual` adds a network to an estimate:

.. math::
    f(x) = e(x) + \sigma\, g(x).

The last layer of g starts at 0, so that training starts at the estimate.  For each irrep,
:math:`\sigma` is the root mean square error of the estimate on a first batch, so that typical
corrections g are of size 1.  The result is equivariant if e and g are.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from tripq.domain.graph import PQGraph
from tripq.infra.e3nn import o3
from tripq.nn.bound import Bindable
from tripq.nn.layer import PQTensorFieldLayer

Module = TypeVar("Module", bound=nn.Module)

_LEAST = 1e-6  # of a root mean square, because it divides


class Residual(Bindable):
    """A known estimate, and a network that corrects it.

    `tripq.training.train` measures the errors of the estimate on the first batch; a loop of your
    own calls `measure`.

    Parameters
    ----------
    estimate : Module
        ``estimate(signal, graph)``.
    network : Module
        ``network(signal, graph)``, with an output of the same shape.  Its last layer is set to 0;
        see `start_at_zero`.
    irreps_out : Irreps or str, optional
        Of the output, (V, irreps_out.dim).  Default: the attribute of the network; without one the
        last axis holds scalars of one kind, such as the signal (V, Q_out).

    Attributes
    ----------
    size : Tensor of shape (number of irreps,)
        Of the corrections, or (1,) without irreps; 1 until `measure` is called.

    Raises
    ------
    ValueError
        If the network has no layer to set to 0.

    Examples
    --------
    >>> import numpy as np
    >>> from tripq.networks import VoxelNetwork
    >>> q = np.concatenate([np.zeros((1, 3)), np.eye(3)])
    >>> graph = PQGraph.from_grid(np.ones((4, 4, 4)), np.diag([2.0, 2, 2, 1]), q, radius=3.0)
    >>> known, correction = (VoxelNetwork("1x1o", n_p_layers=1).eval() for _ in range(2))
    >>> signal = torch.rand(64, 4)
    >>> torch.equal(Residual(known, correction)(signal, graph), known(signal, graph))
    True
    """

    size: Tensor

    def __init__(
        self, estimate: nn.Module, network: nn.Module, irreps_out: o3.Irreps | str | None = None
    ) -> None:
        super().__init__()
        self.estimate = estimate
        self.network = start_at_zero(network)
        irreps = getattr(network, "irreps_out", None) if irreps_out is None else irreps_out
        self.irreps_out = None if irreps is None else o3.Irreps(irreps)
        number = 1 if self.irreps_out is None else len(self.irreps_out)
        self.register_buffer("size", torch.ones(number))

    def forward(self, signal: Tensor, graph: PQGraph) -> Tensor:
        """The corrected estimate, from the signal (V, Q), divided by b0."""
        size = self.size if self.irreps_out is None else per_component(self.size, self.irreps_out)
        corrected: Tensor = self.estimate(signal, graph) + size * self.network(signal, graph)
        return corrected

    @torch.no_grad()
    def measure(self, signal: Tensor, graph: PQGraph, target: Tensor) -> None:
        """Set the size of the corrections to the error of the estimate on a first batch.

        Parameters
        ----------
        signal, graph
            As for `forward`.
        target : Tensor of the shape of the output
            The wanted output; NaN where it is unknown.
        """
        error = target - self.estimate(signal, graph)
        if self.irreps_out is None:
            self.size.fill_(root_mean_square(error[~error.isnan()]))
        else:
            self.size.copy_(size_by_irrep(error, self.irreps_out))


@torch.no_grad()
def start_at_zero(network: Module) -> Module:
    """Set the weights of the last layer of a network, or of a layer, to 0 in place.

    The layer still learns, because the gradient of its weights depends on its input.  All other
    layers learn from the second step on.  `tripq.nn.scale_initial_weights` leaves it at 0.

    Parameters
    ----------
    network : Module
        The last of its `PQTensorFieldLayer` is assumed to be that of the output.

    Returns
    -------
    Module
        The network.

    Raises
    ------
    ValueError
        If it has no such layer.
    """
    layers = [module for module in network.modules() if isinstance(module, PQTensorFieldLayer)]
    if not layers:
        raise ValueError(f"{type(network).__name__} has no PQTensorFieldLayer to set to 0")
    for weight in layers[-1].parameters():
        weight.zero_()
    return network


def size_by_irrep(x: Tensor, irreps: o3.Irreps) -> Tensor:
    """Root mean square of features of each irrep; (V, irreps.dim) to (number of irreps,).

    Examples
    --------
    >>> size_by_irrep(torch.tensor([[3.0, 0, 2, 0], [1.0, 1, 2, 1]]), o3.Irreps("1x0e + 1x1o"))
    tensor([2.2361, 1.2910])
    """
    return torch.stack([root_mean_square(x[:, columns]) for columns in irreps.slices()])


def per_component(values: Tensor, irreps: o3.Irreps) -> Tensor:
    """A value for every component, from one for every irrep; (number of irreps,) to (irreps.dim,).

    Examples
    --------
    >>> per_component(torch.tensor([1.0, 2.0]), o3.Irreps("1x0e + 1x2e"))
    tensor([1., 2., 2., 2., 2., 2.])
    """
    dims = torch.tensor([mul * ir.dim for mul, ir in irreps], device=values.device)
    return values.repeat_interleave(dims)


def root_mean_square(x: Tensor) -> Tensor:
    """Of all values; positive, because it divides."""
    return x.square().mean().sqrt().clamp(min=_LEAST)
