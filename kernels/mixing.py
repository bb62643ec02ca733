"""Channel mixing: one matrix for each output direction, applied at every voxel.

For features a of shape (Q, C, n, V), directions first and voxels last as the q-stage returns them,
and matrices w of shape (Q, C, R),

    out[v, r, m, q] = sum over c of w[q, c, r] a[q, c, m, v],        (V, R, n, Q),

voxels first and directions last as the p-stage takes them.  This is a matrix product for each
direction; its result is transposed while it is stored, without a copy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tripq.kernels.launch import higher_derivatives
from tripq.kernels.operators import operator


def mix(a: Tensor, w: Tensor) -> Tensor:
    """Mix the channels of features with one matrix for each direction.

    Under autocast it runs in the lower precision, as any matrix product does.

    Parameters
    ----------
    a : Tensor of shape (Q, C, n, V)
        Features: directions, channels, components of one order (n = 2 l + 1), voxels.
    w : Tensor of shape (Q, C, R)
        A matrix for each direction.

    Returns
    -------
    Tensor of shape (V, R, n, Q)

    Examples
    --------
    >>> a, w = torch.ones(2, 3, 5, 7), torch.ones(2, 3, 4)
    >>> out = mix(a, w)
    >>> out.shape, out.unique().tolist()
    (torch.Size([7, 4, 5, 2]), [3.0])
    """
    dtype = torch.promote_types(a.dtype, w.dtype)
    if torch.is_autocast_enabled(a.device.type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(a.device.type)
    result: Tensor = _mix(a.to(dtype), w.to(dtype))
    return result


def mix_twin(a: Tensor, w: Tensor) -> Tensor:
    """The torch twin of `mix`."""
    return torch.einsum("qcmv,qcr->vrmq", a, w).contiguous()


def mix_grad_a_twin(grad: Tensor, w: Tensor) -> Tensor:
    """The gradient for the features, (V, R, n, Q), (Q, C, R) -> (Q, C, n, V)."""
    return torch.einsum("vrmq,qcr->qcmv", grad, w).contiguous()


def mix_grad_w_twin(grad: Tensor, a: Tensor) -> Tensor:
    """The gradient for the matrices, (V, R, n, Q), (Q, C, n, V) -> (Q, C, R)."""
    return torch.einsum("vrmq,qcmv->qcr", grad, a).contiguous()


def _mixed(a: Tensor, w: Tensor) -> Tensor:
    return a.new_empty(a.shape[3], w.shape[2], a.shape[2], a.shape[0])


def _grad_a(grad: Tensor, w: Tensor) -> Tensor:
    return grad.new_empty(grad.shape[3], w.shape[1], grad.shape[2], grad.shape[0])


def _grad_w(grad: Tensor, a: Tensor) -> Tensor:
    return grad.new_empty(a.shape[0], a.shape[1], grad.shape[1])


def _keep_inputs(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    a, w = ctx.saved_tensors
    higher = higher_derivatives()
    for_a = mix_grad_a_twin if higher else _mix_grad_a
    for_w = mix_grad_w_twin if higher else _mix_grad_w
    grad_a = for_a(grad, w) if ctx.needs_input_grad[0] else None
    grad_w = for_w(grad, a) if ctx.needs_input_grad[1] else None
    return grad_a, grad_w


_mix_grad_a = operator(
    "mix_grad_a",
    "(Tensor grad, Tensor w) -> Tensor",
    _grad_a,
    twin=mix_grad_a_twin,
    kernel="mixing_triton.mix_grad_a",
)
_mix_grad_w = operator(
    "mix_grad_w",
    "(Tensor grad, Tensor a) -> Tensor",
    _grad_w,
    twin=mix_grad_w_twin,
    kernel="mixing_triton.mix_grad_w",
)
_mix = operator(
    "mix",
    "(Tensor a, Tensor w) -> Tensor",
    _mixed,
    twin=mix_twin,
    kernel="mixing_triton.mix",
    keep=_keep_inputs,
    differentiate=_differentiate,
)
