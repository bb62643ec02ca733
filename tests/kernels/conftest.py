"""Where Triton kernels are tested: in the interpreter, and on a device where there is one."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=pytest.mark.interpreter, id="interpreter"),
        pytest.param("cuda", marks=pytest.mark.gpu, id="cuda"),
    ]
)
def triton_device(request: pytest.FixtureRequest) -> torch.device:
    """Return a device on whose tensors the operators run as Triton kernels."""
    return torch.device(request.param)
