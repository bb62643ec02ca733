"""Where Triton kernels are tested: in the interpreter, and on a device where there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let new tensors start as NaN: what is not written shows."""

    def poison(create: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def created(*args: Any, **kwargs: Any) -> torch.Tensor:
            x = create(*args, **kwargs)
            return x.fill_(torch.nan) if x.is_floating_point() else x

        return created

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch.Tensor, "new_empty"),
    ):
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))
