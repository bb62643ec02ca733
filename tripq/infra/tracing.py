"""Tracing for ``torch.compile`` and ``torch.export``: a layer on its graph is one traced call.

``torch.compile`` traces Python line by line and guards all dependencies.  A layer depends on its
graph, with kept plans and tables.  Therefore the tracer treats a layer as one call; only the tensor
operations in this call are compiled, with the graph and the tables as constants.

The tracer, Dynamo, takes seconds to import, and few programs compile.  Functions are therefore
marked only during tracing, by the import of `tripq.infra.marks`, which the tracer executes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Literal, TypeVar, cast

import torch
from torch._guards import detect_fake_mode
from torch.utils._pytree import register_constant

Function = TypeVar("Function", bound=Callable[..., Any])

Constant = TypeVar("Constant")

_Mark = Literal["nonstrict_trace", "disable"]

to_mark: dict[str, tuple[_Mark, Callable[..., Any]]] = {}
"""Decorators of Dynamo and the functions they are for, by names of attributes of the marks."""


def traced_as_one_call(function: Function) -> Function:
    """Let ``torch.compile`` trace the tensor operations of a function, not its Python.

    Its arguments are modules, tensors, numbers and `constant` objects.  Every other tensor that it
    uses becomes a constant of the compiled program, without gradients.
    """

    @wraps(function)
    def with_constants(*args: Any, **kwargs: Any) -> Any:
        tracer = detect_fake_mode()
        if tracer is not None:
            # In the backward pass, too, which is traced after this call has returned.
            tracer.allow_non_fake_inputs = True
        return function(*args, **kwargs)

    return cast(Function, _marked_once_traced("nonstrict_trace", with_constants))


def not_compiled(function: Function) -> Function:
    """Let ``torch.compile`` call a function as it is, as `torch.compiler.disable` does."""
    return cast(Function, _marked_once_traced("disable", function))


def _marked_once_traced(mark: _Mark, function: Callable[..., Any]) -> Callable[..., Any]:
    name = f"{function.__name__}_{len(to_mark)}"
    to_mark[name] = mark, function

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            from tripq.infra import marks

            return getattr(marks, name)(*args, **kwargs)
        return function(*args, **kwargs)

    return call


def constant(cls: type[Constant]) -> type[Constant]:
    """Let objects of a class be arguments of such a function: each is a constant, and guarded.

    The class compares objects by identity, in an ``__eq__`` of its own.
    """
    register_constant(cls)
    return cls
