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
        help="Processes on this machine, which divide the work: one for each CUDA device, or for "
        "some cores each.",
    ),
]
Nodes = Annotated[
    int,
    typer.Option(
        "--num-nodes",
        min=1,
        help="Machines.  Give the same command on each of them, with MASTER_ADDR in the "
        "environment naming one.",
    ),
]


def divide(devices: int, nodes: int, threads: int | None) -> None:
    """Do the command that runs in so many processes, and end as they do.

    Nothing happens where one is enough, or in one of the processes.

    Parameters
    ----------
    devices, nodes : int
        Processes on this machine, and machines.
    threads : int or None
        Of each process; None divides the cores.

    Raises
    ------
    typer.Exit
        When all have ended.
    typer.BadParameter
        If nothing says where the machines meet.
    """
    from torch.distributed import is_torchelastic_launched

    if devices * nodes == 1 or is_torchelastic_launched():
        return
    if nodes > 1 and "MASTER_ADDR" not in os.environ:
        raise typer.BadParameter(
            f"{nodes} machines have to find each other: set MASTER_ADDR to the name of one of them "
            "(and MASTER_PORT, if 29500 is taken), the same on all."
        )
    if threads is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (cores or 1) // devices)))
    raise typer.Exit(_launch(devices, nodes))


def _root(error: ChildFailedError) -> tuple[int, ProcessFailure]:
    """The process that was the cause: one that was killed, but not by the launcher itself."""
    for number, failure in error.failures.items():
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
            return number, failure
    first: tuple[int, ProcessFailure] = error.get_first_failure()
    return first


def _launch(devices: int, nodes: int) -> int:
    """Start this command in all processes of this machine; the exit status."""
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
    # It tells of each failure in pages; what matters is said below, or by the process.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    try:
        elastic_launch(config, sys.executable)("-m", "tripq", *sys.argv[1:])
    except ChildFailedError as error:
        number, failure = _root(error)
        if failure.exitcode > 0:
            return failure.exitcode  # it has said why
        log.error(
            "process %d of %d was ended by %s, and the others with it. What was finished is kept: "
            "give the same command again to go on.",
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
