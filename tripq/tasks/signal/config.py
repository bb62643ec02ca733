r"""Training settings of the prediction of signal.

>>> from tripq.training.config import parse_config
>>> SignalConfig().training.learning_rate
0.004
>>> parse_config("[network]\nn_p_layers = 2", "train.toml", SignalConfig).network.n_p_layers
2
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from tripq.domain.quadrature import Quadrature
from tripq.tasks.signal.network import SignalPredictor
from tripq.training.config import (
    CHECKED,
    NetworkConfig,
    OptimisationConfig,
    TrainingConfig,
    default_of,
)


@dataclass(frozen=True, config=CHECKED)
class PredictorConfig(NetworkConfig):
    """Arguments of `tripq.tasks.signal.network.SignalPredictor`, with its defaults."""

    p_radius: Annotated[
        float, Field(gt=0, description="radius of the neighbourhood of a voxel in mm")
    ] = default_of(SignalPredictor, "p_radius")
    p_features: Annotated[
        str, Field(min_length=1, description="features of every layer, in the notation of e3nn")
    ] = default_of(SignalPredictor, "p_features")
    n_p_layers: Annotated[
        int, Field(ge=1, description="number of these layers, without the last")
    ] = default_of(SignalPredictor, "n_p_layers")
    order: Annotated[
        int, Field(ge=2, le=8, description="highest order of the harmonics: 2, 4, 6 or 8")
    ] = default_of(SignalPredictor, "order")
    smoothing: Annotated[
        float, Field(gt=0, description="Laplace-Beltrami weight of the fit, as in dipy")
    ] = default_of(SignalPredictor, "smoothing")
    quadrature: Annotated[
        Quadrature,
        Field(
            description='"integral": scans of several voxel sizes; "sum": of one voxel size; see '
            "PQTensorFieldLayer"
        ),
    ] = default_of(SignalPredictor, "quadrature")


@dataclass(frozen=True, config=CHECKED)
class SignalOptimisationConfig(OptimisationConfig):
    """Optimisation settings, with other defaults than those of all tasks."""

    learning_rate: Annotated[float, Field(gt=0, description="highest rate of AdamW")] = 4e-3
    box_size: Annotated[int, Field(ge=1, description="edge of the boxes in voxels")] = 12
    n_boxes: Annotated[int, Field(ge=1, description="boxes per step")] = 2


@dataclass(frozen=True, config=CHECKED)
class SignalConfig(TrainingConfig):
    """All training settings of the prediction of signal."""

    network: PredictorConfig = field(default_factory=PredictorConfig)
    training: SignalOptimisationConfig = field(default_factory=SignalOptimisationConfig)
