r"""Training settings of the prediction of signal.

>>> from tripq.training.config import parse_config
>>> SignalConfig().training.learning_rate
0.004
>>> parse_config("[network]\nn_p_layers = 2", "train.toml", SignalConfig).network.n_p_layers
2
"""

from __future__ import annotations

from dataclasses import field

from pydantic.dataclasses import dataclass

from tripq.training.config import (
    CHECKED,
    EncoderConfig,
    OptimisationConfig,
    ShellConfig,
    ShellOptimisationConfig,
    TrainingConfig,
)


@dataclass(frozen=True, config=CHECKED)
class SignalConfig(TrainingConfig):
    """All training settings of `tripq.tasks.signal.network.SignalPredictor`."""

    network: ShellConfig = field(default_factory=ShellConfig)
    training: ShellOptimisationConfig = field(default_factory=ShellOptimisationConfig)


@dataclass(frozen=True, config=CHECKED)
class PretrainingConfig(TrainingConfig):
    """All training settings of `tripq.tasks.signal.encoder.SignalEncoder`."""

    network: EncoderConfig = field(default_factory=EncoderConfig)
    training: OptimisationConfig = field(default_factory=OptimisationConfig)
