"""The rank of this process among those that torchrun started on one or several machines."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Rank:
    """One process among others.

    Attributes
    ----------
    number : int
        From 0 to ``count - 1``, on all machines.
    count : int
        Number of processes.
    local : int
        Its number on its own machine.
    local_count : int
        Number of processes on this machine.
    """

    number: int = 0
    count: int = 1
    local: int = 0
    local_count: int = 1

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> Rank:
        """The current process, from the environment of torchrun.

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
        """Whether this is the process for tasks of a single process."""
        return self.number == 0

    @property
    def machines(self) -> int:
        """Number of machines, if all have the same number of processes."""
        return self.count // self.local_count

    def share(self, tasks: Sequence[T]) -> Sequence[T]:
        """Every ``count``-th task, from the ``number``-th on.

        Examples
        --------
        >>> Rank(number=1, count=3).share("abcdefgh")
        'beh'
        """
        return tasks[self.number :: self.count]


#: A process without others.
ALONE = Rank()
