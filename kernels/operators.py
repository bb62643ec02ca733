"""Operators of torch: one call for a compiler, for any evaluation.

An operator ``torch.ops.tripq.NAME`` has a schema, the types of its arguments and results in the
notation of torch, and these parts:

* the twin, which defines the result in plain torch, and a Triton kernel that computes the same;
* where the twin is slow on a CPU, a function in torch for it, which need not be differentiable;
* the shapes and types of the results, for compilers;
* the tensors that the forward pass keeps, and the first derivative in the backward pass.

`tripq.kernels.launch` lists the derivatives that are those of the twin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from tripq.kernels.launch import needs_twin, runs_in_triton

Function = Callable[..., Any]


def operator(
    name: str,
    schema: str,
    empty: Function,
    *,
    twin: Function | None = None,
    on_cpu: Function | None = None,
    kernel: str | None = None,
    read: Function | None = None,
    keep: Function | None = None,
    differentiate: Function | None = None,
) -> Function:
    """Define an operator; the returned function calls it, or its twin where torch needs it.

    Parameters
    ----------
    name, schema : str
        Such as ``"mix"`` and ``"(Tensor a, Tensor w) -> Tensor"``.
    empty : callable
        The results without values, from the arguments of the twin.
    twin : callable, optional
        The result in plain torch, outside of autocast.  Without it, and without `on_cpu`, the
        operator is for Triton only.
    on_cpu : callable, optional
        What runs instead of the twin where nothing but the result is needed, outside of autocast.
    kernel : str, optional
        Module of this package and name of the function that launches the kernel; the module is
        imported at the first call.
    read : callable, optional
        From the arguments of the schema, which are flat lists, to those of twin and kernel.
    keep, differentiate : callables, optional
        ``setup_context`` and ``backward`` of ``torch.library.register_autograd``.
    """

    def arguments(args: tuple[Any, ...]) -> Iterable[Any]:
        return args if read is None else read(*args)

    in_torch = on_cpu or twin

    def plain(function: Function | None, args: tuple[Any, ...]) -> Any:
        assert function is not None
        device = _first_tensor(args).device.type
        if not torch.is_autocast_enabled(device):
            return function(*arguments(args))
        with torch.autocast(device, enabled=False):
            return function(*arguments(args))

    def run(*args: Any) -> Any:
        if kernel is not None and (in_torch is None or runs_in_triton(_first_tensor(args))):
            module, function = kernel.split(".")
            launch = getattr(import_module(f"tripq.kernels.{module}"), function)
            return launch(*arguments(args))
        return plain(in_torch, args)

    defined = torch.library.custom_op(f"tripq::{name}", run, mutates_args=(), schema=schema)
    defined.register_fake(lambda *args: empty(*arguments(args)))
    if differentiate is not None:
        defined.register_autograd(differentiate, setup_context=keep)

    def call(*args: Any) -> Any:
        return plain(twin, args) if needs_twin() else defined(*args)

    return call


def _first_tensor(args: Iterable[Any]) -> Tensor:
    return next(
        part
        for arg in args
        for part in (arg if isinstance(arg, list | tuple) else [arg])
        if isinstance(part, Tensor)
    )
