"""Parts of graphs as the tests of this floor compare them."""

from __future__ import annotations

from dataclasses import is_dataclass

import numpy as np
import torch


def scan_of(graph):
    (scan,) = graph.scans
    return scan


def pair_list(dst, src):
    return sorted(zip(dst.tolist(), src.tolist(), strict=True))


def all_pairs(p, radius):
    lengths = np.linalg.norm(p[:, None] - p[None], axis=-1)
    joined = (lengths < radius) | (lengths == 0)
    return [tuple(pair) for pair in np.argwhere(joined).tolist()]


def tensors_of(value):
    """All tensors in a (nested) dataclass."""
    if isinstance(value, torch.Tensor):
        return [value]
    return (
        [t for part in vars(value).values() for t in tensors_of(part)]
        if is_dataclass(value)
        else []
    )
