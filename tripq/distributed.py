"""Several processes at one task, as torchrun starts them, on one machine or on many.

Alone, a process is the only one of its kind, and nothing here costs anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")

# Processes wait for the slowest. A dead one is torchrun's business, which ends the others.
_PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Rank:
    """One process among others.

    Attributes
    ----------
    number : int
        From 0 to ``count - 1``, on all machines.
    count : int
        How many there are.
    local : int
        Its number on its own machine.
    local_count : int
        How many this machine has.
    """

    number: int = 0
    count: int = 1
    local: int = 0
    local_count: int = 1

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> Rank:
        """The process that runs, by what torchrun told it.

        Examples
        --------
        >>> Rank.here({})
        Rank(number=0, count=1, local=0, local_count=1)
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        if any(name not in environment for name in names):
            return cls()
        return cls(*(int(environment[name]) for name in names))

    @property
    def leads(self) -> bool:
        """Whether this one does what only one may do."""
        return self.number == 0

    @property
    def machines(self) -> int:
        """How many machines, if all have as many processes."""
        return self.count // self.local_count

    def share(self, tasks: Sequence[T]) -> Sequence[T]:
        """Every ``count``-th task, from the ``number``-th on.

        Examples
        --------
        >>> Rank(number=1, count=3).share("abcdefgh")
        'beh'
        """
        return tasks[self.number :: self.count]


#: A process that has no others.
ALONE = Rank()


@contextmanager
def connected(rank: Rank) -> Iterator[None]:
    """Let processes talk to each other; does nothing for one alone."""
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
    finally:
        dist.destroy_process_group()


def by_leader(rank: Rank, task: Callable[[], T]) -> T:
    """Do something in one process, and let all have what it gives.

    Raises
    ------
    Exception
        In all of them, what is raised in the one.
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
    """What all processes have, in the one that leads; nothing in the others."""
    if rank.count == 1:
        return [value]
    values: list[Any] | None = [None] * rank.count if rank.leads else None
    dist.gather_object(value, values)
    return values or []


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum of what all processes have; gradients pass.

    Each process then has the gradient of the sum of the losses of all.
    """
    total: Tensor = _Sum.apply(value)
    return total


class _Sum(torch.autograd.Function):
    """Its derivative is itself: what one process adds, all of them use."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient)
