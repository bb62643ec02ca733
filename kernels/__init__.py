"""Kernels: each one in Triton, with a twin in plain torch beside it.

Installed as ``tripq.kernels``. Kernels do arithmetic on tensors and nothing else: they know of
no graph, no layer and no irreps, allocate only what they return, and hold no weights. The torch
twin of a kernel defines what it computes.
"""
