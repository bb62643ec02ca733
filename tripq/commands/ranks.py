"""A command in several processes: torch's elastic launcher (torchrun) starts the command again."""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tripq.commands.session import FAILED, log

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

Devices = Annotated[
    int,
    typer.Option(
        min=1,
        help="Number of processes on this machine, which divide the work: one for each CUDA "
        "device, or for each group of cores.",
    ),
]
Nodes = Annotated[
    int,
    typer.Option(
        "--num-nodes",
        min=1,
        help="Number of machines.  Run the same command on each, with the environment variable "
        "MASTER_ADDR set to the name of one of them.",
    ),
]


def divide(devices: int, nodes: int, threads: int | None) -> None:
    """Start the running command in several processes, and exit with their status.

    Return at once if a single process is requested, or in one of the started processes.

    Parameters
    ----------
    devices, nodes : int
        Number of processes on this machine, and of machines.
    threads : int or None
        Threads of each process; None divides the cores.

    Raises
    ------
    typer.Exit
        When all processes have ended.
    typer.BadParameter
        If ``MASTER_ADDR`` is not set and there are several machines.
    """
    if devices * nodes == 1:
        return
    if nodes > 1 and "MASTER_ADDR" not in os.environ:
        raise typer.BadParameter(
            f"{nodes} machines need a common address: set MASTER_ADDR to the name of one of them "
            "(and MASTER_PORT, if port 29500 is in use), the same on all machines."
        )
    from torch.distributed import is_torchelastic_launched

    if is_torchelastic_launched():
        return
    if threads is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (cores or 1) // devices)))
    raise typer.Exit(_launch(devices, nodes))


def _root(error: ChildFailedError) -> tuple[int, ProcessFailure]:
    """The process that caused the failure: one killed, not by the launcher, otherwise the first."""
    for number, failure in error.failures.items():
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
            return number, failure
    first: tuple[int, ProcessFailure] = error.get_first_failure()
    return first


def _launch(devices: int, nodes: int) -> int:
    """Start this command in all processes of this machine; return the exit status."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    alone = nodes == 1
    port = os.environ.get("MASTER_PORT", "29500")
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=devices,
        run_id=f"tripq-{os.getpid()}" if alone else "tripq",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0" if alone else f"{os.environ['MASTER_ADDR']}:{port}",
        max_restarts=0,
    )
    # torch logs pages for each failure; the process or the code below logs one line instead.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    try:
        elastic_launch(config, sys.executable)("-m", "tripq", *sys.argv[1:])
    except ChildFailedError as error:
        number, failure = _root(error)
        if failure.exitcode > 0:
            return failure.exitcode  # the process has logged the reason
        log.error(
            "process %d of %d was ended by %s, and the others were stopped. Finished results are "
            "kept: run the same command again to resume.",
            number + 1,
            devices * nodes,
            failure.signal_name(),
        )
        return FAILED
    except SignalException as stopped:
        if stopped.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        return 128 + stopped.sigval
    return 0
