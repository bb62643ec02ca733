"""Tracing for compiling and exporting: a layer on its graph is one traced call.

``torch.compile`` traces Python line by line and guards all dependencies.  A layer depends on its
graph, with kept plans and tables.  So a layer is one call for the tracer; only the tensor
operations in this call are compiled, with the graph and the tables as constants.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

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
