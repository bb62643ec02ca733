"""Parts of networks: layer, gate, products, norms, reductions, blocks, first weights, residuals."""

from __future__ import annotations

from tripq.nn.batch_norm import BatchNorm
from tripq.nn.block import Block
from tripq.nn.bound import Bindable, Bound
from tripq.nn.gate import GatedNonlinearity
from tripq.nn.initialise import all_modules, fill_last_bias, scale_initial_weights
from tripq.nn.invariants import NormsAsScalars
from tripq.nn.layer import PQTensorFieldLayer
from tripq.nn.products import SphericalProducts
from tripq.nn.reduce import QLengthWeightedMean, QMean
from tripq.nn.residual import Residual, start_at_zero

__all__ = [
    "BatchNorm",
    "Bindable",
    "Block",
    "Bound",
    "GatedNonlinearity",
    "NormsAsScalars",
    "PQTensorFieldLayer",
    "QLengthWeightedMean",
    "QMean",
    "Residual",
    "SphericalProducts",
    "all_modules",
    "fill_last_bias",
    "scale_initial_weights",
    "start_at_zero",
]
