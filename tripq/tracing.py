"""Compiling and exporting: a network bound to its graph, and what is traced as one call.

``torch.compile`` reads Python line by line to guard all that it depends on; a layer depends on its
graph, from which plans and tables follow that are kept.  So a layer is one call to it, and the
tensor operations in this call are what is compiled, with the graph and the tables as constants.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from torch import Tensor, nn
from torch._dynamo import nonstrict_trace
from torch._guards import detect_fake_mode
from torch.utils._pytree import register_constant

Function = TypeVar("Function", bound=Callable[..., Any])
Constant = TypeVar("Constant")


def traced_as_one_call(function: Function) -> Function:
    """Let ``torch.compile`` trace the tensor operations of a function, not its Python.

    Its arguments are modules, tensors, numbers and `constant` objects.  Every other tensor that it
    uses becomes a constant of the compiled program, without gradients.
    """

    @nonstrict_trace
    @wraps(function)
    def with_constants(*args: Any, **kwargs: Any) -> Any:
        tracer = detect_fake_mode()
        if tracer is not None:
            # In the backward pass, too, which is traced after this call has returned.
            tracer.allow_non_fake_inputs = True
        return function(*args, **kwargs)

    return cast(Function, with_constants)


def constant(cls: type[Constant]) -> type[Constant]:
    """Let objects of a class be arguments of such a function: each is a constant, and guarded.

    The class compares objects by identity, in an ``__eq__`` of its own.
    """
    register_constant(cls)
    return cls


class Bound(nn.Module):
    """A layer or a network on one graph: a module of the features alone.

    It is what ``nn.Sequential``, ``torch.compile`` and ``torch.export`` take.  Its parameters are
    those of the module.

    Parameters
    ----------
    module : Module
        Called as ``module(x, graph)``.
    graph : PQGraph
        Every input has its nodes.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from tripq import PQGraph
    >>> from tripq.models import LesionSegmenter
    >>> q = np.concatenate([np.zeros((1, 3)), np.eye(3)])
    >>> graph = PQGraph.from_grid(np.ones((4, 4, 4)), np.diag([2.0, 2, 2, 1]), q, radius=3.6)
    >>> network = Bound(LesionSegmenter(), graph)
    >>> network(torch.rand(64, 4)).shape
    torch.Size([64])
    """

    def __init__(self, module: nn.Module, graph: object) -> None:
        super().__init__()
        self.module = module
        self.graph = graph

    def forward(self, x: Tensor) -> Tensor:
        """``module(x, graph)``."""
        out: Tensor = self.module(x, self.graph)
        return out
