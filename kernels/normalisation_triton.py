"""Triton kernels of `tripq.kernels.normalisation`, which defines their results.

A single program evaluates all scans, one run of features of one order after the other.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tripq.kernels.normalisation import Features


class Run(NamedTuple):
    """Features of one order, and where they begin.

    Attributes
    ----------
    mul, dim, columns : int
        Number of features, their components, and the power of two from `mul` on.
    component, feature : int
        Places of the first component and of the first feature.
    constant : int
        Place of the first constant; -1 for features without.
    """

    mul: int
    dim: int
    columns: int
    component: int
    feature: int
    constant: int


class Layout(NamedTuple):
    """Constants of the kernels: the runs, the number of components, what is added to squares."""

    runs: tuple[Run, ...]
    components: int
    eps: float

    @classmethod
    def of(cls, features: Features) -> Layout:
        """The constants for some features."""
        runs = []
        component = feature = constant = 0
        for mul, dim, scalar in zip(features.muls, features.dims, features.constants, strict=True):
            columns, place = triton.next_power_of_2(max(mul, 1)), constant if scalar else -1
            runs.append(Run(mul, dim, columns, component, feature, place))
            component, feature = component + mul * dim, feature + mul
            constant += mul if scalar else 0
        return cls(tuple(runs), component, features.eps)


class Tensors(NamedTuple):
    """Arguments of the operator, or their gradients."""

    moments: Tensor
    weight: Tensor
    bias: Tensor


@triton.jit
def _power(averages, variances, u, known, R: tl.constexpr, ACC: tl.constexpr):
    """Mean square of each feature of a run."""
    # Triton 3.7 takes what is nested in a constant for a constant only by name.
    DIM: tl.constexpr = R.dim
    COLUMNS: tl.constexpr = R.columns
    CONSTANT: tl.constexpr = R.constant
    power = tl.zeros((COLUMNS,), ACC)
    for m in tl.static_range(DIM):
        place = R.component + u * R.dim + m
        power += tl.load(variances + place, mask=known, other=0.0).to(ACC)
        if CONSTANT < 0:
            average = tl.load(averages + place, mask=known, other=0.0).to(ACC)
            power += average * average
    return power / R.dim


@triton.jit
def _run(inputs, out, scan, n_scans, R: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr):
    # Triton 3.7 takes what is nested in a constant for a constant only by name.
    DIM: tl.constexpr = R.dim
    COLUMNS: tl.constexpr = R.columns
    CONSTANT: tl.constexpr = R.constant
    u = tl.arange(0, COLUMNS)
    known = u < R.mul
    averages = inputs.moments + scan * C.components
    variances = averages + n_scans * C.components
    scales = out + scan * C.components
    shifts = scales + n_scans * C.components
    power = _power(averages, variances, u, known, R, ACC)
    weight = tl.load(inputs.weight + R.feature + u, mask=known, other=0.0).to(ACC)
    scale = weight / tl.sqrt(power + C.eps)
    for m in tl.static_range(DIM):
        place = R.component + u * R.dim + m
        shift = tl.zeros((COLUMNS,), ACC)
        if CONSTANT >= 0:
            bias = tl.load(inputs.bias + R.constant + u, mask=known, other=0.0).to(ACC)
            shift = bias - tl.load(averages + place, mask=known, other=0.0).to(ACC) * scale
        tl.store(scales + place, scale, mask=known)
        tl.store(shifts + place, shift, mask=known)


@triton.jit
def normalisation_kernel(
    inputs,  # Tensors
    out,  # (2, S, C)
    n_scans,
    C: tl.constexpr,
    ACC: tl.constexpr,
):
    """Factors and constants of all scans."""
    for scan in range(0, n_scans):
        for j in tl.static_range(len(C.runs)):
            _run(inputs, out, scan, n_scans, C.runs[j], C, ACC)


@triton.jit
def _run_backward(grad, inputs, out, n_scans, R: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr):
    # Triton 3.7 takes what is nested in a constant for a constant only by name.
    DIM: tl.constexpr = R.dim
    COLUMNS: tl.constexpr = R.columns
    CONSTANT: tl.constexpr = R.constant
    u = tl.arange(0, COLUMNS)
    known = u < R.mul
    size = n_scans * C.components
    weight = tl.load(inputs.weight + R.feature + u, mask=known, other=0.0).to(ACC)
    for_weight = tl.zeros((COLUMNS,), ACC)
    for_bias = tl.zeros((COLUMNS,), ACC)
    for scan in range(0, n_scans):
        averages = inputs.moments + scan * C.components
        of_scan = out.moments + scan * C.components
        power = _power(averages, averages + size, u, known, R, ACC)
        inverse = 1 / tl.sqrt(power + C.eps)
        # The gradient for the factor of the feature, from all of its components.
        total = tl.zeros((COLUMNS,), ACC)
        for m in tl.static_range(DIM):
            place = scan * C.components + R.component + u * R.dim + m
            total += tl.load(grad + place, mask=known, other=0.0).to(ACC)
        if CONSTANT >= 0:
            place = R.component + u
            for_shift = tl.load(grad + size + scan * C.components + place, mask=known, other=0.0)
            for_shift = for_shift.to(ACC)
            average = tl.load(averages + place, mask=known, other=0.0).to(ACC)
            total -= average * for_shift
            for_bias += for_shift
            tl.store(of_scan + place, -for_shift * weight * inverse, mask=known)
        for_weight += total * inverse
        for_power = -0.5 * total * weight * inverse * inverse * inverse / R.dim
        for m in tl.static_range(DIM):
            place = R.component + u * R.dim + m
            tl.store(of_scan + size + place, for_power, mask=known)
            if CONSTANT < 0:
                average = tl.load(averages + place, mask=known, other=0.0).to(ACC)
                tl.store(of_scan + place, 2 * average * for_power, mask=known)
    tl.store(out.weight + R.feature + u, for_weight, mask=known)
    if CONSTANT >= 0:
        tl.store(out.bias + R.constant + u, for_bias, mask=known)


@triton.jit
def normalisation_backward_kernel(
    grad,  # (2, S, C)
    inputs,  # Tensors
    out,  # Tensors
    n_scans,
    C: tl.constexpr,
    ACC: tl.constexpr,
):
    """The gradients, summed over the scans for what is learned."""
    for j in tl.static_range(len(C.runs)):
        _run_backward(grad, inputs, out, n_scans, C.runs[j], C, ACC)


def normalisation(moments: Tensor, weight: Tensor, bias: Tensor, features: Features) -> Tensor:
    """Launch the forward kernel; (2, S, C) -> (2, S, C)."""
    out = torch.empty(moments.shape, dtype=moments.dtype, device=moments.device)
    inputs = Tensors(moments.contiguous(), weight.contiguous(), bias.contiguous())
    _launch(normalisation_kernel, (inputs, out), moments, features)
    return out


def normalisation_backward(
    grad: Tensor, moments: Tensor, weight: Tensor, bias: Tensor, features: Features
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the backward kernel; gradients for moments, weight and bias."""
    inputs = Tensors(moments.contiguous(), weight.contiguous(), bias.contiguous())
    out = Tensors(*(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs))
    _launch(normalisation_backward_kernel, (grad.contiguous(), inputs, out), moments, features)
    return out.moments, out.weight, out.bias


def _launch(
    kernel: triton.JITFunction,
    tensors: tuple[Tensor | Tensors, ...],
    moments: Tensor,
    features: Features,
) -> None:
    with torch.cuda.device_of(moments):
        kernel[(1,)](
            *tensors,
            moments.shape[1],
            C=Layout.of(features),
            ACC=tl.float64 if moments.dtype == torch.float64 else tl.float32,
        )
