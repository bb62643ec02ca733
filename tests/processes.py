"""Processes forked from one that has imported everything: that takes longer than what they do."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from tests.programs import run_code, train_in_ranks

ROOT = Path(__file__).parents[1]

#: Of all processes.  They import what this one does, and the tests, from Python 3.11 on without the
#: working folder; sets and dicts of strings are in another order than here.
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)]),
    "PYTHONSAFEPATH": "1",
    "PYTHONHASHSEED": "7",
    "OMP_NUM_THREADS": "1",
    "COLUMNS": "150",
}

#: The code that is the command.
COMMAND = "from tripq.commands import run; run()"


def fork(function: Callable[..., object], *arguments: Any) -> BaseProcess:
    """Start a function of a module in `tests.programs` in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([run_code.__name__, train_in_ranks.__name__])
    process = context.Process(target=function, args=arguments)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        process.start()
    return process


def environments(ranks: int) -> list[dict[str, str]]:
    """What torchrun puts into the environment of each of so many processes of one machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    launched = {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0"}
    sizes = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(ranks))
    return [
        {**place, **launched, **sizes, **dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))}
        for rank in range(ranks)
    ]


class Forked:
    """Python code in a process of its own, with methods of `subprocess.Popen`."""

    def __init__(self, code: str, *arguments: object, cwd: Path) -> None:
        self._shown = cwd / "stdout.txt", cwd / "stderr.txt"
        self._process = fork(run_code.run, code, [*map(str, arguments)], cwd, *self._shown)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """What it has shown on stdout and stderr, when it has ended."""
        self._process.join(timeout)
        stdout, stderr = (path.read_text() for path in self._shown)
        return stdout, stderr
