r"""The factor and the constant of each component that normalise equivariant features.

With the mean :math:`a_c` and the variance :math:`v_c` of each component c of a scan, a scalar is
normalised to mean 0 and variance 1, and the d components of a feature f of order l > 0, whose mean
may not be subtracted, to mean square 1; then follow the learned factor w and constant b:

.. math::
    p_f = \frac{1}{d} \sum_{c \in f} (v_c + a_c^2) \quad (v_c \text{ of a scalar}), \qquad
    \text{scale}_c = \frac{w_f}{\sqrt{p_f + \varepsilon}}, \qquad
    \text{shift}_c = b_c - \text{scale}_c\, a_c \quad (0 \text{ for } l > 0).

These are few numbers; on a GPU the operations of torch for them are launches that it waits for, and
the kernel is one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tripq.infra.kept import kept
from tripq.kernels.features import copies
from tripq.kernels.launch import gradients_of_twin, higher_derivatives, only_needed
from tripq.kernels.operators import operator


class Features(NamedTuple):
    """What a row of features holds.

    Attributes
    ----------
    muls, dims : tuple of int
        For each run of features of one order their number, and 2 l + 1.
    constants : tuple of bool
        Whether the features of a run are scalars with a mean and a constant.
    eps : float
        What is added to mean squares.
    """

    muls: tuple[int, ...]
    dims: tuple[int, ...]
    constants: tuple[bool, ...]
    eps: float


def normalisation(moments: Tensor, weight: Tensor, bias: Tensor, features: Features) -> Tensor:
    """The factor and the constant of each component.

    Parameters
    ----------
    moments : Tensor of shape (2, S, C)
        Mean and variance of each component in each scan.
    weight : Tensor of shape (F,)
        A factor of each feature.
    bias : Tensor of shape (n,)
        A constant of each scalar.
    features : Features
        What the components are.

    Returns
    -------
    Tensor of shape (2, S, C)
        Factors and constants.

    Examples
    --------
    >>> scalar = Features((1,), (1,), (True,), 0.0)
    >>> moments = torch.tensor([[[3.0]], [[4.0]]])
    >>> normalisation(moments, torch.ones(1), torch.zeros(1), scalar).flatten().tolist()
    [0.5, -1.5]
    """
    result: Tensor = _normalisation(moments, weight, bias, *features)
    return result


def normalisation_twin(moments: Tensor, weight: Tensor, bias: Tensor, features: Features) -> Tensor:
    """The torch twin of `normalisation`."""
    to_components, constants = matrices(features, moments.device, moments.dtype)
    averages, variance = moments
    mean = averages * constants.sum(dim=1)
    power = mean_squares(variance + (averages - mean).square(), to_components)
    scale = ((power + features.eps).rsqrt() * weight) @ to_components.T
    return torch.stack([scale, constants @ bias - mean * scale])


def _gradients(
    grad: Tensor, moments: Tensor, weight: Tensor, bias: Tensor, features: Features
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for moments, weight and bias."""
    to_components, constants = matrices(features, moments.device, moments.dtype)
    is_constant = constants.sum(dim=1)
    averages, variance = moments
    mean = averages * is_constant
    power = mean_squares(variance + (averages - mean).square(), to_components)
    inverse = (power + features.eps).rsqrt()
    for_scale, for_shift = grad
    total = (for_scale - mean * for_shift) @ to_components
    for_power = -0.5 * total * weight * inverse**3
    for_variance = (for_power / to_components.sum(dim=0)) @ to_components.T
    scale = (inverse * weight) @ to_components.T
    for_mean = 2 * (averages - mean) * for_variance - for_shift * scale * is_constant
    return (
        torch.stack([for_mean, for_variance]),
        (total * inverse).sum(dim=0),
        (for_shift @ constants).sum(dim=0),
    )


def mean_squares(squares: Tensor, to_components: Tensor) -> Tensor:
    """Mean over the components of each feature, (..., C) -> (..., F), with `matrices`."""
    return squares @ to_components / to_components.sum(dim=0)


def matrices(features: Features, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Matrices of zeros and ones, (C, F) and (C, n); they are shared, and not to be written to.

    One copies a number of each feature to its components, the other that of a scalar to its place.
    """
    return _matrices(features.muls, features.dims, features.constants, device, dtype)


@kept
def _matrices(
    muls: tuple[int, ...],
    dims: tuple[int, ...],
    constants: tuple[bool, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    every = copies(muls, dims)
    constant = np.repeat(np.array(constants, bool), np.array(muls, np.int64))
    one, other = (torch.from_numpy(m).to(device, dtype) for m in (every, every[:, constant]))
    return one, other


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    moments, weight, bias, ctx.features = _read(*inputs)
    ctx.save_for_backward(moments, weight, bias)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors = moments, weight, bias = ctx.saved_tensors
    needed = ctx.needs_input_grad[:3]
    if higher_derivatives():
        gradients = gradients_of_twin(
            lambda: normalisation_twin(moments, weight, bias, ctx.features), tensors, needed, grad
        )
    else:
        every = _normalisation_backward(grad, *tensors, *ctx.features)
        gradients = only_needed(every, needed)
    return (*gradients, *[None] * len(Features._fields))


def _read(*args: Any) -> tuple[Any, ...]:
    """The arguments of an operator, with those of the features as one."""
    *tensors, muls, dims, constants, eps = args
    return *tensors, Features(tuple(muls), tuple(dims), tuple(constants), eps)


_ARGUMENTS = "Tensor moments, Tensor weight, Tensor bias, int[] muls, int[] dims, bool[] constants"

_normalisation = operator(
    "normalisation",
    f"({_ARGUMENTS}, float eps) -> Tensor",
    lambda moments, *_: moments.new_empty(moments.shape),
    twin=normalisation_twin,
    kernel="normalisation_triton.normalisation",
    read=_read,
    keep=_keep,
    differentiate=_differentiate,
)
_normalisation_backward = operator(
    "normalisation_backward",
    f"(Tensor grad, {_ARGUMENTS}, float eps) -> (Tensor, Tensor, Tensor)",
    lambda grad, *tensors: tuple(x.new_empty(x.shape) for x in tensors[:3]),
    twin=_gradients,
    kernel="normalisation_triton.normalisation_backward",
    read=_read,
)
