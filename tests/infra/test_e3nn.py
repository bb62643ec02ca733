"""What e3nn excludes from compiling stays excluded, though Dynamo is imported later than e3nn."""

from __future__ import annotations

import torch
from torch import Tensor

from tripq.infra.e3nn import o3


def test_a_function_that_dynamo_cannot_trace_is_called_as_it_is() -> None:
    """It computes with complex numbers; e3nn marks it by `torch.compiler.disable`."""

    def function(x: Tensor) -> Tensor:
        return x + o3.change_basis_real_to_complex(1).real

    torch._dynamo.reset()
    x = torch.ones(3, 3)
    compiled = torch.compile(function, backend="eager")
    torch.testing.assert_close(compiled(x), function(x))
    assert torch._dynamo.explain(function)(x).graph_break_count == 1
