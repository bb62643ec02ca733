"""Checks of the arguments of a graph: positions, q-vectors, weights and radii."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


def float64(values: ArrayLike | Tensor) -> Tensor:
    """Numbers as a float64 tensor on the CPU; those of a tensor keep their gradients."""
    if isinstance(values, Tensor):
        # A tensor of inference mode would keep the whole graph out of training.
        return (values.clone() if values.is_inference() else values).to("cpu", torch.float64)
    return torch.from_numpy(np.array(values, dtype=np.float64))


def vectors_of(values: ArrayLike | Tensor, name: str) -> Tensor:
    """Finite vectors (n, 3); otherwise a `ValueError` that names them."""
    vectors = float64(values)
    if vectors.ndim != 2 or vectors.shape[1] != 3:
        raise ValueError(f"{name} must have the shape (n, 3), not {tuple(vectors.shape)}")
    if not bool(torch.isfinite(vectors).all()):
        raise ValueError(f"{name} holds values that are not finite")
    return vectors


def weights_of(values: ArrayLike | Tensor, number: int) -> Tensor:
    """`number` finite quadrature weights; otherwise a `ValueError`."""
    weights = float64(values)
    if weights.shape != (number,) or not bool(torch.isfinite(weights).all()):
        raise ValueError(
            f"q_weights must be {number} finite numbers, not of shape {tuple(weights.shape)}"
        )
    return weights


def volumes_of(values: ArrayLike | Tensor | None, number: int) -> Tensor | None:
    """`number` volumes in mm3, finite and not negative; otherwise a `ValueError`."""
    if values is None:
        return None
    volumes = float64(values)
    if volumes.shape != (number,) or not bool((torch.isfinite(volumes) & (volumes >= 0)).all()):
        raise ValueError(
            f"volumes must be {number} lengths cubed in mm3, one for each voxel, not of shape "
            f"{tuple(volumes.shape)}"
        )
    return volumes


def checked_radius(radius: float) -> float:
    """A radius in mm, finite and not negative; otherwise a `ValueError`."""
    if not 0 <= radius < float("inf"):
        raise ValueError(f"the radius must be a length in mm, not {radius}")
    return float(radius)


def coordinates(points: Tensor) -> NDArray[np.float64]:
    """Coordinates as an array; also inside `torch.func`, whose tensors share no memory."""
    return np.array(points.detach().tolist()).reshape(points.shape)
