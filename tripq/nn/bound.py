"""A module bound to a graph, with the features as its only input."""

from __future__ import annotations

from torch import Tensor, nn

from tripq.domain.graph import PQGraph


class Bound(nn.Module):
    """A layer or a network on one graph: a module of the features alone.

    It works with ``nn.Sequential``, ``torch.compile`` and ``torch.export``.  Its parameters are
    those of the module.

    Parameters
    ----------
    module : Module
        Called as ``module(x, graph)``.
    graph : PQGraph
        The nodes of every input.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from tripq.nn import QMean
    >>> q = np.concatenate([np.zeros((1, 3)), np.eye(3)])
    >>> graph = PQGraph.from_grid(np.ones((4, 4, 4)), np.diag([2.0, 2, 2, 1]), q, radius=3.6)
    >>> mean = Bound(QMean(), graph)
    >>> mean(torch.rand(64, 4, 1)).shape
    torch.Size([64, 1])
    """

    def __init__(self, module: nn.Module, graph: PQGraph) -> None:
        super().__init__()
        self.module = module
        self.graph = graph

    def forward(self, x: Tensor) -> Tensor:
        """``module(x, graph)``."""
        out: Tensor = self.module(x, self.graph)
        return out


class Bindable(nn.Module):
    """A module that is called as ``module(x, graph)``."""

    def bind(self, graph: PQGraph) -> Bound:
        """The module on one graph: one of the features alone, to compile, export or chain.

        Parameters
        ----------
        graph : PQGraph
            What `forward` would be given.

        Returns
        -------
        Bound
            Its parameters are those of this module.

        Examples
        --------
        >>> import numpy as np, torch
        >>> from tripq import PQGraph, PQTensorFieldLayer
        >>> q = np.concatenate([np.zeros((1, 3)), np.eye(3)])
        >>> graph = PQGraph.from_grid(np.ones((4, 4, 4)), np.diag([2.0, 2, 2, 1]), q, radius=3.0)
        >>> first = PQTensorFieldLayer("1x0e", "4x0e + 2x1o", p_radius=3.0)
        >>> second = PQTensorFieldLayer("4x0e + 2x1o", "1x0e", p_radius=3.0, q_out=None)
        >>> chain = nn.Sequential(first.bind(graph), second.bind(graph))
        >>> chain(torch.rand(64, 4, 1)).shape
        torch.Size([64, 1])
        """
        return Bound(self, graph)
