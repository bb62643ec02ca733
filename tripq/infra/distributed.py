"""Communication between the processes of one task; no operation in a single process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from tripq.infra.rank import Rank

T = TypeVar("T")

# Processes wait for the slowest one; if one dies, torchrun ends the others.
_PATIENCE = timedelta(days=30)


@contextmanager
def connected(rank: Rank) -> Iterator[None]:
    """Connect the processes; does nothing for a single one.

    Raises
    ------
    ConnectionError
        If another process has ended early.
    """
    if rank.count == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(rank.local % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    else:
        backend = "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield
    except RuntimeError as error:
        # errors of gloo have no type of their own
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise ConnectionError("another process ended early") from error
        raise
    finally:
        dist.destroy_process_group()


def by_leader(rank: Rank, task: Callable[[], T]) -> T:
    """Call a function in one process and return its result in all.

    Raises
    ------
    Exception
        In all processes, the error of that one.
    """
    if rank.count == 1:
        return task()
    outcome: list[Any] = [None, None]
    if rank.leads:
        try:
            outcome[0] = task()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, device=torch.device("cpu"))
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def gather(rank: Rank, value: T) -> list[T]:
    """The values of all processes, in rank 0; nothing in the others."""
    if rank.count == 1:
        return [value]
    values: list[Any] | None = [None] * rank.count if rank.leads else None
    dist.gather_object(value, values)
    return values or []


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum over all processes, with gradients.

    Each process then has the gradient of the sum of all losses.
    """
    total: Tensor = _Sum.apply(value)
    return total


class _Sum(torch.autograd.Function):
    """The derivative is the same sum, because all processes use what one of them adds."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient)
