"""e3nn, imported without Dynamo, which takes longer to import than torch itself.

e3nn marks one function by `torch.compiler.disable`, which imports Dynamo.  While e3nn is imported
the mark is `tripq.infra.tracing.not_compiled`, with the same meaning.
"""

from __future__ import annotations

from unittest.mock import patch

import torch

from tripq.infra.tracing import not_compiled

with patch.object(torch.compiler, "disable", not_compiled):
    from e3nn import math, nn, o3

__all__ = ["math", "nn", "o3"]
