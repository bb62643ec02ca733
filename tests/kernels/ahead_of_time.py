"""Compile Triton kernels for devices that are not there, and read what they take of them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import triton
from _pytest.mark import ParameterSet
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

#: What every kernel is compiled for: A100, H100 and H200, and (lowered only) MI300.
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

#: Of each maker the one that `make test` compiles for, as a kernel takes seconds.
NVIDIA, AMD = "sm_90", "gfx942"


def for_targets(
    cases: Iterable[tuple[Any, ...]], on_amd: Collection[tuple[Any, ...]]
) -> list[ParameterSet]:
    """Parameters of a test, each case with a target as the last of them.

    `make test` compiles every case for `NVIDIA`, and the cases `on_amd` for `AMD`; `make test-all`
    compiles every case for all targets.
    """
    return [
        pytest.param(*case, target, marks=() if chosen else pytest.mark.exhaustive)
        for case in cases
        for target in TARGETS
        for chosen in [target == NVIDIA or (target == AMD and case in on_amd)]
    ]


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes: registers of a thread, bytes of spilled ones, shared bytes."""

    registers: int
    spilled: int
    shared: int


def compile_kernel(
    kernel: Any,
    types: Mapping[str, str | tuple[str, ...]],
    constants: Mapping[str, Any],
    target: str,
    num_warps: int = 4,
) -> Resources:
    """Compile `kernel` for a target; types are Triton's, such as ``"*fp32"`` or ``"i64"``,
    or tuples of them.

    Raises whatever the compiler raises where the kernel does not lower.
    """
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=dict(constants))
    compiled = triton.compile(source, target=TARGETS[target], options={"num_warps": num_warps})
    if target.startswith("sm"):
        return _of_cubin(compiled.asm["cubin"])
    return _of_amdgcn(compiled.asm["amdgcn"], compiled.metadata.shared)


def _of_cubin(cubin: bytes) -> Resources:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        report = subprocess.run(
            [str(tool), "--dump-resource-usage", str(path)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    # What does not fit the registers goes to the stack or to local memory.
    spilled = _number(r"STACK:(\d+)", report) + _number(r"LOCAL:(\d+)", report)
    return Resources(_number(r"REG:(\d+)", report), spilled, _number(r"SHARED:(\d+)", report))


def _of_amdgcn(assembly: str, shared: int) -> Resources:
    spilled = _number(r"\.vgpr_spill_count:\s+(\d+)", assembly)
    spilled += _number(r"\.sgpr_spill_count:\s+(\d+)", assembly)
    return Resources(_number(r"\.vgpr_count:\s+(\d+)", assembly), 4 * spilled, shared)


def _number(pattern: str, report: str) -> int:
    match = re.search(pattern, report)
    assert match, f"no {pattern} in {report}"
    return int(match[1])
