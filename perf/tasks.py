"""Which rows a command asks for, and how one of them is measured in its own process."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass

from measure import NotMeasured, limit_memory
from rows import Machine, Row
from workloads import FOREIGN, GPU_ONLY, Box, Brain, Cloud, Step, Workload


@dataclass(frozen=True)
class Task:
    """One row to be."""

    workload: Workload
    method: str
    device: str
    dtype: str
    repeats: int
    threads: int | None

    @property
    def row(self) -> Row:
        """The row without figures."""
        name, box = self.workload.name, self.workload
        if isinstance(box, Box):
            return Row(name, self.method, box.axis, sizes=box.sizes)
        return Row(name, self.method)

    @property
    def obstacle(self) -> str | None:
        """Why it cannot be measured here, as far as that can be told without trying."""
        if self.device == "cpu" and (self.workload.gpu_only or self.method in GPU_ONLY):
            return "needs a CUDA device"
        if self.method in FOREIGN and importlib.util.find_spec(self.method) is None:
            return "not installed"
        return None


def machine(device: str, dtype: str, threads: int | None) -> Machine:
    """Names and rates of the machine."""
    from machine import describe_machine

    return describe_machine(device, dtype, threads)


def run(task: Task) -> Row:
    """Measure one row."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler chats on stderr
    import torch

    if task.threads is not None:
        torch.set_num_threads(task.threads)
    if task.device == "cpu":
        limit_memory()
    elif not torch.cuda.is_available():
        raise NotMeasured("torch sees no CUDA device")
    from fused import measure_openequivariance
    from layers import measure_layer
    from networks import measure_brain, measure_step
    from peers import measure_conv3d, measure_e3nn

    peers = {
        "conv3d": measure_conv3d,
        "e3nn": measure_e3nn,
        "openequivariance": measure_openequivariance,
    }
    if isinstance(task.workload, Box | Brain | Cloud):
        measure = peers.get(task.method, measure_layer)
    else:
        measure = measure_step if isinstance(task.workload, Step) else measure_brain
    return measure(task.workload, task.method, task.device, task.dtype, task.repeats)
