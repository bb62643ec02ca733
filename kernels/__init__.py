"""Kernels in Triton, each with a twin in plain torch.

Installed as ``tripq.kernels``. Kernels do arithmetic on tensors only: they are independent of
graphs, layers and irreps, allocate only their results, and hold no weights. The torch twin of a
kernel defines its result.
"""
