"""The machine: its names, and the rates by which a share of what is possible is reckoned."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from measure import timed
from rows import Machine

PACKAGES = ("tripq", "torch", "triton", "e3nn", "numpy")


def describe_machine(device: str, dtype: str, threads: int | None) -> Machine:
    """Versions, names, and the two rates, measured now."""
    if threads is not None:
        torch.set_num_threads(threads)
    number = getattr(torch, dtype)
    return Machine(
        device,
        torch.cuda.get_device_name() if device == "cuda" else processor(),
        torch.get_num_threads(),
        _versions(device),
        _matrix_product_rate(device, number),
        _copy_rate(device),
    )


def _matrix_product_rate(device: str, dtype: torch.dtype) -> float:
    """Multiply-adds each second of a large product."""
    torch.backends.cuda.matmul.allow_tf32 = False
    n = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return n**3 / _shortest(lambda: torch.mm(a, b), device)


def _copy_rate(device: str) -> float:
    """Bytes each second, read and written, of a copy far larger than any cache."""
    n = (1 << 30) if device == "cuda" else (1 << 28)
    source = torch.ones(n, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * n / _shortest(lambda: target.copy_(source), device)


def _shortest(function: Callable[[], object], device: str) -> float:
    """Seconds of the fastest of the calls that half a second has room for, after a first one."""
    function()
    times = [timed(function, device)[0]]
    while sum(times) < 0.5 or len(times) < 3:
        times.append(timed(function, device)[0])
    return min(times)


def _versions(device: str) -> dict[str, str]:
    versions = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from a checkout, or without Triton
            continue
    if device == "cuda":
        versions["CUDA"] = str(torch.version.cuda)
        versions["cuDNN"] = str(torch.backends.cudnn.version())
    return versions


def processor() -> str:
    """Model of the CPU, with its cores."""
    info = Path("/proc/cpuinfo")
    models = [
        line.partition(":")[2].strip()
        for line in (info.read_text().splitlines() if info.exists() else [])
        if line.startswith("model name")
    ]
    model = models[0] if models else platform.processor() or platform.machine()
    return f"{model}, {len(models)} cores" if models else model
