"""Where the time of a call goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

#: The labels that the library gives to its stages, and the names of its operators, begin so.
PREFIX = "tripq"

#: Operators by the beginnings of their names.
GROUPS = {
    "matrix products": ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::dot"),
    "Fourier transforms": ("aten::_fft",),
    "convolution": (
        "aten::mkldnn_conv",
        "aten::convolution",
        "aten::_convolution",
        "aten::cudnn_conv",
        "aten::slow_conv",
        "mkldnn",
    ),
    "copies": (
        "aten::copy_",
        "aten::cat",
        "aten::clone",
        "aten::fill_",
        "aten::zero_",
        "aten::gather",
        "aten::index",
        "aten::scatter",
        "aten::_index",
        "aten::constant_pad",
    ),
}


def time_of_stages(call: Callable[[], object], device: str) -> dict[str, float]:
    """Seconds of each stage of one call; on a GPU those of its kernels.

    The own time of every operator counts once: for the innermost labelled stage that it is part of,
    or else for its group.
    """
    cuda = device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities, acc_events=True) as profiled:
        call()
        if cuda:
            torch.cuda.synchronize()
    seconds: Counter[str] = Counter()
    for event in profiled.events():
        if event.device_type == DeviceType.CPU:
            own = event.self_device_time_total if cuda else event.self_cpu_time_total
            seconds[_stage(event)] += own * 1e-6
    return {name: time for name, time in seconds.most_common() if time > 0}


def _stage(event: object) -> str:
    name = event.name  # type: ignore[attr-defined]
    ancestor = event
    while ancestor is not None:
        if ancestor.name.startswith(PREFIX):  # type: ignore[attr-defined]
            return str(ancestor.name).removeprefix(PREFIX).lstrip(": ")  # type: ignore[attr-defined]
        ancestor = ancestor.cpu_parent  # type: ignore[attr-defined]
    return next((group for group, begins in GROUPS.items() if name.startswith(begins)), "other")
