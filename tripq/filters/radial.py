"""Radial functions: the dependence of a filter on the length of an offset or a q-vector."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tripq.filters.activation import of_size_one
from tripq.infra.e3nn import nn as e3nn_nn
from tripq.kernels.embeddings import Family, edge_radial, radial_twin
from tripq.kernels.launch import runs_in_triton

RadialKind = Literal["gaussian", "cosine", "bessel", "smooth_finite"]


@dataclass(frozen=True)
class Radial:
    """Configuration of radial functions.

    Attributes
    ----------
    kind : {"gaussian", "cosine", "bessel", "smooth_finite"}
        The family, as in e3nn's `soft_one_hot_linspace`.
    number : int
        Number of functions.
    learnable : bool
        Whether each function may move and stretch: ``f_k(x)`` becomes ``f_k(a_k x + b_k)``, with
        ``a_k = 1, b_k = 0`` at first (Bessel functions only stretch).
    hidden : tuple of int
        Widths of the hidden layers of a small perceptron (swish) on top of the functions; its
        outputs are again `number` functions.  Empty: none.
    """

    kind: RadialKind = "gaussian"
    number: int = 3
    learnable: bool = False
    hidden: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(RadialKind):
            raise ValueError(
                f"unknown radial functions {self.kind!r}: choose one of "
                + ", ".join(get_args(RadialKind))
            )
        if self.number < 1:
            raise ValueError(f"at least one radial function is needed, not {self.number}")
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden layers need at least one unit each, not {self.hidden}")


class RadialFunctions(nn.Module):
    """Radial functions on the lengths from 0 to `end`.

    They are centred at equal steps from 0 on; with ``cutoff`` the last step ends at `end`, where
    bounded families vanish, otherwise the last function is centred at `end`.

    Parameters
    ----------
    radial : Radial
        Kind, number, and learnable parts.
    end : float
        The largest length (mm for p-offsets; |q| is in units of sqrt(b / b_ref)).
    cutoff : bool
        Whether the functions decay towards `end` (neighbourhoods) or reach up to it (shells).

    Examples
    --------
    >>> phi = RadialFunctions(Radial("cosine", 2), end=4.0, cutoff=True)
    >>> phi(torch.tensor([0.0, 2.0, 4.0])).round(decimals=4).abs().tolist()
    [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    """

    def __init__(self, radial: Radial, end: float, cutoff: bool) -> None:
        super().__init__()
        self.radial = radial
        self.number = radial.number
        self.end = float(end)
        # A neighbourhood of radius 0 holds one length only; any positive range serves it.
        end = self.end or 1.0
        step = end / (radial.number if cutoff else max(radial.number - 1, 1))
        self._start = 0.0 if radial.kind == "bessel" else -step
        self._stop = end if cutoff else end + step
        if radial.learnable:
            self.scale = nn.Parameter(torch.ones(radial.number))
            if radial.kind != "bessel":
                self.shift = nn.Parameter(torch.zeros(radial.number))
        if radial.hidden:
            widths = [radial.number, *radial.hidden, radial.number]
            self.mlp = e3nn_nn.FullyConnectedNet(widths)
            for layer in [*self.mlp][:-1]:
                layer.act = of_size_one(torch.nn.functional.silu)

    @property
    def constants(self) -> Hashable | None:
        """All that the values depend on but lengths, or None if something of it is learned."""
        learned = self.radial.learnable or self.radial.hidden
        return None if learned else (self.radial, self._start, self._stop)

    def forward(self, length: Tensor) -> Tensor:
        """Values at `length`, shape (...) -> (..., number)."""
        evaluate = edge_radial if runs_in_triton(length) else radial_twin
        values = evaluate(
            length.flatten(),
            Family(self.radial.kind, self.number, self._start, self._stop),
            getattr(self, "scale", None),
            getattr(self, "shift", None),
        ).view(*length.shape, self.number)
        if self.radial.hidden:
            weights = {name: w.to(values.dtype) for name, w in self.mlp.named_parameters()}
            rows = values.reshape(-1, self.number)
            values = functional_call(self.mlp, weights, rows).reshape(values.shape)
        return values

    def extra_repr(self) -> str:
        """Kind, number and range."""
        return f"{self.radial.number} {self.radial.kind} on [0, {self.end:g}]"


class ConstantFunction(nn.Module):
    """The radial function of a filter that does not depend on a length: 1 everywhere."""

    number = 1
    end = 0.0
    constants: Hashable = ()

    def forward(self, length: Tensor) -> Tensor:
        """Ones of shape (..., 1) for `length` of shape (...)."""
        return torch.ones_like(length)[..., None]
